"""The picture of a seen-unseen curve."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from fgkd_jax.cli import pictures
from fgkd_jax.errors import UserError
from fgkd_jax.evaluation.seen_unseen import SeenUnseenCurve

SIDE, MARGIN, TEXT = 520, 84, 18
"""Side of the square between 0 and 1, width of the margins and height of letters, in pixels."""

GRID, FILL, LINE = (222, 222, 222), (226, 236, 244), (28, 84, 138)
MARKS = ((176, 48, 40), (30, 122, 60), (128, 92, 16))
"""Colours of the marked points, in their order."""

POINT = 6


def draw_curve(
    curve: SeenUnseenCurve, *, title: str, marks: dict[str, tuple[float, float]]
) -> np.ndarray:
    """Draws accuracy on seen classes over accuracy on unseen ones.

    Args:
      curve: S and U over all offsets.
      title: first line of the picture; the area follows it.
      marks: (U, S) of single points by what they are called.

    Returns:
      uint8 [H, W, 3], RGB; the area under the curve is filled.
    """
    font = ImageFont.load_default(TEXT)
    line = TEXT + 8
    top = MARGIN + line * (1 + len(marks))
    picture = Image.new("RGB", (SIDE + 2 * MARGIN, top + SIDE + MARGIN), "white")
    draw = ImageDraw.Draw(picture)

    def place(u: float, s: float) -> tuple[float, float]:
        return MARGIN + SIDE * u, top + SIDE * (1 - s)

    points = [place(u, s) for u, s in zip(curve.unseen, curve.seen, strict=True)]
    ends = [place(float(curve.unseen[-1]), 0.0), place(float(curve.unseen[0]), 0.0)]
    draw.polygon([*points, *ends], fill=FILL)
    for tick in np.linspace(0, 1, 6):
        draw.line((place(tick, 0), place(tick, 1)), GRID)
        draw.line((place(0, tick), place(1, tick)), GRID)
        x, y = place(tick, 0)
        draw.text((x, y + 8), f"{tick:.0%}", "black", font, anchor="mt")
        x, y = place(0, tick)
        draw.text((x - 8, y), f"{tick:.0%}", "black", font, anchor="rm")
    if len(points) > 1:
        draw.line(points, LINE, 3)
    draw.text((MARGIN, MARGIN // 2), f"{title}, area {curve.area:.4f}", "black", font)
    for n, (name, (u, s)) in enumerate(marks.items()):
        colour, (x, y) = MARKS[n % len(MARKS)], place(u, s)
        draw.ellipse((x - POINT, y - POINT, x + POINT, y + POINT), fill=colour)
        text = f"{name}: unseen {u:.1%}, seen {s:.1%}"
        draw.text((MARGIN, MARGIN // 2 + line * (n + 1)), text, colour, font)
    draw.text((MARGIN + SIDE, top + SIDE + line + 12), "unseen classes", "black", font, anchor="ra")
    draw.text((MARGIN, top - 10), "seen classes", "black", font, anchor="ls")
    return np.asarray(picture)


def write_curve(
    path: str, curve: SeenUnseenCurve, figures: dict[str, float], *, title: str
) -> None:
    """Writes the picture of a curve, with the points of the figures on it.

    Args:
      path: a `.png` file.
      curve: S and U over all offsets.
      figures: as of `zero_shot_figures` on the same decisions.
      title: first line of the picture.

    Raises:
      UserError: another kind of file, or it cannot be written.
    """
    file = Path(path)
    if file.suffix != ".png":
        raise UserError(f"the picture is to be {path}; expected a name that ends in .png")
    marks = {
        name: (figures[f"{prefix}unseen_accuracy"], figures[f"{prefix}seen_accuracy"])
        for name, prefix in (("as scored", ""), ("calibrated", "calibrated_"))
        if f"{prefix}seen_accuracy" in figures
    }
    pictures.write_file(file, draw_curve(curve, title=title, marks=marks))
