"""The networks that learn from each other, side by side in one module."""

import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from fgkd_jax.models.heads import LinearHead, ProjectionHead
from fgkd_jax.typing import Array, Float


class MutualNetworks(nn.Module):
    """Networks with a classifier and a projection each, on a trunk of their own or a shared one.

    The variables of network i are under `networks_<i>`, `classifier<i>` and `projection<i>`; those
    of a shared trunk are under `networks_0`.

    Attributes:
      networks: backbones, of any kinds and widths.
      num_classes: number of logits.
      embedding_size: dimensions of the embeddings.
      shared_stages: leading stages of the first network that all of them share; 0 shares none.
      dropout: rate on the pooled features that are classified.
      linear_projection: whether the projections are one linear layer.
      probe: whether no gradient leaves the classifiers towards the networks.
    """

    networks: tuple[nn.Module, ...]
    num_classes: int
    embedding_size: int = 128
    shared_stages: int = 0
    dropout: float = 0.0
    linear_projection: bool = False
    probe: bool = False

    def setup(self) -> None:
        """Makes the heads."""
        self.classifiers = [
            LinearHead(self.num_classes, dropout=self.dropout, name=f"classifier{i}")
            for i in range(len(self.networks))
        ]
        self.projections = [
            ProjectionHead(
                self.embedding_size, linear=self.linear_projection, name=f"projection{i}"
            )
            for i in range(len(self.networks))
        ]

    def __call__(
        self, x: Float[Array, "b h w 3"], *, train: bool
    ) -> tuple[Float[Array, "n b k"], Float[Array, "n b d"]]:
        """Classifies and embeds.

        Args:
          x: normalised images.
          train: whether dropout and batch statistics are in training mode.

        Returns:
          Logits and embeddings of length one, of every network, float32.
        """
        pooled = self._pooled(x, train=train)
        return self._logits(pooled, train=train), self._embeddings(pooled)

    def embed(self, x: Float[Array, "b h w 3"], *, train: bool) -> Float[Array, "n b d"]:
        """Embeds, without the classifiers.

        Args:
          x: normalised images.
          train: whether batch statistics are in training mode.

        Returns:
          Embeddings of length one, of every network, float32.
        """
        return self._embeddings(self._pooled(x, train=train))

    def classify(self, x: Float[Array, "b h w 3"]) -> Float[Array, "n b k"]:
        """Classifies in evaluation mode, without the projections.

        Args:
          x: normalised images.

        Returns:
          Logits of every network, float32.
        """
        return self._logits(self._pooled(x, train=False), train=False)

    def _embeddings(self, pooled: list[Array]) -> Float[Array, "n b d"]:
        heads = zip(self.projections, pooled, strict=True)
        return jnp.stack([head(one) for head, one in heads])

    def _logits(self, pooled: list[Array], *, train: bool) -> Float[Array, "n b k"]:
        if self.probe:
            pooled = lax.stop_gradient(pooled)
        heads = zip(self.classifiers, pooled, strict=True)
        return jnp.stack([head(one, train=train) for head, one in heads])

    def _pooled(self, x: Array, *, train: bool) -> list[Float[Array, "b c"]]:
        """The mean of the last feature map of every network."""
        if self.shared_stages:
            x = self.networks[0](x, train=train, stop=self.shared_stages)[-1]
        maps = (network(x, train=train, start=self.shared_stages)[-1] for network in self.networks)
        return [jnp.mean(one.astype(jnp.float32), axis=(1, 2)) for one in maps]
