"""Outlines as polygons, in units of one's own choice."""

import math

import numpy as np


def smooth(points: list[tuple[float, float]], *, steps: int = 6) -> np.ndarray:
    """Returns a closed curve through the points (a uniform Catmull-Rom spline).

    Args:
      points: the points, in order round the outline.
      steps: pieces between two points.

    Returns:
      float[points * steps, 2].
    """
    p1 = np.array(points, np.float64)
    p0, p2, p3 = np.roll(p1, 1, axis=0), np.roll(p1, -1, axis=0), np.roll(p1, -2, axis=0)
    t = (np.arange(steps) / steps)[None, :, None]
    p0, p1, p2, p3 = (p[:, None, :] for p in (p0, p1, p2, p3))
    linear = (p2 - p0) * t
    square = (2 * p0 - 5 * p1 + 4 * p2 - p3) * t**2
    cube = (3 * p1 - 3 * p2 + p3 - p0) * t**3
    return (p1 + (linear + square + cube) / 2).reshape(-1, 2)


def ellipse(
    x: float, y: float, rx: float, ry: float, *, tilt: float = 0.0, steps: int = 24
) -> np.ndarray:
    """Returns an ellipse: centre, radii, and a turn in radians.  float[steps, 2]."""
    return arc(x, y, rx, ry, 0.0, 2 * math.pi * (1 - 1 / steps), tilt=tilt, steps=steps)


def arc(
    x: float,
    y: float,
    rx: float,
    ry: float,
    start: float,
    stop: float,
    *,
    tilt: float = 0.0,
    steps: int = 16,
) -> np.ndarray:
    """Returns points of an ellipse from one angle to another, in radians.  float[steps, 2].

    Angle 0 points along x, pi / 2 along y.
    """
    angle = np.linspace(start, stop, steps)
    points = np.stack([rx * np.cos(angle), ry * np.sin(angle)], axis=1)
    return moved(turn(points, tilt), x, y)


def turn(points: np.ndarray, angle: float, *, about: tuple[float, float] = (0, 0)) -> np.ndarray:
    """Returns the points turned by an angle in radians, from x towards y, about a centre."""
    c, s = math.cos(angle), math.sin(angle)
    return (points - about) @ np.array([[c, s], [-s, c]]) + about


def scaled(points: np.ndarray, factor: float, *, about: tuple[float, float]) -> np.ndarray:
    """Returns the points moved towards a centre (factor < 1) or away from it."""
    return (points - np.array(about)) * factor + np.array(about)


def moved(points: np.ndarray, x: float, y: float) -> np.ndarray:
    """Returns the points moved by (x, y)."""
    return points + np.array([x, y])


def ribbon(path: np.ndarray, widths: np.ndarray) -> np.ndarray:
    """Returns the outline of a band along a path.

    Args:
      path: float[n, 2], the middle line.
      widths: float[n], the full width at each point.

    Returns:
      float[2 n, 2].
    """
    along = np.concatenate([path[1:2] - path[:1], path[2:] - path[:-2], path[-1:] - path[-2:-1]])
    across = along[:, ::-1] * (-0.5, 0.5)
    side = across * (widths / np.sqrt((along * along).sum(axis=1)))[:, None]
    return np.concatenate([path + side, (path - side)[::-1]])


def stroke(start: tuple[float, float], stop: tuple[float, float], width: float) -> np.ndarray:
    """Returns a straight bar from one point to another, of even width: float[4, 2]."""
    (x0, y0), (x1, y1) = start, stop
    half = width / 2 / math.hypot(x1 - x0, y1 - y0)
    dx, dy = (y0 - y1) * half, (x1 - x0) * half
    return np.array(
        [(x0 + dx, y0 + dy), (x1 + dx, y1 + dy), (x1 - dx, y1 - dy), (x0 - dx, y0 - dy)]
    )


def leaf(x: float, y: float, length: float, width: float, angle: float) -> np.ndarray:
    """Returns a leaf with its stalk at (x, y): first half float[9, 2] upper edge, then lower."""
    t = np.linspace(0, 1, 9)
    bulge = np.sin(math.pi * t**0.8) * width / 2
    upper = np.stack([t * length, -bulge], axis=1)
    lower = np.stack([t[::-1] * length, bulge[::-1]], axis=1)
    return moved(turn(np.concatenate([upper, lower]), angle), x, y)
