"""Draws one bird from its traits and its pose.

A bird is laid out facing right in units of its own length, the middle of the body at (0, 0), y
downwards; `Pose.place` takes that to pixels. Traits change colours, small marks and the outlines
of bill, tail and crest; where the feet are, and everything that the scene needs to know, is the
same for all.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np

from fgkd_jax.data.procedural_birds import anatomy, shapes
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
        turned = shapes.turn(np.asarray(points, np.float64), own, about=anatomy.PIVOTS[piece])
        turned = shapes.turn(turned, self.tilt)
        side = -1.0 if self.flip else 1.0
        return turned * (self.length * side, self.length) + (self.x, self.y)

    def locate(self, points: list[tuple[float, float, str]]) -> np.ndarray:
        """Takes (x, y, piece) triples to points of the picture: float[n, 2] pixels."""
        return np.concatenate(
            [self.place(np.array([[x, y]]), piece=piece) for x, y, piece in points]
        )


def sample_pose(
    stream: Stream, *, size: int, shortest: float = 0.26, longest: float = 0.42
) -> Pose:
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
    return pose.locate([anatomy.PART_POINTS[part] for part in anatomy.PARTS])


def group_points(pose: Pose) -> np.ndarray:
    """Returns points on each attribute group's region: float[groups, 3, 2], x and y in pixels."""
    triples = [point for points in anatomy.GROUP_POINTS.values() for point in points]
    return pose.locate(triples).reshape(len(anatomy.GROUP_POINTS), 3, 2)


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
            self.fill(shapes.stroke((x, 0.13), (x + 0.01, 0.268), 0.018), leg)
            for toe, lift in ((0.06, 0.004), (0.035, 0.016), (-0.035, 0.01)):
                end = (x + 0.01 + toe, 0.272 + lift)
                self.fill(shapes.stroke((x + 0.01, 0.262), end, 0.015), leg)

    def tail(self) -> None:
        shape = self.traits["tail_shape"]
        outline, bands, feathers = anatomy.TAILS[shape]
        base = _scale(self.wing, 82)
        self.fill(anatomy.tail_points(outline), base, "tail")
        for root, end in feathers:
            self.fill(
                anatomy.tail_points(shapes.stroke(root, end, 0.009)), _scale(base, 70), "tail"
            )
        if tip := self.mark("tail_tip"):
            for band in bands:
                self.fill(anatomy.tail_points(band), tip, "tail")

    def trunk(self) -> None:
        self.fill(anatomy.TRUNK, self.body)
        for _ in range(26):
            x, y = self.stream.uniform(-0.16, 0.2), self.stream.uniform(-0.1, 0.1)
            shade = _scale(self.body, self.stream.choice((86, 90, 108, 112)))
            self.fill(shapes.stroke((x, y), (x - 0.035, y + 0.015), 0.014), shade)
        if self.traits["belly"] != "like_body":
            self.fill(anatomy.BELLY, MARK[self.traits["belly"]])
        pattern = self.traits["breast"]
        for x, y in anatomy.SPOTS if pattern != "plain" else ():
            if pattern == "spotted":
                self.fill(shapes.ellipse(x, y, 0.013, 0.013, steps=10), DARK)
            else:
                self.fill(
                    shapes.stroke((x + 0.012, y - 0.026), (x - 0.006, y + 0.026), 0.013), DARK
                )

    def crest(self) -> None:
        for spike in anatomy.CRESTS[self.traits["crest"]]:
            self.fill(np.array(spike), _scale(self.body, 90), "head")

    def bill(self) -> None:
        colour = MARK[self.traits["bill_colour"]]
        upper, lower = anatomy.BILLS[self.traits["bill_shape"]]
        self.fill(lower, _scale(colour, 78), "head")
        self.fill(upper, colour, "head")

    def face(self) -> None:
        if throat := self.mark("throat"):
            self.fill(anatomy.THROAT, throat, "head")
        if forehead := self.mark("forehead"):
            self.fill(anatomy.FOREHEAD, forehead, "head")
        if brow := self.mark("brow"):
            self.fill(anatomy.BROW, brow, "head")
        x, y = 0.245, -0.185
        if ring := self.mark("eye_ring"):
            self.fill(shapes.ellipse(x, y, 0.037, 0.037), ring, "head")
        else:
            self.fill(shapes.ellipse(x, y, 0.027, 0.027), _scale(self.body, 72), "head")
        self.fill(shapes.ellipse(x, y, 0.021, 0.021), (16, 14, 16), "head")
        self.fill(
            shapes.ellipse(x + 0.007, y - 0.008, 0.007, 0.007, steps=8), (250, 250, 250), "head"
        )

    def folded_wing(self) -> None:
        self.fill(shapes.moved(anatomy.WING_OUTLINE, 0.006, 0.02), _scale(self.body, 70))
        self.fill(anatomy.WING_OUTLINE, self.wing)
        for x, y, end_x, end_y in anatomy.FLIGHT_FEATHERS:
            self.fill(shapes.stroke((x, y), (end_x, end_y), 0.01), _scale(self.wing, 66))
        self.fill(anatomy.COVERTS, _scale(self.wing, 116))
        for row in range(3):
            for column in range(3):
                x, y = 0.085 - 0.045 * column + 0.012 * row, -0.07 + 0.036 * row
                self.fill(
                    shapes.stroke((x, y), (x - 0.026, y + 0.008), 0.01), _scale(self.wing, 84)
                )
        if bar := self.mark("wing_bar"):
            self.fill(anatomy.WING_BAR, bar)
