"""What the device does to a batch of images: colour and normalisation.

The host decodes, crops, resizes and flips, and sends uint8. Colour is drawn per example from a key
and the example's stable id, so that it does not depend on the batch an example happens to be in.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from fgkd_jax.errors import UserError
from fgkd_jax.typing import Array, Bool, Float, Int32, Key, UInt8

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# ITU-R BT.601 luma: what Pillow's "L" mode and the usual image libraries call grey.
GREY = (0.299, 0.587, 0.114)


def normalize_image(
    image: UInt8[Array, "b h w c"] | Float[Array, "b h w c"],
    *,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    valid_size: Int32[Array, "b 2"] | None = None,
    dtype: DTypeLike = jnp.float32,
) -> Float[Array, "b h w c"]:
    """Turns grey levels into a network's input.

    y = (image / 255 - mean) / std, computed in float32; 0 outside the valid part.

    The padding is masked after the normalisation, because a zero pixel is not a zero input.

    Args:
      image: grey levels in [0, 255], uint8 or floating.
      mean: per channel, as a fraction of 255.
      std: per channel, as a fraction of 255, above 0.
      valid_size: (rows, columns) from the top left corner that hold the image; the rest is
        padding. None: no padding.
      dtype: of the result.

    Returns:
      The normalised images.

    Raises:
      UserError: mean or std do not have one number per channel, or std is not positive.

    Source:
      The input convention of torchvision's and timm's pretrained networks.

    Example:
      >>> import jax.numpy as jnp
      >>> image = jnp.full((1, 1, 1, 3), 255, jnp.uint8)
      >>> normalize_image(image, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)).ravel()
      Array([1., 1., 1.], dtype=float32)
    """
    channels = image.shape[-1]
    if len(mean) != channels or len(std) != channels:
        raise UserError(
            f"normalize_image: mean {tuple(mean)} and std {tuple(std)} for an image of shape "
            f"{image.shape}; expected {channels} numbers each"
        )
    if not all(s > 0 for s in std):
        raise UserError(f"normalize_image: std {tuple(std)}; expected numbers above 0")
    scale = jnp.asarray([1.0 / (255.0 * s) for s in std], jnp.float32).reshape(1, 1, 1, channels)
    shift = jnp.asarray([m * 255.0 for m in mean], jnp.float32).reshape(1, 1, 1, channels)
    out = (image.astype(jnp.float32) - shift) * scale
    if valid_size is not None:
        out = jnp.where(_valid_pixels(valid_size, image.shape[1:3])[..., None], out, 0.0)
    return out.astype(dtype)


def color_jitter(
    key: Key[Array, ""],
    image: UInt8[Array, "b h w 3"] | Float[Array, "b h w 3"],
    ids: Int32[Array, "b"],
    *,
    brightness: float = 0.0,
    contrast: float = 0.0,
    saturation: float = 0.0,
    valid_size: Int32[Array, "b 2"] | None = None,
) -> Float[Array, "b h w 3"]:
    """Changes brightness, contrast and saturation by random factors of each example's own.

    With f drawn uniformly from [max(0, 1 - strength), 1 + strength], in this order:
    brightness x f; contrast f x + (1 - f) mean(grey(x)); saturation f x + (1 - f) grey(x);
    each clipped to [0, 255]. grey is the BT.601 luma, its mean taken over the valid part.

    Args:
      key: one key for the whole batch, typically of the step; example i uses fold_in(key, ids[i]),
        so its colours depend on the key and its id alone, not on its place in the batch.
      image: RGB in [0, 255], uint8 or floating.
      ids: stable ids of the examples.
      brightness: strength, at least 0; 0 leaves the image exactly as it is. So do the next two.
      contrast: strength, at least 0.
      saturation: strength, at least 0.
      valid_size: (rows, columns) that hold the image, as in `normalize_image`; None: all of it.

    Returns:
      The images in [0, 255], float32 from uint8, otherwise in the dtype of `image`.

    Raises:
      UserError: a strength is negative, infinite or NaN.

    Source:
      torchvision's `ColorJitter`, which draws the order too; ours is fixed.
    """
    strengths = {"brightness": brightness, "contrast": contrast, "saturation": saturation}
    for name, strength in strengths.items():
        if not 0 <= strength < math.inf:
            raise UserError(
                f"color_jitter: {name}={strength}; expected a finite number, at least 0"
            )
    out_dtype = image.dtype if jnp.issubdtype(image.dtype, jnp.floating) else jnp.float32
    x = image.astype(jnp.float32)
    factors = {
        name: _factors(key, ids, index, strength).reshape(-1, 1, 1, 1)
        for index, (name, strength) in enumerate(strengths.items())
        if strength > 0
    }
    if "brightness" in factors:
        x = jnp.clip(x * factors["brightness"], 0.0, 255.0)
    if "contrast" in factors:
        x = _blend(x, _mean_grey(x, valid_size), factors["contrast"])
    if "saturation" in factors:
        x = _blend(x, _grey(x), factors["saturation"])
    return x.astype(out_dtype)


def _factors(key: Array, ids: Array, index: int, strength: float) -> Float[Array, "b"]:
    """One factor per example; `index` keeps the draws of the three kinds apart."""

    def draw(example_id: Array) -> Array:
        example_key = jax.random.fold_in(jax.random.fold_in(key, example_id), index)
        return jax.random.uniform(
            example_key, minval=max(0.0, 1.0 - strength), maxval=1.0 + strength
        )

    return jax.vmap(draw)(ids)


def _blend(x: Array, other: Array, factor: Array) -> Array:
    return jnp.clip(factor * x + (1.0 - factor) * other, 0.0, 255.0)


def _grey(x: Float[Array, "b h w 3"]) -> Float[Array, "b h w 1"]:
    return jnp.sum(x * jnp.asarray(GREY, x.dtype).reshape(1, 1, 1, 3), axis=-1, keepdims=True)


def _mean_grey(x: Array, valid_size: Array | None) -> Float[Array, "b 1 1 1"]:
    if valid_size is None:
        return jnp.mean(_grey(x), axis=(1, 2, 3), keepdims=True)
    valid = _valid_pixels(valid_size, x.shape[1:3])[..., None]
    total = jnp.sum(_grey(x), axis=(1, 2, 3), keepdims=True, where=valid)
    return total / jnp.maximum(1, jnp.sum(valid, axis=(1, 2, 3), keepdims=True))


def _valid_pixels(valid_size: Int32[Array, "b 2"], size: tuple[int, ...]) -> Bool[Array, "b h w"]:
    rows = jnp.arange(size[0])[None, :, None] < valid_size[:, 0, None, None]
    columns = jnp.arange(size[1])[None, None, :] < valid_size[:, 1, None, None]
    return rows & columns
