"""The networks of TASN (`fgkd_jax.methods.tasn`)."""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from fgkd_jax.models.attention_head import AttentionHead
from fgkd_jax.models.heads import LinearHead
from fgkd_jax.typing import Array, Float


class TASNNetwork(nn.Module):
    """The attention net, the network that part and master share, and all classifiers.

    Attributes:
      attention_backbone: of the attention net; its last map is what attention is read from.
      backbone: shared by part and master.
      num_classes: number of logits.
      attention_stages: stages of the attention net's backbone that are run; 0 for all.
      dilated_head: whether the attention net ends with an `AttentionHead`.
      attention_bias: whether that head has biases.
      dropout: rate on the pooled features of part and master.
    """

    attention_backbone: nn.Module
    backbone: nn.Module
    num_classes: int
    attention_stages: int = 0
    dilated_head: bool = True
    attention_bias: bool = False
    dropout: float = 0.0

    def setup(self) -> None:
        """Makes the heads."""
        if self.dilated_head:
            self.attention_head = AttentionHead(use_bias=self.attention_bias)
        self.attention_classifier = LinearHead(self.num_classes)
        self.part_classifier = LinearHead(self.num_classes, dropout=self.dropout)
        self.master_classifier = LinearHead(self.num_classes, dropout=self.dropout)
        self.auxiliary_classifier = LinearHead(self.num_classes, dropout=self.dropout)

    def attend(
        self, x: Float[Array, "b h w 3"], *, train: bool
    ) -> tuple[Float[Array, "b k"], Float[Array, "b ah aw c"]]:
        """Runs the attention net.

        Args:
          x: small normalised images.
          train: whether batch statistics are in training mode.

        Returns:
          Its logits, and the feature map that attention is read from.
        """
        stop = self.attention_stages or None
        features = self.attention_backbone(x, train=train, stop=stop)[-1]
        if self.dilated_head:
            features = self.attention_head(features)
        return self.attention_classifier(features, train=train), features

    def classify_views(
        self, views: Float[Array, "b two h w 3"], *, train: bool
    ) -> dict[str, Float[Array, "b k"]]:
        """Runs part and master in one pass of the shared network.

        The two views of an example lie next to each other in the batch of twice the size, so that
        sharding and groups of batch norms keep whole examples.

        Args:
          views: normalised (detail, structure) pairs.
          train: whether dropout and batch statistics are in training mode.

        Returns:
          Logits `part`, `master`, `part_auxiliary` and `master_auxiliary`.
        """
        count = views.shape[0]
        features = self.backbone(views.reshape(2 * count, *views.shape[2:]), train=train)[-1]
        pooled = jnp.mean(features.astype(jnp.float32), axis=(1, 2))
        both = pooled.reshape(count, 2, -1)
        auxiliary = self.auxiliary_classifier(pooled, train=train).reshape(count, 2, -1)
        return {
            "part": self.part_classifier(both[:, 0], train=train),
            "master": self.master_classifier(both[:, 1], train=train),
            "part_auxiliary": auxiliary[:, 0],
            "master_auxiliary": auxiliary[:, 1],
        }

    def classify_structure(self, view: Float[Array, "b h w 3"]) -> Float[Array, "b k"]:
        """Runs the master alone, in evaluation mode.

        Args:
          view: normalised structure images.

        Returns:
          The master's logits.
        """
        return self.master_classifier(self.backbone(view, train=False)[-1], train=False)

    def __call__(self, small: Array, views: Array) -> Any:
        """Runs everything once, to initialise it.

        Args:
          small: input of `attend`.
          views: input of `classify_views`.

        Returns:
          The logits of both.
        """
        return self.attend(small, train=False)[0], self.classify_views(views, train=False)
