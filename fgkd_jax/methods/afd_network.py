"""Networks that hand out their last feature maps, and the discriminators of these."""

from collections.abc import Sequence

import jax.numpy as jnp
from flax import linen as nn

from fgkd_jax.models.discriminator import FeatureDiscriminator
from fgkd_jax.models.heads import LinearHead
from fgkd_jax.typing import Array, Float


class ChannelAdapter(nn.Module):
    """Brings a feature map to a number of channels; one that has them stays as it is."""

    @nn.compact
    def __call__(self, x: Float[Array, "b h w _"], *, channels: int) -> Float[Array, "b h w c"]:
        """Adapts a map.

        Args:
          x: feature maps.
          channels: of the result.

        Returns:
          Feature maps; a 1 x 1 convolution in float32 where the channels differ.
        """
        if x.shape[-1] == channels:
            return x
        return nn.Conv(channels, (1, 1), dtype=jnp.float32, name="conv")(x)


class AdversarialNetworks(nn.Module):
    """Networks with a classifier and a discriminator each.

    The variables of network i are under `networks_<i>`, `classifier<i>`, `discriminator<i>` and,
    where its maps are brought to other channels, `adapter<i>`.

    Attributes:
      networks: backbones, of any kinds and widths.
      num_classes: number of logits.
      map_channels: channels of the maps that are compared; 0 takes those of the first network.
      discriminator_features: channels inside a discriminator.
    """

    networks: tuple[nn.Module, ...]
    num_classes: int
    map_channels: int = 0
    discriminator_features: int = 128

    def setup(self) -> None:
        """Makes heads, adapters and discriminators."""
        self.classifiers = [
            LinearHead(self.num_classes, name=f"classifier{i}") for i in range(len(self.networks))
        ]
        self.adapters = [ChannelAdapter(name=f"adapter{i}") for i in range(len(self.networks))]
        self.discriminators = [
            FeatureDiscriminator(self.discriminator_features, name=f"discriminator{i}")
            for i in range(len(self.networks))
        ]

    def __call__(
        self, x: Float[Array, "b h w 3"], *, train: bool
    ) -> tuple[Float[Array, "n b k"], tuple[Float[Array, "b _ _ c"], ...]]:
        """Classifies, and hands out what the discriminators look at.

        Args:
          x: normalised images.
          train: whether batch statistics are in training mode.

        Returns:
          Logits of every network, float32, and its last map, of the same channels for all.
        """
        maps = [network(x, train=train)[-1] for network in self.networks]
        channels = self.map_channels or maps[0].shape[-1]
        adapted = tuple(
            adapter(one, channels=channels)
            for adapter, one in zip(self.adapters, maps, strict=True)
        )
        return self._logits(maps, train=train), adapted

    def score(self, maps: Sequence[Float[Array, "b _ _ c"]]) -> Float[Array, "n b"]:
        """Runs every discriminator.

        Args:
          maps: for each of them.

        Returns:
          Scores in (0, 1).
        """
        pairs = zip(self.discriminators, maps, strict=True)
        return jnp.stack([discriminator(one) for discriminator, one in pairs])

    def classify(self, x: Float[Array, "b h w 3"]) -> Float[Array, "n b k"]:
        """Classifies in evaluation mode.

        Args:
          x: normalised images.

        Returns:
          Logits of every network, float32.
        """
        return self._logits([one(x, train=False)[-1] for one in self.networks], train=False)

    def everything(self, x: Float[Array, "b h w 3"]) -> Float[Array, "n b"]:
        """Runs all modules once, to initialise them.

        Args:
          x: normalised images.

        Returns:
          The scores of the networks' own maps.
        """
        return self.score(self(x, train=False)[1])

    def _logits(self, maps: Sequence[Array], *, train: bool) -> Float[Array, "n b k"]:
        heads = zip(self.classifiers, maps, strict=True)
        return jnp.stack([head(one, train=train) for head, one in heads])
