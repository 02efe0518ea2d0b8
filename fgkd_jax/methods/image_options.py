"""What methods do to the images of a batch on the device, and the options that say so."""

import dataclasses

import jax

from fgkd_jax.ops.preprocess import IMAGENET_MEAN, IMAGENET_STD, color_jitter, normalize_image
from fgkd_jax.typing import Array, Batch, Float, Key


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageOptions:
    """Options of colour and normalisation, which every method on images has.

    Attributes:
      image_mean: per channel, subtracted from images in 0..1.
      image_std: per channel, divides after the mean is subtracted.
      brightness: strength of the colour jitter on the device, 0 for none.
      contrast: likewise.
      saturation: likewise.
    """

    image_mean: tuple[float, float, float] = IMAGENET_MEAN
    image_std: tuple[float, float, float] = IMAGENET_STD
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0

    def recolour(
        self, key: Key[Array, ""], image: Array, ids: Array, *, valid_size: Array | None = None
    ) -> Float[Array, "b h w 3"]:
        """Changes the colours of images, each by factors of its own.

        Args:
          key: a typed PRNG key.
          image: [b, h, w, 3] in 0..255, uint8 or floating.
          ids: int [b]; images of one id are changed alike under one key.
          valid_size: int [b, 2], rows and columns that hold an image; None for all.

        Returns:
          Images in 0..255.
        """
        return color_jitter(
            key,
            image,
            ids,
            brightness=self.brightness,
            contrast=self.contrast,
            saturation=self.saturation,
            valid_size=valid_size,
        )

    def normalize(
        self, image: Array, *, valid_size: Array | None = None
    ) -> Float[Array, "b h w 3"]:
        """Turns grey levels into a network's input.

        Args:
          image: [b, h, w, 3] in 0..255, uint8 or floating.
          valid_size: int [b, 2], rows and columns that hold an image; None for all.

        Returns:
          Images less `image_mean`, over `image_std`; 0 beside the image.
        """
        return normalize_image(
            image, mean=self.image_mean, std=self.image_std, valid_size=valid_size
        )

    def images(self, batch: Batch, key: Key[Array, ""], *, train: bool) -> Float[Array, "b h w 3"]:
        """Normalises the images of a batch, in training after a change of colours.

        Args:
          batch: `image` uint8 [b, h, w, 3]; in training, `id` int [b]; where images are padded,
            `valid_size` int [b, 2].
          key: a typed PRNG key.
          train: whether to change colours.

        Returns:
          What a network sees.
        """
        image: jax.Array = batch["image"]
        valid_size = batch.get("valid_size")
        if train:
            image = self.recolour(key, image, batch["id"], valid_size=valid_size)
        return self.normalize(image, valid_size=valid_size)
