"""The networks of PMA: one with images, with or without a text; one of texts alone."""

import jax.numpy as jnp
from flax import linen as nn

from fgkd_jax.models.heads import LinearHead
from fgkd_jax.models.phrases import PhraseEncoder, PhrasePooling
from fgkd_jax.models.progressive_attention import ProgressiveAttention, ProgressiveStages
from fgkd_jax.typing import Array, Float, Int

Text = tuple[Int[Array, "b p t"], Int[Array, "b p"]]
"""Phrases as numbers of words, and how many words each has; 0 where there is no phrase."""


class PMANetwork(nn.Module):
    """Backbone, progressive mask attention, one linear layer.

    Attributes:
      backbone: maps images to a tuple of feature maps, one per stage.
      attention: attends to the last of them, and to phrases.
      num_classes: number of logits.
      encoder: embeds phrases; None for a network of images alone.
      dropout: rate on F.
    """

    backbone: nn.Module
    attention: ProgressiveAttention
    num_classes: int
    encoder: PhraseEncoder | None = None
    dropout: float = 0.0

    def setup(self) -> None:
        """Makes the classifier."""
        self.classifier = LinearHead(self.num_classes, dropout=self.dropout)

    def __call__(
        self, images: Float[Array, "b h w 3"], text: Text | None = None, *, train: bool
    ) -> tuple[Float[Array, "b k"], ProgressiveStages]:
        """Computes the logits.

        Args:
          images: normalised images.
          text: phrases, for a network with an encoder.
          train: whether dropout and batch statistics are in training mode.

        Returns:
          float32 logits, and what the stages did.
        """
        return self.attend(self.look(images, train=train), text, train=train)

    def look(self, images: Float[Array, "b h w 3"], *, train: bool) -> Float[Array, "b oh ow c"]:
        """Runs the backbone.

        Args:
          images: normalised images.
          train: whether batch statistics are in training mode.

        Returns:
          The last feature map.
        """
        return self.backbone(images, train=train)[-1]

    def attend(
        self, maps: Float[Array, "b h w c"], text: Text | None = None, *, train: bool
    ) -> tuple[Float[Array, "b k"], ProgressiveStages]:
        """Runs what follows the backbone.

        Args:
          maps: the last feature map.
          text: phrases, for a network with an encoder.
          train: whether dropout is in training mode.

        Returns:
          float32 logits, and what the stages did.
        """
        embedded = None
        if self.encoder is not None and text is not None:
            embedded = (self.encoder(*text), text[1] > 0)
        features, stages = self.attention(maps, embedded)
        return self.classifier(features, train=train), stages


class TextNetwork(nn.Module):
    """Phrases, pooled by their own scores, and one linear layer.

    Attributes:
      encoder: embeds phrases.
      pooling: weighs them.
      num_classes: number of logits.
      dropout: rate on the pooled features.
    """

    encoder: PhraseEncoder
    pooling: PhrasePooling
    num_classes: int
    dropout: float = 0.0

    @nn.compact
    def __call__(
        self, text: Text, *, train: bool
    ) -> tuple[Float[Array, "b k"], Float[Array, "b p"]]:
        """Computes the logits.

        Args:
          text: phrases.
          train: whether dropout is in training mode.

        Returns:
          float32 logits, and the phrases' weights.
        """
        pooled, weights = self.pooling(self.encoder(*text), text[1] > 0)
        head = LinearHead(self.num_classes, dropout=self.dropout, name="classifier")
        return head(pooled, train=train), weights


def no_text(batch_size: int) -> Text:
    """Returns texts without a phrase.

    Args:
      batch_size: b.

    Returns:
      One place for a phrase each, empty.
    """
    return jnp.zeros((batch_size, 1, 1), jnp.int32), jnp.zeros((batch_size, 1), jnp.int32)
