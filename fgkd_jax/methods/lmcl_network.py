"""Networks with a classifier and an embedding at each of their stages."""

from typing import NamedTuple

import jax.numpy as jnp
from flax import linen as nn

from fgkd_jax.models.heads import LinearHead, ProjectionHead
from fgkd_jax.models.stage_matching import Aggregator
from fgkd_jax.typing import Array, Float


class StageOutputs(NamedTuple):
    """What n networks say at s stages each.

    Attributes:
      features: pooled features by network and stage, of any widths.
      logits: `[n s b k]`, float32; the last stage is the network's own output.
      embeddings: `[n s b d]`, of length one.
      aggregated: `[n b k]`, the logits of a network's stages mixed into one.
    """

    features: tuple[tuple[Float[Array, "b _"], ...], ...]
    logits: Float[Array, "n s b k"]
    embeddings: Float[Array, "n s b d"]
    aggregated: Float[Array, "n b k"]


class StagedNetworks(nn.Module):
    """Networks that are tapped at their last stages, by auxiliary branches.

    A branch behind a stage is a private copy of the stages that follow. The variables of network i
    are under `networks_<i>`, of its branches under `branches_<i>_<k>`, of the heads of stage k
    under `classifier<i>_<k>` and `projection<i>_<k>`, those of the last stage having the highest k,
    and of its aggregator under `aggregator<i>`.

    Attributes:
      networks: backbones, of any kinds and widths.
      branches: by network, one backbone for every tapped stage but the last, from the earliest on.
      num_classes: number of logits.
      embedding_size: dimensions of the embeddings.
    """

    networks: tuple[nn.Module, ...]
    branches: tuple[tuple[nn.Module, ...], ...]
    num_classes: int
    embedding_size: int = 128

    def setup(self) -> None:
        """Makes the heads."""
        stages = range(1 + len(self.branches[0]))
        nets = range(len(self.networks))
        self.classifiers = [
            [LinearHead(self.num_classes, name=f"classifier{i}_{k}") for k in stages] for i in nets
        ]
        self.projections = [
            [ProjectionHead(self.embedding_size, name=f"projection{i}_{k}") for k in stages]
            for i in nets
        ]
        self.aggregators = [Aggregator(name=f"aggregator{i}") for i in nets]

    def __call__(self, x: Float[Array, "b h w 3"], *, train: bool) -> StageOutputs:
        """Runs everything.

        Args:
          x: normalised images.
          train: whether batch statistics are in training mode.

        Returns:
          The outputs of all stages.
        """
        features = tuple(self._taps(i, x, train=train) for i in range(len(self.networks)))
        logits = jnp.stack([
            jnp.stack([head(one, train=train) for head, one in zip(heads, taps, strict=True)])
            for heads, taps in zip(self.classifiers, features, strict=True)
        ])  # fmt: skip
        embeddings = jnp.stack([
            jnp.stack([head(one) for head, one in zip(heads, taps, strict=True)])
            for heads, taps in zip(self.projections, features, strict=True)
        ])  # fmt: skip
        mixes = zip(self.aggregators, features, logits, strict=True)
        aggregated = jnp.stack([mix(taps, one) for mix, taps, one in mixes])
        return StageOutputs(features, logits, embeddings, aggregated)

    def classify(self, x: Float[Array, "b h w 3"]) -> Float[Array, "n b k"]:
        """Classifies in evaluation mode by the networks' own outputs, without any branch.

        Args:
          x: normalised images.

        Returns:
          Logits of every network, float32.
        """
        return jnp.stack([
            heads[-1](_pooled(network(x, train=False)[-1]), train=False)
            for heads, network in zip(self.classifiers, self.networks, strict=True)
        ])  # fmt: skip

    def _taps(self, i: int, x: Array, *, train: bool) -> tuple[Float[Array, "b _"], ...]:
        """The pooled features of the tapped stages of a network."""
        stages = self.networks[i](x, train=train)
        first = len(stages) - 1 - len(self.branches[i])
        maps = [
            branch(stages[first + k], train=train, start=first + k + 1)[-1]
            for k, branch in enumerate(self.branches[i])
        ]
        return tuple(_pooled(one) for one in (*maps, stages[-1]))


def _pooled(x: Float[Array, "b h w c"]) -> Float[Array, "b c"]:
    return jnp.mean(x.astype(jnp.float32), axis=(1, 2))
