"""Phrases of a text: their embedding by an LSTM, and one vector for all of them."""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from fgkd_jax.models.attention_scores import AttentionScore
from fgkd_jax.ops.masking import masked_softmax
from fgkd_jax.typing import Array, Bool, Float, Int


class PhraseEncoder(nn.Module):
    """z = the state of an LSTM after the last word of a phrase, words embedded by a table.

    Song et al., TIP 2020, who give no sizes. A vocabulary of descriptions has a few thousand words,
    so the table is narrower than those of running text.

    Attributes:
      vocabulary_size: words, the numbers of padding and of unknown words among them.
      word_features: width of a word's embedding.
      features: width of the state, and so of z.
    """

    vocabulary_size: int
    word_features: int = 256
    features: int = 512

    @nn.compact
    def __call__(
        self, phrases: Int[Array, "b p t"], lengths: Int[Array, "b p"]
    ) -> Float[Array, "b p e"]:
        """Embeds phrases.

        Args:
          phrases: numbers of words, from 0 to `vocabulary_size` - 1; what stands behind a phrase's
            length makes no difference.
          lengths: words of each phrase; 0 where there is none.

        Returns:
          float32 embeddings, 0 where there is no phrase.
        """
        b, p, t = phrases.shape
        words = nn.Embed(self.vocabulary_size, self.word_features, name="embedding")(phrases)
        cell = nn.OptimizedLSTMCell(self.features, name="lstm")
        states: Any = nn.RNN(cell, name="rnn")(words.reshape(b * p, t, self.word_features))
        last = jnp.clip(lengths.reshape(b * p) - 1, 0, t - 1)
        z = jnp.take_along_axis(states, last[:, None, None], axis=1)
        return jnp.where(lengths[..., None] > 0, z.reshape(b, p, self.features), 0.0)


class PhrasePooling(nn.Module):
    """f = sum_i softmax_i(SAM_t(z_i)) z_i, over the phrases of a text; 0 without any.

    What is left of progressive mask attention without an image: no query, so nothing to mask.

    Attributes:
      reduction: r, by which W1 of SAM_t narrows.
    """

    reduction: int = 16

    @nn.compact
    def __call__(
        self, phrases: Float[Array, "b p e"], there: Bool[Array, "b p"]
    ) -> tuple[Float[Array, "b e"], Float[Array, "b p"]]:
        """Pools phrases.

        Args:
          phrases: embedded phrases, padded to p.
          there: which of them are phrases.

        Returns:
          One vector per text, and the phrases' weights.
        """
        score = AttentionScore(self.reduction, act=jnp.tanh, name="phrase_score")
        weights = masked_softmax(score(phrases), there)
        return jnp.einsum("bp,bpe->be", weights, phrases), weights
