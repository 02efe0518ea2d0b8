"""Pictures of where a run on region features finds attributes."""

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import jax
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from fgkd_jax.cli import pictures
from fgkd_jax.cli.results import Restored
from fgkd_jax.data.base import SplitSources, Subset, labels_and_ids, split_source
from fgkd_jax.data.class_descriptions import ClassDescriptions
from fgkd_jax.data.feature_folder import THUMBNAIL
from fgkd_jax.data.pipeline import eval_iterator
from fgkd_jax.errors import UserError
from fgkd_jax.train.sharding import put_batch

TILE, GAP, TEXT = 300, 12, 15
"""Width of a tile, space between tiles and height of letters, in pixels."""

COLUMNS, MAPS = 4, 11
"""Tiles side by side, and most maps of one picture; the image itself is the first tile."""

RADIUS = 7
"""Of the circle around a part, in pixels."""


def write_attention(
    folder: str, restored: Restored, split: str, *, examples: int
) -> tuple[Path, ...]:
    """Draws the attention of attributes over some images of a split.

    Args:
      folder: where to; made if missing.
      restored: a run on features with thumbnails.
      split: a split, or several with "+" between them.
      examples: how many images, spread evenly over the split.

    Returns:
      The files, `<folder>/<id>.attention.png`.

    Raises:
      UserError: there are no thumbnails, the method attends to nothing, or the folder cannot be
        written to.
    """
    info = restored.dataset.info
    if info.descriptions is None:
        raise UserError(
            f"{info.name} says nothing of its classes; expected attributes to attend to"
        )
    written: list[Path] = []
    for row in _predictions(restored, split, examples):
        chosen = attributes_to_show(info.descriptions, int(row["label"]))
        names = info.descriptions.attribute_names
        told = info.descriptions.attribute_parts
        points = np.zeros((len(chosen), 3), np.float32)
        if told is not None and "parts" in row:
            sizes = np.array([*row["features"].shape[1::-1], 1], np.float32)
            points = np.where(told[chosen, None] >= 0, row["parts"][told[chosen]] / sizes, 0)
        picture = draw_attention(
            row[THUMBNAIL],
            row["attention"][chosen],
            points,
            titles=[names[a] if names else f"attribute {a}" for a in chosen],
            heading=f"{info.class_names[row['label']]}, taken for {info.class_names[row['class']]}",
        )
        written += pictures.write(Path(folder), str(row["id"]), {"attention": picture})
    return tuple(written)


def attributes_to_show(described: ClassDescriptions, label: int) -> list[int]:
    """Chooses attributes of a class: the strongest of each part, or the strongest of all.

    Args:
      described: the classes.
      label: which class.

    Returns:
      At most `MAPS` attributes, by part and, where parts are not known, the strongest first.
    """
    order = np.argsort(-described.attributes[label], kind="stable")
    if described.attribute_parts is None:
        return [int(a) for a in order[:MAPS]]
    strongest: dict[int, int] = {}
    for attribute in order:
        strongest.setdefault(int(described.attribute_parts[attribute]), int(attribute))
    return [strongest[part] for part in sorted(strongest) if part >= 0][:MAPS]


def draw_attention(
    image: np.ndarray,
    maps: np.ndarray,
    points: np.ndarray,
    *,
    titles: Sequence[str],
    heading: str,
) -> np.ndarray:
    """Lays each map over the image and circles the point that it should be at.

    Args:
      image: uint8 [h, w, 3], RGB.
      maps: [n, rows, columns], over the whole image.
      points: [n, 3], (x, y, visible), as shares of the image; those not visible are left out.
      titles: what each map is of.
      heading: what the image is of.

    Returns:
      uint8 [H, W, 3], RGB: the image, then a tile for each map, in rows of `COLUMNS`.
    """
    size = (TILE, max(1, round(TILE * image.shape[0] / image.shape[1])))
    tiles = [cv2.resize(image, size, interpolation=cv2.INTER_NEAREST)]
    for one in maps:
        overlay = pictures.attention_overlay(image, one)
        tiles.append(cv2.resize(overlay, size, interpolation=cv2.INTER_AREA))
    step = size[0] + GAP, size[1] + TEXT + 2 * GAP
    rows = -(-len(tiles) // COLUMNS)
    canvas = Image.new("RGB", (COLUMNS * step[0] + GAP, rows * step[1] + TEXT + 2 * GAP), "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(TEXT)
    draw.text((GAP, GAP), heading, "black", font)
    for n, tile in enumerate(tiles):
        left = GAP + n % COLUMNS * step[0]
        top = TEXT + 2 * GAP + n // COLUMNS * step[1]
        draw.text((left, top), titles[n - 1] if n else "", "black", font)
        top += TEXT + GAP // 2
        canvas.paste(Image.fromarray(tile), (left, top))
        if n and points[n - 1, 2] > 0:
            x, y = left + points[n - 1, 0] * size[0], top + points[n - 1, 1] * size[1]
            box = (x - RADIUS, y - RADIUS, x + RADIUS, y + RADIUS)
            draw.ellipse(box, outline=pictures.YELLOW, width=2)
    return np.asarray(canvas)


def _predictions(restored: Restored, split: str, examples: int) -> Iterator[dict[str, Any]]:
    """Rows of batches with what the method makes of them: `attention` and `class`."""
    run, info = restored.trainer.run, restored.dataset.info
    source = split_source(restored.dataset, split)
    there = source[0] if len(source) else {}
    if THUMBNAIL not in there:
        raise UserError(
            f"{info.name} has no thumbnails to draw on; expected features that were written with: "
            "fgkd features --thumbnails 96"
        )
    method: Any = run.method
    compute = jax.jit(lambda state, batch: method.predict(state.variables(ema=True), batch))
    labels, ids = labels_and_ids(source)
    rows = np.unique(np.linspace(0, len(source) - 1, examples).round().astype(np.int64))
    part = SplitSources(
        dataclasses.replace(info, splits={"shown": len(rows)}),
        {"shown": Subset(source, rows, labels[rows], ids[rows])},
    )
    keys = tuple(key for key in (THUMBNAIL, "parts") if key in there)
    options = dataclasses.replace(restored.experiment.images("--pictures"), extra_keys=keys)
    size = run.train.eval_batch_size
    with contextlib.closing(eval_iterator(part, "shown", options, batch_size=size)) as batches:
        for batch in batches:
            found = compute(restored.state, put_batch(batch, mesh=run.mesh))
            if "attention" not in found or "scores" not in found:
                raise UserError("the run's method attends to no attributes; expected one that does")
            attention, scores = jax.device_get((found["attention"], found["scores"]))
            for i in np.flatnonzero(batch["mask"]):
                row = {key: value[i] for key, value in batch.items()}
                yield {**row, "attention": attention[i], "class": int(scores[i].argmax())}
