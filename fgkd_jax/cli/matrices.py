"""Pictures of figures that form a matrix: how much every stage of one network goes with another's.

Figures of the name `GROUP/I.K-J.Z` are about stage K of network I and stage Z of network J. Those
of one pair of networks become one picture, with I's stages as rows and J's as columns.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from fgkd_jax.cli import pictures
from fgkd_jax.train.writers import FILE_NAME

Matrices = dict[tuple[str, int, int], np.ndarray]

CELL, MARGIN, TEXT = 104, 28, 20
"""Side of a cell, width of the margins and height of the letters, in pixels."""

SCALE = np.array([(28, 34, 78), (46, 112, 142), (78, 178, 128), (246, 226, 90)], np.float64)
"""Colours from the lowest value to the highest, evenly spaced; RGB."""

_NAME = re.compile(r"(\w+)/(\d+)\.(\d+)-(\d+)\.(\d+)")


def matrices(figures: Mapping[str, object]) -> Matrices:
    """Collects the figures that form matrices.

    Args:
      figures: numbers by name; others than `GROUP/I.K-J.Z` are passed over.

    Returns:
      By (group, I, J) the matrix [stages of I, stages of J]; NaN where a figure is missing.
    """
    entries: dict[tuple[str, int, int], dict[tuple[int, int], float]] = {}
    for name, value in figures.items():
        if (match := _NAME.fullmatch(name)) and isinstance(value, int | float):
            group, (i, k, j, z) = match[1], map(int, match.groups()[1:])
            entries.setdefault((group, i, j), {})[k, z] = float(value)
    found = {}
    for key, cells in sorted(entries.items()):
        size = tuple(1 + max(place[axis] for place in cells) for axis in (0, 1))
        found[key] = np.full(size, np.nan)
        for place, value in cells.items():
            found[key][place] = value
    return found


def draw_matrix(
    values: np.ndarray,
    *,
    title: str,
    rows: str,
    columns: str,
    limits: tuple[float, float],
) -> np.ndarray:
    """Draws a matrix with its values in its cells.

    Args:
      values: [r, c]; cells that are not finite stay grey.
      title: first line of the picture.
      rows: what the rows belong to.
      columns: what the columns belong to.
      limits: values with the darkest and the lightest colour.

    Returns:
      uint8 [H, W, 3], RGB.
    """
    font, small = (ImageFont.load_default(size) for size in (TEXT, TEXT - 4))
    legend = f"colours from {limits[0]:.3f} (dark) to {limits[1]:.3f} (light)"
    heading = [title, f"rows: {rows}", f"columns: {columns}", legend]
    left, line = MARGIN + round(font.getlength("stage 00")) + 12, TEXT + 8
    top = MARGIN + line * len(heading) + 12 + line
    width = max(
        left + CELL * values.shape[1],
        MARGIN + round(max(font.getlength(text) for text in heading)),
    )
    picture = Image.new("RGB", (width + MARGIN, top + CELL * values.shape[0] + MARGIN), "white")
    draw = ImageDraw.Draw(picture)
    for n, text in enumerate(heading):
        draw.text((MARGIN, MARGIN + line * n), text, "black", font if n == 0 else small)
    for z in range(values.shape[1]):
        draw.text((left + CELL * (z + 0.5), top - 8), f"stage {z}", "black", small, anchor="ms")
    for k, row in enumerate(values):
        middle = top + CELL * (k + 0.5)
        draw.text((left - 10, middle), f"stage {k}", "black", small, anchor="rm")
        for z, value in enumerate(row):
            x, y = left + CELL * z, top + CELL * k
            colour = _colour(value, limits)
            draw.rectangle((x, y, x + CELL - 3, y + CELL - 3), fill=colour)
            # Rec. 601 luma: dark letters on light cells.
            ink = "black" if np.dot(colour, (0.299, 0.587, 0.114)) > 128 else "white"
            text = f"{value:.3f}" if np.isfinite(value) else "none"
            draw.text((x + CELL / 2 - 1, y + CELL / 2 - 1), text, ink, font, anchor="mm")
    return np.asarray(picture)


def write_matrices(workdir: str, *, networks: Sequence[str] = ()) -> list[Path]:
    """Draws the matrices of the last line of a run's training metrics.

    Args:
      workdir: the run's folder.
      networks: what the networks are called, in order.

    Returns:
      The files, `WORKDIR/pictures/GROUP.I-J.png`; none where the metrics hold no matrix.

    Raises:
      UserError: the folder cannot be written to.
    """
    last = _last_line(Path(workdir) / FILE_NAME)
    found = matrices(last)
    drawn = []
    for (group, i, j), values in found.items():
        alike = [one for (other, *_), one in found.items() if other == group]
        lowest = min(float(np.nanmin(one)) for one in alike)
        highest = max(float(np.nanmax(one)) for one in alike)
        picture = draw_matrix(
            values,
            title=f"{group}, step {last.get('step')}",
            rows=_called(i, networks),
            columns=_called(j, networks),
            limits=(lowest, highest),
        )
        drawn += pictures.write(Path(workdir) / "pictures", group, {f"{i}-{j}": picture})
    return drawn


def _called(i: int, networks: Sequence[str]) -> str:
    return f"network {i}" + (f", {networks[i]}" if i < len(networks) else "")


def _colour(value: float, limits: tuple[float, float]) -> tuple[int, int, int]:
    if not np.isfinite(value):
        return (200, 200, 200)
    low, high = limits
    place = (value - low) / (high - low) if high > low else 0.5
    at = np.clip(place, 0.0, 1.0) * (len(SCALE) - 1)
    red, green, blue = (round(np.interp(at, range(len(SCALE)), channel)) for channel in SCALE.T)
    return red, green, blue


def _last_line(path: Path) -> dict[str, object]:
    """The newest metrics of training; none where there are none."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return {}
    for line in reversed(lines):
        values = json.loads(line)
        if values.get("split") == "train":
            return values
    return {}
