"""Progressive mask attention over blocks of a feature map and over phrases of a text.

Song, Wei, Shu, Song and Lu, "Bi-modal progressive mask attention for fine-grained recognition",
IEEE Transactions on Image Processing, 2020. There is no public code; what the paper leaves open is
decided here, and said where it is.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import struct
from jax.typing import DTypeLike

from fgkd_jax.errors import UserError
from fgkd_jax.models.attention_scores import AttentionScore
from fgkd_jax.models.heads import linear_init
from fgkd_jax.ops.masking import first_max, masked_softmax
from fgkd_jax.typing import Array, Bool, Float, Int, Leaf

MARGIN = 1e-5
"""How far above 1/p a weight must be, relative to it: phrases that are all alike are not above."""


@struct.dataclass
class ProgressiveStages:
    """What each stage attends to and finds, the stages on axis 1.

    n blocks, p phrases (0 without a text).

    Attributes:
      block_weights: float32 [b, s, n], of f_global; zeros where no block was left.
      located: int32 [b, s], the block with the largest weight; -1 where none was left.
      blocks_left: bool [b, s, n], which blocks are unmasked after the stage.
      vision: float32 [b, s, v], [f_global; f_local].
      phrase_weights: float32 [b, s, p], of f_local_text, by the query of f_local.
      global_phrase_weights: float32 [b, s, p], of f_global_text, under the new mask.
      phrases_left: bool [b, s, p], which phrases are unmasked after the stage.
      text: float32 [b, s, 2e], [f_global_text; f_local_text].
      features: float32 [b, s, f], f_stage.
    """

    block_weights: Leaf
    located: Leaf
    blocks_left: Leaf
    vision: Leaf
    phrase_weights: Leaf
    global_phrase_weights: Leaf
    phrases_left: Leaf
    text: Leaf
    features: Leaf


def feature_blocks(
    x: Float[Array, "b h w c"], *, pad: bool = True
) -> tuple[Float[Array, "b n c"], Float[Array, "b n c"]]:
    """Cuts a feature map into blocks of 2 x 2 descriptors, from left to right and top to bottom.

    Args:
      x: feature maps.
      pad: what becomes of the last row or column of an odd map: with it, half a block, whose
        maximum and mean are over the descriptors that it has; without it, left out. Padding is the
        default, as a map of 7 x 7 would lose a quarter of the image otherwise.

    Returns:
      The maximum and the mean of each block's descriptors, n blocks.

    Raises:
      UserError: there is no block.
    """
    b, height, width, c = x.shape
    if not pad:
        x = x[:, : height // 2 * 2, : width // 2 * 2]
    down, across = -x.shape[1] % 2, -x.shape[2] % 2
    inside = np.pad(np.ones(x.shape[1:3], bool), ((0, down), (0, across)))
    rows, columns = inside.shape[0] // 2, inside.shape[1] // 2
    if not rows * columns:
        raise UserError(f"a feature map of {height} x {width} has no block of 2 x 2")
    x = jnp.pad(x, ((0, 0), (0, down), (0, across), (0, 0)))
    blocks = x.reshape(b, rows, 2, columns, 2, c).transpose(0, 1, 3, 2, 4, 5)
    blocks = blocks.reshape(b, rows * columns, 4, c)
    inside = inside.reshape(rows, 2, columns, 2).transpose(0, 2, 1, 3).reshape(1, -1, 4, 1)
    largest = first_max(jnp.where(inside, blocks, -jnp.inf), axis=2)[:, :, 0]
    mean = jnp.sum(blocks, axis=2) / inside.sum(axis=2).astype(np.float32)
    return largest, mean


def block_box(
    located: Int[Array, "..."], *, map_size: tuple[int, int], pad: bool = True
) -> Float[Array, "... 4"]:
    """Returns where a block lies on the image.

    Args:
      located: numbers of blocks, as `ProgressiveStages.located`; a block -1 is empty.
      map_size: rows and columns of the feature map.
      pad: as in `feature_blocks`.

    Returns:
      (x_min, y_min, x_max, y_max) as shares of the image's width and height, in [0, 1], each
      descriptor standing for the cell of the image at its place; zeros for -1.
    """
    height, width = map_size
    columns = -(-width // 2) if pad else width // 2
    row, column = located // columns, located % columns
    box = jnp.stack(
        [
            2 * column / width,
            2 * row / height,
            jnp.minimum(2 * column + 2, width) / width,
            jnp.minimum(2 * row + 2, height) / height,
        ],
        axis=-1,
    ).astype(jnp.float32)
    return jnp.where(located[..., None] >= 0, box, jnp.zeros_like(box))


class ProgressiveAttention(nn.Module):
    """F = [GAP(X); f_1; ...; f_S], the stages' features after a shared linear layer.

    Stage, with masks m that start at 0, blocks x_i of 2 x 2 descriptors and x~_i their maximum:

        a_i = softmax_i(SAM_v(x~_i) + m_i),   f_global = sum_i a_i x~_i
        f_local = mean over the block with the largest a_i of (W x + bias); its m_i = -inf
        w_i = softmax_i(z_i . W_q f_local + m'_i),   f_local_text = sum_i w_i z_i
        m'_i = -inf where w_i is among the three largest and above 1/p
        f_global_text = sum_i softmax_i(SAM_t(z_i) + m'_i) z_i
        f_stage = W_s [f_global; f_local; f_global_text; f_local_text] + bias_s

    SAM_v(x) = W2 relu(W1 x) and SAM_t with tanh, W1 to 1/16 of the width. Without phrases in the
    call the two text features are left out: that is the paper's row of one modality.

    Where the paper is silent:

    * Nothing left to attend to (more stages than blocks, no phrase, every phrase masked) gives
      weights of 0, a feature of 0 and the block -1. An empty sum is 0; a softmax over everything
      again would undo the masks, and one text feature, of a missing text, means the same whatever
      the reason.
    * p counts an example's own phrases, masked or not: neither padding nor the stage changes it. A
      text of one phrase thus never masks it, and phrases all alike are masked only where some were
      masked before. `MARGIN` keeps rounding out of that.
    * Ties go to the lower index, of blocks and of phrases.
    * W2 of SAM_v starts without negative weights, see `AttentionScore`.
    * Masks are decisions, not numbers: nothing is differentiated through them.
    * All layers are linear, with biases where the paper writes a layer (the 1 x 1 convolution, the
      FC) and without where it writes a matrix (SAM, QRM). The 1 x 1 convolution is applied to the
      mean of the four descriptors, which is the mean of the four results.
    * Everything is computed in float32 at least, whatever the dtype of the map.

    Attributes:
      stages: how many stages.
      reduction: r, by which W1 of SAM_v and SAM_t narrow.
      local_features: width of f_local; 0: that of the map.
      stage_features: width of f_stage, which the paper does not give.
      masked_phrases: how many phrases a stage masks at most.
      pad_blocks: `pad` of `feature_blocks`.
    """

    stages: int = 3
    reduction: int = 16
    local_features: int = 0
    stage_features: int = 512
    masked_phrases: int = 3
    pad_blocks: bool = True

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b h w c"],
        text: tuple[Float[Array, "b p e"], Bool[Array, "b p"]] | None = None,
    ) -> tuple[Float[Array, "b _"], ProgressiveStages]:
        """Attends in stages.

        Args:
          x: the last feature map of a backbone.
          text: embedded phrases, padded to p, and which of them are phrases; None for a network of
            images alone.

        Returns:
          F of shape [b, c + stages * stage_features], and what the stages did.

        Raises:
          UserError: the map is too small.
        """
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        pooled, mean = feature_blocks(x, pad=self.pad_blocks)
        score = AttentionScore(self.reduction, act=nn.relu, positive=True, name="block_score")
        look = _Look(
            scores=score(pooled),
            pooled=pooled,
            mean=mean,
            local=nn.Dense(
                self.local_features or x.shape[-1], kernel_init=linear_init, name="local"
            ),
        )
        told = _nothing_read(len(x), x.dtype)
        read = None if text is None else self._reader(text[0].astype(x.dtype), text[1])
        there = told["phrases_left"] if text is None else text[1]
        dense = nn.Dense(self.stage_features, kernel_init=linear_init, name="stage")
        blocks = jnp.ones(look.scores.shape, bool)
        found = []
        for _ in range(self.stages):
            seen = look.stage(blocks)
            blocks = seen["blocks_left"]
            if read is not None:
                told = read.stage(seen["vision"][:, x.shape[-1] :], there)
                there = told["phrases_left"]
            features = dense(jnp.concatenate([seen["vision"], told["text"]], axis=-1))
            found.append({**seen, **told, "features": features})
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves, axis=1), *found)
        whole = jnp.mean(x, axis=(1, 2))
        flat = stacked["features"].reshape(len(x), -1)
        return jnp.concatenate([whole, flat], axis=-1), ProgressiveStages(**stacked)

    def _reader(self, phrases: Float[Array, "b p e"], there: Bool[Array, "b p"]) -> "_Read":
        query = nn.Dense(phrases.shape[-1], use_bias=False, kernel_init=linear_init, name="query")
        return _Read(
            scores=AttentionScore(self.reduction, act=jnp.tanh, name="phrase_score")(phrases),
            phrases=phrases,
            total=jnp.sum(there, axis=-1, keepdims=True).astype(phrases.dtype),
            query=query,
            most=self.masked_phrases,
        )


class _Look(NamedTuple):
    """What stages see of an image: the same in each, but for the mask."""

    scores: Float[Array, "b n"]
    pooled: Float[Array, "b n c"]
    mean: Float[Array, "b n c"]
    local: nn.Module

    def stage(self, left: Bool[Array, "b n"]) -> dict[str, Array]:
        """One stage: its features, and which blocks are left after it."""
        weights = masked_softmax(self.scores, left)
        overall = jnp.einsum("bn,bnc->bc", weights, self.pooled)
        # By the scores, not the weights: two weights may round to one number.
        best = jnp.argmax(jnp.where(left, self.scores, -jnp.inf), axis=-1)
        some = jnp.any(left, axis=-1)
        local: Any = self.local(jnp.take_along_axis(self.mean, best[:, None, None], axis=1)[:, 0])
        local = jnp.where(some[:, None], local, 0.0)
        return {
            "block_weights": weights,
            "located": jnp.where(some, best, -1).astype(jnp.int32),
            "blocks_left": left & (jnp.arange(left.shape[1])[None] != best[:, None]),
            "vision": jnp.concatenate([overall, local], axis=-1),
        }


class _Read(NamedTuple):
    """What stages read of a text: the same in each, but for the query and the mask."""

    scores: Float[Array, "b p"]
    phrases: Float[Array, "b p e"]
    total: Float[Array, "b 1"]
    query: nn.Module
    most: int

    def stage(self, local: Float[Array, "b _v"], left: Bool[Array, "b p"]) -> dict[str, Array]:
        """One stage: its features, and which phrases are left after it."""
        weights = masked_softmax(jnp.einsum("bpe,be->bp", self.phrases, self.query(local)), left)
        told = jnp.einsum("bp,bpe->be", weights, self.phrases)
        above = weights * self.total > 1 + MARGIN
        left = left & ~(_among_largest(weights, self.most) & above)
        overall = masked_softmax(self.scores, left)
        both = [jnp.einsum("bp,bpe->be", overall, self.phrases), told]
        return {
            "phrase_weights": weights,
            "global_phrase_weights": overall,
            "phrases_left": left,
            "text": jnp.concatenate(both, axis=-1),
        }


def _nothing_read(batch: int, dtype: DTypeLike) -> dict[str, Array]:
    """What a stage without a text gives in place of `_Read.stage`."""
    none = jnp.zeros((batch, 0), dtype)
    names = ("phrase_weights", "global_phrase_weights", "text")
    return {**dict.fromkeys(names, none), "phrases_left": none.astype(bool)}


def _among_largest(x: Float[Array, "b p"], most: int) -> Bool[Array, "b p"]:
    """Whether an entry is among the so many largest of its row; ties go to the lower index."""
    best = jax.lax.top_k(x, min(most, x.shape[-1]))[1]
    return jnp.any(best[:, :, None] == jnp.arange(x.shape[-1])[None, None], axis=1)
