import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fgkd_jax.data.base import CorruptImageError
from fgkd_jax.data.images import decode, image_size, resize, resize_mask


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF"])
def test_lossless_formats_give_the_pixels_back_in_rgb_order(pixels, encode, kind):
    image = pixels(1, 20, 30)
    np.testing.assert_array_equal(decode(encode(image, kind), "x"), image)


@pytest.mark.parametrize(
    ("kind", "options"), [("JPEG", {"quality": 95}), ("WEBP", {"quality": 95})]
)
def test_lossy_formats_come_close(pixels, encode, kind, options):
    image = pixels(1, 40, 60)
    decoded = decode(encode(image, kind, **options), "x")
    assert np.abs(decoded.astype(int) - image).mean() < 4


def test_cmyk_is_converted(pixels, encode):
    image = pixels(2, 40, 60)
    decoded = decode(encode(image, mode="CMYK", quality=95), "x")
    assert decoded.shape == image.shape
    assert np.abs(decoded.astype(int) - image).mean() < 6


def test_greyscale_palette_and_16_bits_become_rgb(pixels, encode):
    image = pixels(3, 20, 30)
    grey = decode(encode(image, "PNG", mode="L"), "x")
    assert grey.shape == (20, 30, 3)
    assert (grey == grey[..., :1]).all()
    assert decode(encode(image, "PNG", mode="P"), "x").shape == (20, 30, 3)
    deep = decode(encode(image[..., 0].astype(np.uint16) * 257, "PNG"), "x")
    np.testing.assert_array_equal(deep, np.repeat(image[..., :1], 3, axis=2))


def test_alpha_is_dropped_without_blending(pixels, encode):
    image = pixels(4, 20, 30)
    transparent = np.dstack([image, np.zeros((20, 30), np.uint8)])
    np.testing.assert_array_equal(decode(encode(transparent, "PNG"), "x"), image)


def test_orientation_tag_is_honoured_and_size_agrees(pixels, encode):
    image = pixels(5, 20, 30)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: the top of the scene is on the right
    data = encode(image, quality=95, exif=exif)
    decoded = decode(data, "x")
    assert decoded.shape == (30, 20, 3)
    assert np.abs(decoded.astype(int) - np.rot90(image, -1)).mean() < 4
    assert image_size(data) == (30, 20)
    assert image_size(encode(image)) == image_size(image) == (20, 30)


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("keep", [0.999, 0.6, 0.1])
def test_truncated_jpeg_is_corrupt(pixels, encode, progressive, keep):
    data = encode(pixels(6, 200, 300), progressive=progressive)
    with pytest.raises(CorruptImageError, match=r"image bird\.jpg: is truncated"):
        decode(data[: int(len(data) * keep)], "bird.jpg")


def test_truncated_jpeg_with_a_whole_thumbnail_is_corrupt(pixels, encode):
    thumbnail = encode(pixels(6, 12, 16))
    segment = b"\xff\xe1" + (len(thumbnail) + 2).to_bytes(2, "big") + thumbnail
    data = encode(pixels(6, 200, 300))
    data = data[:2] + segment + data[2:]
    assert decode(data, "x").shape == (200, 300, 3)
    with pytest.raises(CorruptImageError, match="truncated"):
        decode(data[:-1000], "x")


@pytest.mark.parametrize("tail", [b"\0\0\0", b"anything at all", b"\xff\xd8\xff"])
def test_bytes_after_a_whole_jpeg_do_no_harm(pixels, encode, tail):
    data = encode(pixels(6, 50, 60), progressive=True)
    np.testing.assert_array_equal(decode(data + tail, "x"), decode(data, "x"))


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_other_truncated_files_are_corrupt(pixels, encode, kind):
    data = encode(pixels(7, 80, 90), kind)
    with pytest.raises(CorruptImageError, match=r"image a\.x:"):
        decode(data[: len(data) // 2], "a.x")


@pytest.mark.parametrize("data", [b"", b"no image", b"\xff\xd8\xff\xd9", b"\x89PNG\r\n\x1a\nIEND"])
def test_what_is_no_image_is_corrupt(data):
    with pytest.raises(CorruptImageError, match=r"image notes\.txt: "):
        decode(data, "notes.txt")


def test_arrays_are_brought_to_three_channels():
    grey = np.arange(6, dtype=np.uint8).reshape(2, 3)
    for array in (grey, grey[..., None], grey.astype(np.uint16) << 8):
        np.testing.assert_array_equal(decode(array, "x"), np.stack([grey] * 3, -1))
    assert decode(np.zeros((2, 3, 4), np.uint8), "x").shape == (2, 3, 3)
    for bad in (np.zeros((2, 3, 2), np.uint8), np.zeros((2, 3, 3)), np.zeros((0, 3, 3), np.uint8)):
        with pytest.raises(CorruptImageError):
            decode(bad, "x")


def _half_pixel(line: np.ndarray, size: int) -> np.ndarray:
    """The resize rule along one axis, written down plainly."""
    n = len(line)
    if size >= n:
        x = np.clip((np.arange(size) + 0.5) * n / size - 0.5, 0, n - 1)
        low = np.floor(x).astype(int)
        return line[low] + (line[np.minimum(low + 1, n - 1)] - line[low]) * (x - low)
    edges = np.arange(size + 1) * n / size
    mass = np.concatenate([[0], np.cumsum(line)])
    at = np.interp(edges, np.arange(n + 1), mass)
    return np.diff(at) * size / n


@settings(max_examples=40, deadline=None)
@given(*[st.integers(1, 40)] * 4, st.integers(0, 1000))
def test_resize_follows_the_stated_rule(h, w, oh, ow, seed):
    image = np.random.default_rng(seed).integers(0, 256, (h, w, 3), dtype=np.uint8)
    expected = image.astype(float)
    # Shrinking comes first, so that the order of the axes makes no difference.
    for axis, size in sorted([(0, oh), (1, ow)], key=lambda a: a[1] >= image.shape[a[0]]):
        expected = np.apply_along_axis(_half_pixel, axis, expected, size)
    out = resize(image, (oh, ow))
    assert out.dtype == np.uint8
    assert out.shape == (oh, ow, 3)
    assert np.abs(out - expected).max() < 2.1  # OpenCV rounds after each of the two passes


@settings(max_examples=30, deadline=None)
@given(*[st.integers(1, 60)] * 4, st.integers(0, 255))
def test_resizing_a_constant_image_changes_nothing(h, w, oh, ow, value):
    assert (resize(np.full((h, w, 3), value, np.uint8), (oh, ow)) == value).all()


def test_shrinking_averages_and_growing_interpolates():
    stripes = np.tile(np.array([0, 200], np.uint8), (4, 4))
    assert (resize(stripes, (2, 4)) == 100).all()  # INTER_LINEAR would keep the stripes
    np.testing.assert_array_equal(
        resize(np.array([[0, 100]], np.uint8), (1, 4)), [[0, 25, 75, 100]]
    )


def test_masks_get_no_new_values():
    mask = np.array([[0, 1], [2, 3]], np.uint8)
    np.testing.assert_array_equal(
        resize_mask(mask, (4, 4)), np.kron(mask, np.ones((2, 2), np.uint8))
    )
    assert set(np.unique(resize_mask(mask, (7, 5)))) <= {0, 1, 2, 3}


def test_decoding_leaves_opencv_single_threaded():
    from fgkd_jax.data.images import configure_opencv

    configure_opencv()
    assert cv2.getNumThreads() == 1
