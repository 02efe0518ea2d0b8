"""Encoded bytes to pixels, and the one resize rule of the library. OpenCV does the work."""

import functools
import io

import cv2
import numpy as np
from PIL import Image

from fgkd_jax.data.base import CorruptImageError

_EXIF_ORIENTATION = 0x0112
_JPEG_SOI, _JPEG_EOI = b"\xff\xd8", b"\xff\xd9"
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


@functools.cache
def configure_opencv() -> None:
    """Sets OpenCV up for a process that decodes in many threads, once per process.

    OpenCV's own threads would compete with the pipeline's, and its log would repeat on standard
    error what the pipeline reports about a broken file by name.
    """
    cv2.setNumThreads(0)
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


def decode(data: bytes | np.ndarray, name: str) -> np.ndarray:
    """Decodes an image to RGB.

    Greyscale becomes three equal channels, CMYK is converted, 16 bits are reduced to 8, and an
    alpha channel is dropped without blending. The orientation tag of EXIF is honoured: the array
    is upright as a viewer shows the photograph.

    A truncated file counts as corrupt, for OpenCV 4 fills what is missing of a JPEG with grey and
    says nothing. Damage inside a JPEG's data that leaves its markers whole is not noticed.

    Args:
      data: a file's bytes (JPEG, PNG, WebP, BMP, GIF, TIFF), or an array [h, w] or [h, w, c] of
        uint8 or uint16 with 1, 3 (RGB) or 4 (RGBA) channels.
      name: what to call the image in an error.

    Returns:
      uint8[h, w, 3], RGB.

    Raises:
      CorruptImageError: the data are empty, truncated or no image.
    """
    if isinstance(data, np.ndarray):
        return _array_to_rgb(data, name)
    reason = _truncation(data)
    if reason:
        raise CorruptImageError(name, reason)
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error as error:
        raise CorruptImageError(name, f"cannot be decoded ({error.err})") from None
    if image is None:
        raise CorruptImageError(name, f"cannot be decoded ({len(data)} bytes, {_kind(data)})")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def image_size(data: bytes | np.ndarray) -> tuple[int, int]:
    """Reads the size of an image from its header, without decoding it.

    Args:
      data: a file's bytes, or an array [h, w, ...].

    Returns:
      (height, width) that `decode` would give it, the orientation tag included.

    Raises:
      OSError: the header is no image's.
    """
    if isinstance(data, np.ndarray):
        return data.shape[0], data.shape[1]
    with Image.open(io.BytesIO(data)) as image:
        width, height = image.size
        turned = image.getexif().get(_EXIF_ORIENTATION, 1) >= 5
    return (width, height) if turned else (height, width)


def resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resizes by the half-pixel rule: pixel i of n covers [i, i + 1) / n of the axis.

    An axis that shrinks is averaged over the pixels each output pixel covers (`INTER_AREA`); an
    axis that grows is interpolated linearly (`INTER_LINEAR`). Where one shrinks and the other
    grows, the shrinking comes first. An axis that keeps its length is left as it is.

    Args:
      image: uint8[h, w] or uint8[h, w, c].
      size: (height, width) to give it.

    Returns:
      uint8 of the same rank, height and width as asked.
    """
    height, width = image.shape[:2]
    smaller = (min(height, size[0]), min(width, size[1]))
    if smaller != (height, width):
        image = cv2.resize(image, smaller[::-1], interpolation=cv2.INTER_AREA)
    if smaller != tuple(size):
        image = cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)
    return image


def resize_mask(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resizes a mask to the nearest pixel by the half-pixel rule, so no new values appear.

    Args:
      mask: uint8[h, w].
      size: (height, width) to give it.

    Returns:
      uint8[height, width].
    """
    if mask.shape == tuple(size):
        return mask
    return cv2.resize(mask, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT)


def _array_to_rgb(image: np.ndarray, name: str) -> np.ndarray:
    """Brings an array that is already an image to uint8[h, w, 3]."""
    if image.dtype == np.uint16:
        image = (image >> 8).astype(np.uint8)
    if image.ndim == 2:
        image = image[..., None]
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in (1, 3, 4):
        found = f"{image.dtype}{list(image.shape)}"
        raise CorruptImageError(name, f"is {found}; expected uint8[h, w] or uint8[h, w, 1|3|4]")
    if 0 in image.shape:
        raise CorruptImageError(name, f"is empty, {list(image.shape)}")
    return np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image[..., :3]


def _kind(data: bytes) -> str:
    """Names a format by its first bytes."""
    if data.startswith(_JPEG_SOI):
        return "JPEG"
    if data.startswith(_PNG_SIGNATURE):
        return "PNG"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WebP"
    if data[:4] == b"GIF8":
        return "GIF"
    return "of no format known here"


def _truncation(data: bytes) -> str:
    """Says what shows that a file was cut short, or nothing."""
    if not data:
        return "is empty"
    kind = _kind(data)
    if kind == "JPEG" and not _jpeg_ends(data):
        return "is truncated (JPEG without end-of-image marker)"
    if kind == "PNG" and b"IEND" not in data[-64:] and b"IEND\xaeB`\x82" not in data:
        return "is truncated (PNG without IEND chunk)"
    if kind == "WebP" and len(data) < 8 + int.from_bytes(data[4:8], "little"):
        return f"is truncated (WebP with {len(data)} bytes, fewer than its header says)"
    return ""


def _jpeg_ends(data: bytes) -> bool:
    """Whether the markers of a JPEG lead to its end-of-image marker.

    Walking them is needed only for files with something after the image. Searching for the marker
    anywhere would be satisfied by that of a thumbnail.
    """
    if data.rstrip(b"\0").endswith(_JPEG_EOI):
        return True
    position = 2
    while 0 <= position < len(data) - 1:
        marker = data[position + 1]
        if data[position] != 0xFF or marker == 0xFF:  # entropy-coded data, or a fill byte
            position = data.find(b"\xff", position + 1)
        elif marker == 0xD9:
            return True
        elif marker in (0x00, 0x01) or 0xD0 <= marker <= 0xD8:  # stuffed byte, or no length
            position = data.find(b"\xff", position + 2)
        else:
            position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return False
