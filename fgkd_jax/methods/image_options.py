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

    def recolour(self, key: Key[Array, ""], image: Array, ids: Array) -> Float[Array, "b h w 3"]:
        """Changes the colours of images, each by factors of its own.

        Args:
          key: a typed PRNG key.
          image: [b, h, w, 3] in 0..255, uint8 or floating.
          ids: int [b]; images of one id are changed alike under one key.

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
        )

    def normalize(self, image: Array) -> Float[Array, "b h w 3"]:
        """Turns grey levels into a network's input.

        Args:
          image: [b, h, w, 3] in 0..255, uint8 or floating.

        Returns:
          Images less `image_mean`, over `image_std`.
        """
        return normalize_image(image, mean=self.image_mean, std=self.image_std)

    def images(self, batch: Batch, key: Key[Array, ""], *, train: bool) -> Float[Array, "b h w 3"]:
        """Normalises the images of a batch, in training after a change of colours.

        Args:
          batch: `image` uint8 [b, h, w, 3] and, in training, `id` int [b].
          key: a typed PRNG key.
          train: whether to change colours.

        Returns:
          What a network sees.
        """
        image: jax.Array = batch["image"]
        if train:
            image = self.recolour(key, image, batch["id"])
        return self.normalize(image)
