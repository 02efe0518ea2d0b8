"""Where everything is on a bird: outlines, marks and points, in bird lengths.

The bird faces right, the middle of its body is at (0, 0), y points down. Tails are laid out along
their own axis: x along the tail from its root, y across it.
"""

import math

import numpy as np

from fgkd_jax.data.procedural_birds import shapes

PARTS = (
    "bill", "forehead", "crown", "nape", "eye", "throat", "breast", "belly", "back", "wing",
    "tail", "legs",
)  # fmt: skip
# Where each part is, and the piece of the bird that it turns with.
PART_POINTS = {
    "bill": (0.335, -0.155, "head"),
    "forehead": (0.268, -0.225, "head"),
    "crown": (0.215, -0.25, "head"),
    "nape": (0.12, -0.18, "head"),
    "eye": (0.245, -0.185, "head"),
    "throat": (0.25, -0.09, "head"),
    "breast": (0.19, 0.02, "body"),
    "belly": (0.0, 0.125, "body"),
    "back": (0.0, -0.135, "body"),
    "wing": (-0.1, -0.02, "body"),
    "tail": (-0.36, 0.085, "tail"),
    "legs": (0.02, 0.155, "body"),
}
# Points that show whether an attribute of the group can be seen.
GROUP_POINTS = {
    "body_colour": [(0.2, -0.13, "head"), (0.17, -0.04, "body"), (0.0, -0.13, "body")],
    "wing_colour": [(0.05, -0.05, "body"), (-0.1, -0.02, "body"), (-0.2, 0.03, "body")],
    "belly": [(0.17, 0.05, "body"), (0.05, 0.11, "body"), (-0.1, 0.1, "body")],
    "bill_shape": [(0.32, -0.155, "head"), (0.335, -0.155, "head"), (0.36, -0.152, "head")],
    "tail_shape": [(-0.3, 0.07, "tail"), (-0.36, 0.085, "tail"), (-0.42, 0.1, "tail")],
    "crest": [(0.2, -0.255, "head"), (0.15, -0.235, "head"), (0.17, -0.245, "head")],
    "breast": [(0.19, 0.0, "body"), (0.13, 0.09, "body"), (0.06, 0.11, "body")],
    "bill_colour": [(0.32, -0.155, "head"), (0.335, -0.155, "head"), (0.36, -0.152, "head")],
    "forehead": [(0.255, -0.24, "head"), (0.268, -0.225, "head"), (0.285, -0.205, "head")],
    "eye_ring": [(0.215, -0.185, "head"), (0.245, -0.155, "head"), (0.275, -0.185, "head")],
    "brow": [(0.2, -0.235, "head"), (0.165, -0.225, "head"), (0.135, -0.205, "head")],
    "throat": [(0.275, -0.09, "head"), (0.25, -0.09, "head"), (0.225, -0.075, "head")],
    "wing_bar": [(-0.02, -0.07, "body"), (-0.045, -0.02, "body"), (-0.05, 0.03, "body")],
    "tail_tip": [(-0.38, 0.085, "tail"), (-0.4, 0.09, "tail"), (-0.42, 0.095, "tail")],
    "leg_colour": [(0.025, 0.2, "body"), (0.028, 0.225, "body"), (-0.045, 0.21, "body")],
}
# The part nearest to where each small group shows.
GROUP_PARTS = {
    "bill_colour": "bill",
    "forehead": "forehead",
    "eye_ring": "eye",
    "brow": "crown",
    "throat": "throat",
    "wing_bar": "wing",
    "tail_tip": "tail",
    "leg_colour": "legs",
}
PIVOTS = {"body": (0.0, 0.0), "head": (0.16, -0.12), "tail": (-0.2, 0.03)}
FEET = (-0.005, 0.272)


def tail_points(points: np.ndarray | list[tuple[float, float]]) -> np.ndarray:
    """From tail coordinates (along the tail, across it) to the bird's."""
    return shapes.turn(np.asarray(points, np.float64), math.pi - 0.24) + PIVOTS["tail"]


def _fan() -> tuple[np.ndarray, list[np.ndarray]]:
    rim = shapes.arc(-0.02, 0, 0.34, 0.34, -0.36, 0.36)
    inner = shapes.arc(-0.02, 0, 0.316, 0.316, 0.36, -0.36)
    root = np.array([(-0.04, 0.04), (-0.04, -0.04)])
    return np.concatenate([rim, root]), [np.concatenate([rim, inner])]


def _tails() -> dict[str, tuple]:
    fan, fan_band = _fan()
    forked = [(-0.04, -0.045), (0.36, -0.1), (0.39, -0.085), (0.25, 0.0), (0.39, 0.085),
              (0.36, 0.1), (-0.04, 0.045)]  # fmt: skip
    prongs = [
        np.array([(0.325, -0.095), (0.36, -0.1), (0.39, -0.085), (0.318, -0.041)]),
        np.array([(0.325, 0.095), (0.36, 0.1), (0.39, 0.085), (0.318, 0.041)]),
    ]
    pointed = [
        (-0.04, -0.045),
        (0.2, -0.055),
        (0.4, -0.01),
        (0.4, 0.01),
        (0.2, 0.055),
        (-0.04, 0.045),
    ]
    point = [np.array([(0.3, -0.0325), (0.4, -0.01), (0.4, 0.01), (0.3, 0.0325)])]
    square = [(-0.04, -0.045), (0.3, -0.06), (0.3, 0.06), (-0.04, 0.045)]
    end = [np.array([(0.268, -0.0585), (0.3, -0.06), (0.3, 0.06), (0.268, 0.0585)])]
    lines = [
        ((0.02, 0.0), (0.24, 0.0)),
        ((0.02, 0.015), (0.24, 0.026)),
        ((0.02, -0.015), (0.24, -0.026)),
    ]
    return {
        "fan": (fan, fan_band, lines),
        "forked": (forked, prongs, lines[1:]),
        "pointed": (pointed, point, lines[:1]),
        "square": (square, end, lines),
    }


TAILS = _tails()
TRUNK = shapes.smooth(
    [(0.06, -0.165), (-0.08, -0.125), (-0.19, -0.04), (-0.255, 0.035), (-0.2, 0.1), (-0.08, 0.158),
     (0.05, 0.168), (0.16, 0.12), (0.238, 0.02), (0.27, -0.08), (0.17, -0.2)]
)  # fmt: skip
BELLY = shapes.smooth(
    [(0.228, 0.0), (0.155, 0.102), (0.05, 0.152), (-0.08, 0.143), (-0.18, 0.09), (-0.1, 0.05),
     (0.05, 0.055), (0.15, 0.02)]
)  # fmt: skip
SPOTS = [(0.19, 0.03), (0.145, 0.075), (0.205, -0.025), (0.09, 0.11), (0.03, 0.125), (0.15, 0.015),
          (0.1, 0.06), (-0.03, 0.115)]  # fmt: skip
WING_OUTLINE = shapes.smooth(
    [(0.13, -0.085), (0.05, -0.13), (-0.08, -0.1), (-0.22, -0.02), (-0.37, 0.08), (-0.22, 0.078),
     (-0.08, 0.078), (0.06, 0.058), (0.13, -0.01)]
)  # fmt: skip
COVERTS = shapes.smooth(
    [(0.12, -0.08), (0.05, -0.118), (-0.02, -0.1), (-0.05, -0.02), (-0.04, 0.05), (0.06, 0.045),
     (0.12, -0.01)]
)  # fmt: skip
FLIGHT_FEATHERS = [
    (-0.04, -0.07, -0.2, 0.0),
    (-0.05, -0.03, -0.28, 0.045),
    (-0.05, 0.01, -0.27, 0.062),
    (-0.05, 0.045, -0.24, 0.07),
]
WING_BAR = shapes.ribbon(
    np.array([(-0.015, -0.105), (-0.04, -0.06), (-0.052, -0.005), (-0.05, 0.06)]),
    np.array([0.017, 0.02, 0.02, 0.017]),
)
THROAT = shapes.scaled(
    shapes.smooth(
        [(0.302, -0.118), (0.282, -0.072), (0.245, -0.05), (0.205, -0.055), (0.225, -0.09),
         (0.262, -0.118)]
    ),
    0.78,
    about=(0.265, -0.1),
)  # fmt: skip
FOREHEAD = np.concatenate(
    [
        shapes.arc(0.205, -0.165, 0.112, 0.108, -1.15, -0.25, steps=10),
        shapes.arc(0.205, -0.165, 0.074, 0.072, -0.5, -1.15, steps=8),
    ]
)
BROW = shapes.ribbon(
    np.array([(0.232, -0.238), (0.19, -0.24), (0.15, -0.222), (0.118, -0.188)]),
    np.array([0.018, 0.025, 0.025, 0.016]),
)
CRESTS: dict[str, list] = {
    "smooth": [],
    "crested": [[(0.235, -0.262), (0.17, -0.3), (0.05, -0.345), (0.085, -0.27), (0.1, -0.19)]],
    "tufted": [
        [(0.25, -0.25), (0.265, -0.35), (0.205, -0.262)],
        [(0.22, -0.26), (0.205, -0.365), (0.165, -0.255)],
        [(0.18, -0.255), (0.145, -0.345), (0.125, -0.225)],
    ],
}
# Upper and lower half of each bill; the base is hidden by the head.
_BILLS: dict[str, tuple[list, list]] = {
    "conical": (
        [(0.28, -0.2), (0.32, -0.196), (0.395, -0.152), (0.28, -0.15)],
        [(0.28, -0.15), (0.395, -0.152), (0.325, -0.118), (0.28, -0.115)],
    ),
    "dagger": (
        [(0.28, -0.182), (0.33, -0.178), (0.445, -0.154), (0.28, -0.153)],
        [(0.28, -0.153), (0.445, -0.154), (0.33, -0.13), (0.28, -0.128)],
    ),
    "hooked": (
        [(0.28, -0.195), (0.335, -0.196), (0.385, -0.18), (0.4, -0.15), (0.392, -0.112),
         (0.374, -0.138), (0.35, -0.15), (0.28, -0.15)],
        [(0.28, -0.15), (0.35, -0.15), (0.362, -0.138), (0.33, -0.122), (0.28, -0.12)],
    ),
    "curved": (
        [(0.28, -0.18), (0.34, -0.178), (0.4, -0.155), (0.448, -0.105), (0.4, -0.136),
         (0.34, -0.156), (0.28, -0.158)],
        [(0.28, -0.158), (0.34, -0.156), (0.4, -0.136), (0.448, -0.105), (0.39, -0.122),
         (0.335, -0.138), (0.28, -0.136)],
    ),
}  # fmt: skip
BILLS = {
    name: tuple(shapes.scaled(np.array(half), 0.95, about=(0.3, -0.155)) for half in halves)
    for name, halves in _BILLS.items()
}
