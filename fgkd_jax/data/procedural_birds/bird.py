"""Draws one bird from its traits and its pose.

A bird is laid out facing right in units of its own length, the middle of the body at (0, 0), y
downwards; `Pose.place` takes that to pixels. Traits change colours, small marks and the outlines
of bill, tail and crest; where the feet are, and everything that the scene needs to know, is the
same for all.
"""

import dataclasses
import math
from collections.abc import Mapping

import numpy as np

from fgkd_jax.data.procedural_birds import shapes
from fgkd_jax.data.procedural_birds.canvas import Canvas, Colour
from fgkd_jax.data.procedural_birds.streams import Stream

BODY: dict[str, Colour] = {
    "crimson": (186, 30, 46),
    "rufous": (206, 104, 34),
    "gold": (226, 184, 36),
    "green": (66, 152, 44),
    "teal": (20, 150, 150),
    "blue": (42, 84, 196),
    "violet": (124, 58, 170),
    "rose": (222, 116, 158),
}
WING: dict[str, Colour] = {
    "black": (44, 42, 46),
    "brown": (104, 74, 50),
    "grey": (118, 122, 130),
    "olive": (96, 98, 52),
}
MARK: dict[str, Colour] = {
    "white": (244, 244, 238),
    "black": (22, 20, 22),
    "yellow": (248, 214, 40),
    "red": (222, 34, 28),
    "ivory": (226, 206, 168),
    "orange": (240, 132, 24),
    "buff": (222, 190, 140),
}
DARK: Colour = (62, 44, 34)

PARTS = (
    "bill", "forehead", "crown", "nape", "eye", "throat", "breast", "belly", "back", "wing",
    "tail", "legs",
)  # fmt: skip
# Where each part is, and the piece of the bird that it turns with.
_PART_POINTS = {
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
_GROUP_POINTS = {
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
    "tail_tip": [(-0.4, 0.095, "tail"), (-0.44, 0.105, "tail"), (-0.42, 0.1, "tail")],
    "leg_colour": [(0.025, 0.2, "body"), (0.028, 0.225, "body"), (-0.045, 0.21, "body")],
}
_PIVOTS = {"body": (0.0, 0.0), "head": (0.16, -0.12), "tail": (-0.2, 0.03)}
FEET = (-0.005, 0.272)


@dataclasses.dataclass(frozen=True)
class Pose:
    """Where a bird is and how it holds itself; knows nothing of its species.

    Attributes:
      x: column of the middle of the body, pixels.
      y: row of the same.
      length: from bill to tail, pixels.
      flip: faces left.
      tilt: turn of the whole bird, radians; positive lowers the bill.
      head: further turn of the head, radians.
      tail: further turn of the tail, radians.
    """

    x: float
    y: float
    length: float
    flip: bool = False
    tilt: float = 0.0
    head: float = 0.0
    tail: float = 0.0

    def place(self, points: np.ndarray, *, piece: str = "body") -> np.ndarray:
        """Takes points of the bird to points of the picture.

        Args:
          points: float[n, 2], in bird lengths.
          piece: what they turn with: `body`, `head` or `tail`.

        Returns:
          float[n, 2], x and y in pixels.
        """
        own = {"body": 0.0, "head": self.head, "tail": self.tail}[piece]
        turned = shapes.turn(np.asarray(points, np.float64), own, about=_PIVOTS[piece])
        turned = shapes.turn(turned, self.tilt)
        side = -1.0 if self.flip else 1.0
        return turned * (self.length * side, self.length) + (self.x, self.y)

    def locate(self, points: list[tuple[float, float, str]]) -> np.ndarray:
        """Takes (x, y, piece) triples to points of the picture: float[n, 2] pixels."""
        return np.concatenate(
            [self.place(np.array([[x, y]]), piece=piece) for x, y, piece in points]
        )


def sample_pose(stream: Stream, *, size: int, shortest: float = 0.28, longest: float = 0.45) -> Pose:
    """Draws a pose that keeps the bird inside a square picture.

    Args:
      stream: where the draws come from; it must not know the species.
      size: side of the picture, pixels.
      shortest: least length of the bird, as a share of the side.
      longest: greatest length.

    Returns:
      The pose.
    """
    length = stream.uniform(shortest, longest) * size
    # The bill ends .42 before, the tail .58 behind, the feet .3 below, the crest .38 above.
    room = 0.56 * length + 4
    return Pose(
        x=stream.uniform(room, size - room),
        y=stream.uniform(0.42 * length + 4, size - 0.42 * length - 4),
        length=length,
        flip=stream.chance(0.5),
        tilt=stream.uniform(-0.38, 0.24),
        head=stream.uniform(-0.22, 0.22),
        tail=stream.uniform(-0.2, 0.2),
    )


def part_points(pose: Pose) -> np.ndarray:
    """Returns where the parts (`PARTS`) of a bird are: float[parts, 2], x and y in pixels."""
    return pose.locate([_PART_POINTS[part] for part in PARTS])


def group_points(pose: Pose) -> np.ndarray:
    """Returns points on each attribute group's region: float[groups, 3, 2], x and y in pixels."""
    triples = [point for points in _GROUP_POINTS.values() for point in points]
    return pose.locate(triples).reshape(len(_GROUP_POINTS), 3, 2)


def draw_bird(canvas: Canvas, traits: Mapping[str, str], pose: Pose, stream: Stream) -> None:
    """Draws a bird.

    Args:
      canvas: what to draw on; its `number` is the bird's.
      traits: one value of `world.GROUPS` for every group.
      pose: where and how.
      stream: the individual's own small differences in colour and feathers.
    """
    _Painter(canvas, traits, pose, stream).all()


def _scale(colour: Colour, percent: int) -> Colour:
    red, green, blue = (min(255, max(0, channel * percent // 100)) for channel in colour)
    return red, green, blue


class _Painter:
    def __init__(
        self, canvas: Canvas, traits: Mapping[str, str], pose: Pose, stream: Stream
    ) -> None:
        self.canvas, self.traits, self.pose, self.stream = canvas, traits, pose, stream
        self.body = self._individual(BODY[traits["body_colour"]])
        self.wing = self._individual(WING[traits["wing_colour"]])

    def _individual(self, colour: Colour) -> Colour:
        percent = self.stream.integer(92, 109)
        return _scale(colour, percent)

    def fill(self, points: np.ndarray, colour: Colour, piece: str = "body") -> None:
        self.canvas.polygon(self.pose.place(points, piece=piece), colour)

    def mark(self, group: str) -> Colour | None:
        """The colour of a mark, or None where the species has none."""
        return MARK.get(self.traits[group])

    def all(self) -> None:
        self.legs()
        self.tail()
        self.trunk()
        self.crest()
        self.bill()
        self.fill(shapes.ellipse(0.205, -0.165, 0.112, 0.108), self.body, "head")
        self.face()
        self.folded_wing()

    def legs(self) -> None:
        colour = MARK[self.traits["leg_colour"]]
        for x, shade in ((-0.055, 82), (0.02, 100)):
            leg = _scale(colour, shade)
            self.fill(shapes.stroke((x, 0.13), (x + 0.01, 0.268), 0.026), leg)
            for toe, lift in ((0.06, 0.004), (0.035, 0.016), (-0.035, 0.01)):
                end = (x + 0.01 + toe, 0.272 + lift)
                self.fill(shapes.stroke((x + 0.01, 0.262), end, 0.02), leg)

    def tail(self) -> None:
        shape = self.traits["tail_shape"]
        outline, bands, feathers = _TAILS[shape]
        base = _scale(self.wing, 82)
        self.fill(_tail_points(outline), base, "tail")
        for line in feathers:
            self.fill(_tail_points(shapes.stroke(*line, 0.009)), _scale(base, 70), "tail")
        tip = self.mark("tail_tip")
        for band in bands if tip else ():
            self.fill(_tail_points(band), tip, "tail")

    def trunk(self) -> None:
        self.fill(_TRUNK, self.body)
        for _ in range(26):
            x, y = self.stream.uniform(-0.16, 0.2), self.stream.uniform(-0.1, 0.1)
            shade = _scale(self.body, self.stream.choice((86, 90, 108, 112)))
            self.fill(shapes.stroke((x, y), (x - 0.035, y + 0.015), 0.014), shade)
        if self.traits["belly"] != "like_body":
            self.fill(_BELLY, MARK[self.traits["belly"]])
        pattern = self.traits["breast"]
        for x, y in _SPOTS if pattern != "plain" else ():
            if pattern == "spotted":
                self.fill(shapes.ellipse(x, y, 0.013, 0.013, steps=10), DARK)
            else:
                self.fill(shapes.stroke((x + 0.012, y - 0.026), (x - 0.006, y + 0.026), 0.013), DARK)

    def crest(self) -> None:
        for spike in _CRESTS[self.traits["crest"]]:
            self.fill(np.array(spike), _scale(self.body, 90), "head")

    def bill(self) -> None:
        colour = MARK[self.traits["bill_colour"]]
        upper, lower = _BILLS[self.traits["bill_shape"]]
        self.fill(np.array(lower), _scale(colour, 78), "head")
        self.fill(np.array(upper), colour, "head")

    def face(self) -> None:
        if throat := self.mark("throat"):
            self.fill(_THROAT, throat, "head")
        if forehead := self.mark("forehead"):
            self.fill(_FOREHEAD, forehead, "head")
        if brow := self.mark("brow"):
            self.fill(_BROW, brow, "head")
        x, y = 0.245, -0.185
        if ring := self.mark("eye_ring"):
            self.fill(shapes.ellipse(x, y, 0.04, 0.04), ring, "head")
        else:
            self.fill(shapes.ellipse(x, y, 0.027, 0.027), _scale(self.body, 72), "head")
        self.fill(shapes.ellipse(x, y, 0.022, 0.022), (16, 14, 16), "head")
        self.fill(shapes.ellipse(x + 0.007, y - 0.008, 0.007, 0.007, steps=8), (250, 250, 250), "head")

    def folded_wing(self) -> None:
        self.fill(_WING + (0.006, 0.02), _scale(self.body, 70))
        self.fill(_WING, self.wing)
        for x, y, end_x, end_y in _FLIGHT:
            self.fill(shapes.stroke((x, y), (end_x, end_y), 0.01), _scale(self.wing, 66))
        self.fill(_COVERTS, _scale(self.wing, 116))
        for row in range(3):
            for column in range(3):
                x, y = 0.085 - 0.045 * column + 0.012 * row, -0.07 + 0.036 * row
                self.fill(shapes.stroke((x, y), (x - 0.026, y + 0.008), 0.01), _scale(self.wing, 84))
        if bar := self.mark("wing_bar"):
            self.fill(_WING_BAR, bar)


def _tail_points(points: np.ndarray | list[tuple[float, float]]) -> np.ndarray:
    """From tail coordinates (along the tail, across it) to the bird's."""
    return shapes.turn(np.asarray(points, np.float64), math.pi - 0.24) + _PIVOTS["tail"]


def _fan() -> tuple[np.ndarray, list[np.ndarray]]:
    rim = shapes.arc(-0.02, 0, 0.34, 0.34, -0.36, 0.36)
    inner = shapes.arc(-0.02, 0, 0.285, 0.285, 0.36, -0.36)
    root = np.array([(-0.04, 0.04), (-0.04, -0.04)])
    return np.concatenate([rim, root]), [np.concatenate([rim, inner])]


def _tails() -> dict[str, tuple]:
    fan, fan_band = _fan()
    forked = [(-0.04, -0.045), (0.36, -0.1), (0.39, -0.085), (0.25, 0.0), (0.39, 0.085),
              (0.36, 0.1), (-0.04, 0.045)]  # fmt: skip
    prongs = [
        np.array([(0.3, -0.092), (0.36, -0.1), (0.39, -0.085), (0.285, -0.021)]),
        np.array([(0.3, 0.092), (0.36, 0.1), (0.39, 0.085), (0.285, 0.021)]),
    ]
    pointed = [(-0.04, -0.045), (0.2, -0.055), (0.4, -0.01), (0.4, 0.01), (0.2, 0.055), (-0.04, 0.045)]
    point = [np.array([(0.27, -0.039), (0.4, -0.01), (0.4, 0.01), (0.27, 0.039)])]
    square = [(-0.04, -0.045), (0.3, -0.06), (0.3, 0.06), (-0.04, 0.045)]
    end = [np.array([(0.235, -0.057), (0.3, -0.06), (0.3, 0.06), (0.235, 0.057)])]
    lines = [((0.02, 0.0), (0.24, 0.0)), ((0.02, 0.015), (0.24, 0.026)), ((0.02, -0.015), (0.24, -0.026))]
    return {
        "fan": (fan, fan_band, lines),
        "forked": (forked, prongs, lines[1:]),
        "pointed": (pointed, point, lines[:1]),
        "square": (square, end, lines),
    }


_TAILS = _tails()
_TRUNK = shapes.smooth(
    [(0.06, -0.165), (-0.08, -0.125), (-0.19, -0.04), (-0.255, 0.035), (-0.2, 0.1), (-0.08, 0.158),
     (0.05, 0.168), (0.16, 0.12), (0.238, 0.02), (0.27, -0.08), (0.17, -0.2)]
)  # fmt: skip
_BELLY = shapes.smooth(
    [(0.228, 0.0), (0.155, 0.102), (0.05, 0.152), (-0.08, 0.143), (-0.18, 0.09), (-0.1, 0.05),
     (0.05, 0.055), (0.15, 0.02)]
)  # fmt: skip
_SPOTS = [(0.19, 0.03), (0.145, 0.075), (0.205, -0.025), (0.09, 0.11), (0.03, 0.125), (0.15, 0.015),
          (0.1, 0.06), (-0.03, 0.115)]  # fmt: skip
_WING = shapes.smooth(
    [(0.13, -0.085), (0.05, -0.13), (-0.08, -0.1), (-0.22, -0.02), (-0.37, 0.08), (-0.22, 0.078),
     (-0.08, 0.078), (0.06, 0.058), (0.13, -0.01)]
)  # fmt: skip
_COVERTS = shapes.smooth(
    [(0.12, -0.08), (0.05, -0.118), (-0.02, -0.1), (-0.05, -0.02), (-0.04, 0.05), (0.06, 0.045),
     (0.12, -0.01)]
)  # fmt: skip
_FLIGHT = [(-0.04, -0.07, -0.2, 0.0), (-0.05, -0.03, -0.28, 0.045), (-0.05, 0.01, -0.27, 0.062),
           (-0.05, 0.045, -0.24, 0.07)]  # fmt: skip
_WING_BAR = shapes.ribbon(
    np.array([(-0.015, -0.105), (-0.04, -0.06), (-0.052, -0.005), (-0.05, 0.06)]),
    np.array([0.03, 0.036, 0.036, 0.03]),
)
_THROAT = shapes.smooth(
    [(0.302, -0.118), (0.282, -0.072), (0.245, -0.05), (0.205, -0.055), (0.225, -0.09), (0.262, -0.118)]
)
_FOREHEAD = np.concatenate(
    [
        shapes.arc(0.205, -0.165, 0.112, 0.108, -1.25, -0.2, steps=10),
        shapes.arc(0.205, -0.165, 0.068, 0.066, -0.55, -1.25, steps=8),
    ]
)
_BROW = shapes.ribbon(
    np.array([(0.232, -0.238), (0.19, -0.24), (0.15, -0.222), (0.118, -0.188)]),
    np.array([0.022, 0.03, 0.03, 0.02]),
)
_CRESTS: dict[str, list] = {
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
