"""Pictures of what a method looks at or finds: samples, blocks, objects."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np

from fgkd_jax.errors import UserError
from fgkd_jax.evaluation import FoundBoxes

MIN_SIDE, MAX_SIDE = 512, 4096
"""Pictures with lines or maps on them are enlarged until the shorter side has at least so many
pixels, or the longer one would have more than so many."""

LINES = 32
"""Most sampling lines that are drawn along an axis."""

YELLOW, WHITE = (255, 220, 0), (255, 255, 255)

LINE = 20
"""Height of a line of text, in pixels."""

LEAST_WEIGHT = 0.005
"""Of a phrase that is written beside a picture; less would be written as 0.00."""


def attention_overlay(image: np.ndarray, attention: np.ndarray) -> np.ndarray:
    """Lays an attention map over its image.

    Args:
      image: uint8 [h, w, 3], RGB.
      attention: [ah, aw]; scaled so that its largest entry is the brightest, and 0 (or less) dark.

    Returns:
      uint8 [H, W, 3], RGB: half image, half map, enlarged as `MIN_SIDE` says.
    """
    picture = _enlarged(image)
    positive = np.maximum(np.nan_to_num(attention.astype(np.float32)), 0.0)
    top = float(positive.max())
    scaled = np.round(positive * (255 / top if top > 0 else 0.0)).astype(np.uint8)
    height, width = picture.shape[:2]
    smooth = cv2.resize(scaled, (width, height), interpolation=cv2.INTER_LINEAR)
    colours = cv2.cvtColor(cv2.applyColorMap(smooth, cv2.COLORMAP_INFERNO), cv2.COLOR_BGR2RGB)
    return cv2.addWeighted(picture, 0.5, colours, 0.5, 0.0)


def sampling_grid(image: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Draws the rows and columns that are sampled on the image.

    Args:
      image: uint8 [h, w, 3], RGB.
      rows: [oh], in pixels of the image; 0 is the centre of the first row.
      columns: [ow], likewise. Of more than `LINES` each, evenly chosen ones are drawn.

    Returns:
      uint8 [H, W, 3], RGB, enlarged as `MIN_SIDE` says.
    """
    picture = _enlarged(image)
    for axis, positions in enumerate((rows, columns)):
        scale = picture.shape[axis] / image.shape[axis]
        step = -(-len(positions) // LINES)
        lines = np.round((positions[step // 2 :: step] + 0.5) * scale - 0.5).astype(int)
        lines = np.clip(lines, 0, picture.shape[axis] - 1)
        if axis == 0:
            picture[lines, :] = YELLOW
        else:
            picture[:, lines] = YELLOW
    return picture


def located_blocks(image: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Frames the blocks that the stages located, with the stages' numbers, and darkens the rest.

    Args:
      image: uint8 [h, w, 3], RGB.
      boxes: [s, 4], (x_min, y_min, x_max, y_max) as shares of the image; an empty one is left out.

    Returns:
      uint8 [H, W, 3], RGB, enlarged as `MIN_SIDE` says.
    """
    bright = _enlarged(image)
    picture = bright // 2
    height, width = picture.shape[:2]
    corners = np.round(boxes * np.array([width, height, width, height])).astype(int)
    for x0, y0, x1, y1 in corners:
        picture[y0:y1, x0:x1] = bright[y0:y1, x0:x1]
    for stage, (x0, y0, x1, y1) in enumerate(corners.tolist(), start=1):
        if x1 > x0 and y1 > y0:
            cv2.rectangle(picture, (x0, y0), (x1 - 1, y1 - 1), YELLOW, 2)
            place = (x0 + 6, y0 + 24)
            cv2.putText(picture, str(stage), place, cv2.FONT_HERSHEY_SIMPLEX, 0.7, YELLOW, 2)
    return picture


def beside_phrases(picture: np.ndarray, phrases: Sequence[Mapping[str, float]]) -> np.ndarray:
    """Writes beside a picture what each stage attends to in a text, with the weights.

    Args:
      picture: uint8 [h, w, 3], RGB.
      phrases: of each stage, the weight of each phrase; those of almost no weight, masked ones
        among them, are left out.

    Returns:
      uint8 [H, W, 3], RGB: the picture, and to its right a stage under the other; H is more than h
      only where the lines need it.
    """
    lines: list[tuple[str, tuple[int, int, int]]] = []
    for stage, weights in enumerate(phrases, start=1):
        lines += [("", WHITE)] if lines else []
        lines.append((f"stage {stage}", YELLOW))
        read = sorted(weights.items(), key=lambda one: -one[1])
        told = [(f"{w:.2f} {_ascii(phrase)}", WHITE) for phrase, w in read if w >= LEAST_WEIGHT]
        lines += told or [("nothing", WHITE)]
    font, size = cv2.FONT_HERSHEY_SIMPLEX, 0.5
    widest = max((cv2.getTextSize(text, font, size, 1)[0][0] for text, _ in lines), default=0)
    height = max(picture.shape[0], LINE * (len(lines) + 1))
    both = np.zeros((height, picture.shape[1] + widest + LINE, 3), np.uint8)
    both[: picture.shape[0], : picture.shape[1]] = picture
    for row, (text, colour) in enumerate(lines, start=1):
        cv2.putText(both, text, (picture.shape[1] + LINE // 2, LINE * row), font, size, colour, 1)
    return both


def framed_objects(image: np.ndarray, found: FoundBoxes, *, names: Sequence[str]) -> np.ndarray:
    """Frames objects, with class and score, in a colour for each class; the surest on top.

    Args:
      image: uint8 [h, w, 3], RGB.
      found: in pixels of the image.
      names: of the classes.

    Returns:
      uint8 [H, W, 3], RGB, enlarged as `MIN_SIDE` says.
    """
    picture = _enlarged(image)
    factor = picture.shape[0] / image.shape[0]
    for place in np.argsort(found.scores, kind="stable"):
        label = int(found.labels[place])
        colour = _class_colour(label)
        x0, y0, x1, y1 = np.round(found.boxes[place] * factor).astype(int).tolist()
        cv2.rectangle(picture, (x0, y0), (max(x0, x1 - 1), max(y0, y1 - 1)), colour, 2)
        text = f"{_ascii(names[label])} {found.scores[place]:.2f}"
        (width, height), base = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, 0.5, 1)
        top = max(0, y0 - height - base)
        cv2.rectangle(picture, (x0, top), (x0 + width, top + height + base), colour, cv2.FILLED)
        corner = (x0, top + height + base // 2)
        cv2.putText(picture, text, corner, cv2.FONT_HERSHEY_SIMPLEX, 0.5, (0, 0, 0), 1)
    return picture


def _class_colour(label: int) -> tuple[int, int, int]:
    """Bright, and far from the colours of the labels next to it."""
    golden_angle = 137.5
    hue = np.uint8(label * golden_angle % 360 / 2)  # OpenCV halves hues, to fit into a byte
    hsv = np.array([[[hue, 180, 255]]], np.uint8)
    red, green, blue = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)[0, 0].tolist()
    return red, green, blue


def _ascii(name: str) -> str:
    """The name as OpenCV's font can write it."""
    return name.encode("ascii", "replace").decode()


def draw(
    image: np.ndarray,
    explained: Mapping[str, np.ndarray],
    phrases: Sequence[Mapping[str, float]] = (),
) -> dict[str, np.ndarray]:
    """Draws everything that a method's `explain` tells of one image.

    Args:
      image: uint8 [h, w, 3], what the network read.
      explained: `located_box` of a method that locates blocks; or else `attention`, `structure`,
        `detail`, `sampled_rows` and `sampled_columns` of one that samples.
      phrases: of a method that locates blocks and reads a text: for each stage, the weight of each
        phrase, to be written beside the blocks.

    Returns:
      Pictures, uint8 [H, W, 3], by name: `blocks`; or `attention`, `grid`, `structure`, `detail`.
    """
    if "located_box" in explained:
        blocks = located_blocks(image, explained["located_box"])
        return {"blocks": beside_phrases(blocks, phrases) if phrases else blocks}
    return {
        "attention": attention_overlay(image, explained["attention"]),
        "grid": sampling_grid(image, explained["sampled_rows"], explained["sampled_columns"]),
        **{name: _grey_levels(explained[name]) for name in ("structure", "detail")},
    }


def write(folder: Path, name: str, pictures: Mapping[str, np.ndarray]) -> list[Path]:
    """Writes pictures as PNG files, in place of earlier ones of the same name.

    Args:
      folder: where to; made if missing.
      name: what the files' names begin with.
      pictures: uint8 [H, W, 3], RGB, by what they show.

    Returns:
      The files, `<folder>/<name>.<what>.png`.

    Raises:
      UserError: the folder cannot be written to.
    """
    written = []
    for what, picture in pictures.items():
        path = folder / f"{name}.{what}.png"
        write_file(path, picture)
        written.append(path)
    return written


def write_file(path: Path, picture: np.ndarray) -> None:
    """Writes a picture as a PNG file, in place of an earlier one.

    Args:
      path: the file; its folder is made if missing.
      picture: uint8 [H, W, 3], RGB.

    Raises:
      UserError: it cannot be written.
    """
    height, width = picture.shape[:2]
    try:
        written, encoded = cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    except cv2.error:
        written = False
    if not written:
        raise UserError(f"picture {path} of {width} x {height} pixels cannot be written as PNG")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded.tobytes())
    except OSError as error:
        raise UserError(f"picture {path} cannot be written: {error.strerror}") from error


def unique_names(paths: Sequence[str]) -> list[str]:
    """Names files after their images, with a number where two images have the same name.

    Args:
      paths: image files.

    Returns:
      One name per image, all different.
    """
    taken: set[str] = set()
    names = []
    for path in paths:
        stem, count = Path(path).stem, 1
        name = stem
        while name in taken:
            count += 1
            name = f"{stem}-{count}"
        taken.add(name)
        names.append(name)
    return names


def _enlarged(image: np.ndarray) -> np.ndarray:
    short, long = sorted(image.shape[:2])
    factor = max(1, min(-(-MIN_SIDE // short), MAX_SIDE // long))
    return np.repeat(np.repeat(image, factor, axis=0), factor, axis=1)


def _grey_levels(image: np.ndarray) -> np.ndarray:
    return np.clip(np.round(image), 0, 255).astype(np.uint8)
