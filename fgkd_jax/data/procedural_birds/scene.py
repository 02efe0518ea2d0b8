"""The scene a bird sits in: background, branches, leaves, berries, light, and what covers the bird.

All of it is drawn from a stream that knows neither the species nor anything that depends on it; the
pose of the birds, which is equally blind, is all that it looks at.
"""

import math
from collections.abc import Sequence

import numpy as np

from fgkd_jax.data.procedural_birds import shapes
from fgkd_jax.data.procedural_birds.anatomy import FEET
from fgkd_jax.data.procedural_birds.bird import BODY, MARK, Pose
from fgkd_jax.data.procedural_birds.canvas import Canvas, Colour
from fgkd_jax.data.procedural_birds.streams import Stream

# Dark and light end of the background, muted so that the birds' colours stand out.
_PALETTES: tuple[tuple[Colour, Colour], ...] = (
    ((62, 74, 54), (138, 148, 112)),
    ((86, 78, 62), (166, 152, 124)),
    ((92, 104, 112), (176, 184, 186)),
    ((58, 66, 70), (128, 138, 136)),
    ((98, 96, 74), (178, 174, 142)),
    ((70, 62, 56), (142, 130, 116)),
)
_LEAVES: tuple[Colour, ...] = (
    (84, 100, 62), (104, 114, 76), (122, 112, 72), (74, 88, 72), (132, 120, 92), (94, 84, 60),
)  # fmt: skip
_BARK: tuple[Colour, ...] = ((86, 70, 58), (104, 90, 76), (74, 66, 62), (118, 104, 88))
_BERRIES = tuple(MARK[name] for name in ("white", "black", "yellow", "red", "orange", "ivory"))


def _shade(colour: Colour, percent: int) -> Colour:
    red, green, blue = (min(255, channel * percent // 100) for channel in colour)
    return red, green, blue


def backdrop(stream: Stream, *, size: int) -> np.ndarray:
    """Draws an out-of-focus background.

    Args:
      stream: where the draws come from.
      size: side, pixels; a multiple of 16.

    Returns:
      uint8[size, size, 3].
    """
    dark, light = stream.choice(_PALETTES)
    level = np.zeros((size, size), np.int32)
    for cells, weight in ((2, 5), (4, 5), (8, 4), (16, 2)):
        level += weight * _upsample(stream.octets(cells + 1, cells + 1), size // cells)
    # The weights add up to 16, so `level` is in 0 .. 255 * 2^20.
    level >>= 20
    for _ in range(7):
        x, y = stream.integer(0, size), stream.integer(0, size)
        radius, lift = stream.integer(size // 32, size // 9), stream.integer(-30, 46)
        top, left = max(0, y - radius), max(0, x - radius)
        window = level[top : y + radius + 1, left : x + radius + 1]
        rows, columns = np.ogrid[: window.shape[0], : window.shape[1]]
        inside = radius * radius - (rows + top - y) ** 2 - (columns + left - x) ** 2
        window += (np.clip(inside, 0, 6 * radius) * lift // (6 * radius)).astype(np.int32)
    level = np.clip(level, 0, 255)[:, :, None]
    low, high = np.array(dark, np.int32), np.array(light, np.int32)
    return (low + (high - low) * level // 255).astype(np.uint8)


def _upsample(grid: np.ndarray, step: int) -> np.ndarray:
    """Smooth interpolation in whole numbers: values times 2^16, shape (n - 1) * step."""
    t = np.arange(step, dtype=np.int32) * 256 // step
    ease = t * t * (768 - 2 * t) >> 16
    values = grid.astype(np.int32)
    for axis in (0, 1):
        values = np.moveaxis(values, axis, -1)
        left, right = values[..., :-1, None], values[..., 1:, None]
        blended = left * (256 - ease) + right * ease
        values = np.moveaxis(blended.reshape(*values.shape[:-1], -1), -1, axis)
    return values


_ALONG = np.linspace(0, 1, 13)


def branch(
    canvas: Canvas,
    stream: Stream,
    through: tuple[float, float],
    *,
    at: float,
    angle: float,
    length: float,
    width: float,
    leaves: int = 0,
) -> None:
    """Draws a branch that tapers and bends a little, with leaves growing from it.

    Args:
      canvas: what to draw on.
      stream: where the draws come from.
      through: a point on its upper edge, pixels.
      at: how far along the branch that point is, 0 (thick end) to 1.
      angle: its direction, radians.
      length: pixels.
      width: of the thick end, pixels.
      leaves: how many.
    """
    bend = stream.uniform(-0.1, 0.1) * length
    path = np.stack([_ALONG * length, bend * np.sin(math.pi * _ALONG)], axis=1)
    anchor = np.array([at * length, bend * math.sin(math.pi * at)])
    widths = width * (1 - 0.55 * _ALONG)
    path = shapes.turn(path - anchor, angle) + through + (0, 0.42 * width * (1 - 0.55 * at))
    for _ in range(leaves):
        x, y = path[stream.integer(0, len(path))]
        leaf(canvas, stream, x, y, stream.uniform(0.07, 0.17) * canvas.width)
    colour = stream.choice(_BARK)
    canvas.polygon(shapes.ribbon(path, widths), _shade(colour, 72))
    lit = path - np.array([0, 0.14 * width])
    canvas.polygon(shapes.ribbon(lit, widths * 0.68), colour)
    canvas.polygon(shapes.ribbon(lit - (0, 0.14 * width), widths * 0.22), _shade(colour, 122))
    for _ in range(int(length // 14)):
        step = stream.integer(0, len(lit) - 1)
        (x, y), (next_x, next_y) = lit[step], lit[step + 1]
        y += stream.uniform(-0.2, 0.2) * width
        end = (x + 0.4 * (next_x - x), y + 0.4 * (next_y - y))
        canvas.polygon(shapes.stroke((x, y), end, 0.9), _shade(colour, 62))


def leaf(canvas: Canvas, stream: Stream, x: float, y: float, length: float) -> None:
    """Draws a leaf with its stalk at (x, y), in pixels; length likewise."""
    angle = stream.uniform(0, 2 * math.pi)
    colour = _shade(stream.choice(_LEAVES), stream.integer(82, 118))
    outline = shapes.leaf(x, y, length, length * stream.uniform(0.32, 0.5), angle)
    canvas.polygon(outline, colour)
    tip = outline[8]
    canvas.polygon(np.concatenate([outline[9:], [[x, y]], [tip]]), _shade(colour, 84))
    rib = shapes.stroke((x, y), (tip[0], tip[1]), max(0.8, length * 0.03))
    canvas.polygon(rib, _shade(colour, 126))


def berry(canvas: Canvas, stream: Stream, colour: Colour, radius: float) -> None:
    """Draws a berry at a random place: a disc with shade and highlight; the radius in pixels."""
    x, y = stream.uniform(0, canvas.width), stream.uniform(0, canvas.height)
    steps = 12
    canvas.polygon(shapes.ellipse(x, y, radius, radius, steps=steps), _shade(colour, 74))
    inner = radius * 0.78
    canvas.polygon(
        shapes.ellipse(x - radius * 0.12, y - radius * 0.14, inner, inner, steps=steps), colour
    )
    if radius > 2:
        glint = shapes.ellipse(
            x - radius * 0.35, y - radius * 0.4, radius * 0.2, radius * 0.2, steps=8
        )
        canvas.polygon(glint, (250, 250, 248))


def speck(canvas: Canvas, stream: Stream) -> None:
    """Draws a petal, seed or scrap in a colour that the birds' marks also have."""
    colour = _shade(stream.choice(_BERRIES), stream.integer(84, 104))
    x, y = stream.uniform(0, canvas.width), stream.uniform(0, canvas.height)
    long, wide = stream.uniform(2.2, 6.5), stream.uniform(1.6, 3.4)
    tilt = stream.uniform(0, math.pi)
    canvas.polygon(shapes.ellipse(x, y, long, wide, tilt=tilt, steps=14), colour)


def behind(canvas: Canvas, stream: Stream, poses: Sequence[Pose], *, specks: int = 20) -> None:
    """Draws everything that is behind the birds, with a perch under the feet of each.

    Args:
      canvas: what to draw on.
      stream: where the draws come from.
      poses: the birds' poses.
      specks: how many small scraps in the colours of the birds' marks.
    """
    size = canvas.width
    for _ in range(stream.integer(1, 4)):
        branch(
            canvas,
            stream,
            (stream.uniform(-10, size + 10), stream.uniform(0, size)),
            at=0.0,
            angle=stream.uniform(0, 2 * math.pi),
            length=stream.uniform(0.3, 0.9) * size,
            width=stream.uniform(2.5, 8),
            leaves=stream.integer(3, 8),
        )
    for _ in range(stream.integer(3, 9)):
        x, y = stream.uniform(0, size), stream.uniform(0, size)
        leaf(canvas, stream, x, y, stream.uniform(0.07, 0.17) * size)
    for _ in range(stream.integer(0, 3)):
        colour = _shade(stream.choice(tuple(BODY.values())), stream.integer(80, 100))
        berry(canvas, stream, colour, stream.uniform(3.5, 6.5))
    for _ in range(specks // 2):
        speck(canvas, stream)
        berry(canvas, stream, stream.choice(_BERRIES), stream.uniform(1.6, 4))
    for pose in poses:
        perch(canvas, stream, pose)


def perch(canvas: Canvas, stream: Stream, pose: Pose) -> None:
    """Draws the branch under a bird's feet."""
    x, y = pose.place(np.array([FEET]))[0]
    angle = stream.uniform(-0.35, 0.35)
    branch(
        canvas,
        stream,
        (x, y),
        at=stream.uniform(0.3, 0.7),
        angle=angle + math.pi if stream.chance(0.5) else angle,
        length=stream.uniform(0.35, 1.1) * canvas.width,
        width=stream.uniform(7, 12),
        leaves=stream.integer(2, 7),
    )


def before(canvas: Canvas, stream: Stream, poses: Sequence[Pose], *, chance: float = 0.4) -> None:
    """Draws what covers parts of the birds: for some a spray of leaves, for some a twig.

    Args:
      canvas: what to draw on; its `number` should be 0.
      stream: where the draws come from.
      poses: the birds' poses.
      chance: how often a bird is partly covered.
    """
    for pose in poses:
        covered, twig = stream.chance(chance), stream.chance(0.4)
        along, across = stream.uniform(-0.42, 0.36), stream.uniform(-0.24, 0.2)
        angle = stream.uniform(0, 2 * math.pi)
        x, y = pose.place(np.array([[along, across]]))[0]
        if not covered:
            continue
        if twig:
            length, width = pose.length * 1.4, pose.length * 0.055
            branch(canvas, stream, (x, y), at=0.5, angle=angle, length=length, width=width)
        for _ in range(1 if twig else stream.integer(2, 4)):
            leaf(canvas, stream, x, y, pose.length * stream.uniform(0.2, 0.34))


def light(stream: Stream, *, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws the light on a scene.

    Args:
      stream: where the draws come from.
      size: side, pixels.

    Returns:
      gain int32[size, size, 3], in 1/1024, and noise int16[size, size, 3], in grey levels.
    """
    level = stream.integer(880, 1150)
    tint = [stream.integer(-50, 51), stream.integer(-24, 25), stream.integer(-50, 51)]
    slope_x, slope_y = stream.integer(-150, 151), stream.integer(-150, 151)
    offset = np.arange(size, dtype=np.int32) - size // 2
    slope = (slope_y * offset[:, None] + slope_x * offset[None, :]) // size
    gain = level + slope[:, :, None] + np.array(tint, np.int32)
    # The sum of two octets has a triangular spread: here -10 .. 9 grey levels.
    pair = stream.octets(2, size, size, 3).astype(np.int16)
    return gain, (pair[0] + pair[1] - 255) // 28


def model(picture: np.ndarray, shown: np.ndarray, pose: Pose) -> None:
    """Makes a flat bird round, in place: lit from above, darker at its underside and its edge.

    Args:
      picture: int32[h, w, 3], grey levels.
      shown: uint8[h, w], how many of nine fine pixels show the bird.
      pose: its pose.
    """
    rows, columns = np.flatnonzero(shown.any(axis=1)), np.flatnonzero(shown.any(axis=0))
    if rows.size == 0:
        return
    window = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    shown = shown[window].astype(np.int32)
    reach = max(2, round(pose.length * 0.045))
    solid = _box_sum(shown, reach) * 1024 // (9 * (2 * reach + 1) ** 2)
    rise = (round(pose.y) - np.arange(rows[0], rows[-1] + 1)) * 1024 // round(0.24 * pose.length)
    top = np.clip(rise, -1024, 1024).astype(np.int32)[:, None] * 150 // 1024
    edge = np.clip(solid - 1024, -512, 0) * 300 // 1024
    gain = 1024 + (36 + top + edge) * shown // 9
    picture[window] = picture[window] * gain[:, :, None] >> 10


def _box_sum(values: np.ndarray, reach: int) -> np.ndarray:
    """Sums over the (2 reach + 1)^2 neighbours; nothing outside counts."""
    side = 2 * reach + 1
    for axis in (0, 1):
        padding = [(0, 0), (0, 0)]
        padding[axis] = (reach + 1, reach)
        total = np.moveaxis(np.cumsum(np.pad(values, padding), axis=axis, dtype=np.int32), axis, 0)
        values = np.moveaxis(total[side:] - total[:-side], 0, axis)
    return values
