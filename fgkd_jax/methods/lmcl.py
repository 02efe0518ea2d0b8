"""L-MCL: mutual contrastive learning between the stages of networks, matched by a meta-network.

Yang, An, Zhou, Zhuang, Xu and Zhang, "Online knowledge distillation via mutual contrastive learning
for visual recognition", TPAMI 2023.

    every tapped stage of every network -> an auxiliary branch -> logits and an embedding
    contrast of every stage with every stage of the other networks, weighted by a meta-network
    the stages' logits, mixed by an aggregator -> the teacher of every network's own output

Every few steps the meta-network takes a step of its own, on what its weights do to the networks: a
few training steps on the contrast alone are differentiated through (`unrolled_gradient`).
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from fgkd_jax.errors import UserError
from fgkd_jax.losses.classification import cross_entropy
from fgkd_jax.losses.contrastive import MutualContrastive, layerwise_mutual_contrastive
from fgkd_jax.losses.distillation import aggregated_task
from fgkd_jax.methods.bilevel import INNER, JUDGE, unrolled_gradient
from fgkd_jax.methods.lmcl_network import StagedNetworks, StageOutputs
from fgkd_jax.methods.mutual import (
    MutualOptions,
    contrast_labels,
    loss_term,
    masked,
)
from fgkd_jax.models.backbones import backbone_from
from fgkd_jax.models.stage_matching import MatchNetwork
from fgkd_jax.protocols import LossOutput, LossTerm, split_variables
from fgkd_jax.typing import Array, Batch, Float, Key, PyTree, Variables

MATCH, VELOCITY = "match", "match_velocity"
"""Collections of the state: the meta-network's parameters, and the momentum of its steps."""


@dataclasses.dataclass(frozen=True)
class LMCL(MutualOptions):
    """Layer-wise mutual contrastive learning of two or more networks.

    loss = sum over networks and stages of CE + sum over networks of CE(aggregated)
    + sum over pairs of networks of T^2 KL(aggregated teacher || own output)
    + vcl_weight vcl + icl_weight icl + soft_vcl_weight soft_vcl + soft_icl_weight soft_icl

    The first three are `aggregated_task`, the others `layerwise_mutual_contrastive`. The released
    sums count every pair of stages twice; halve the four weights to count it once. In the main step
    the match weights are constants. Predictions are those of the networks' own outputs.

    Attributes, besides those of `MutualOptions`:
      stages: how many of the last stages of each network are tapped, at least 1; 0 taps every stage
        after the stem, of which all networks must then have the same number.
      branch_options: by network, options of its auxiliary branches' backbones that differ from its
        own, for example fewer blocks; none where empty.
      match_size: dimensions in which the meta-network compares stages.
      meta_every: main steps from one step of the meta-network to the next; the first follows step
        0. With 0 there is no meta-network, and all weights are 1.
      inner_steps: steps on the contrast that are differentiated through.
      meta_momentum: of the inner steps (heavy-ball) and of the meta-network's own (Nesterov's).
      meta_weight_decay: coupled, of both.
    """

    stages: int = 0
    branch_options: tuple[Mapping[str, Any], ...] = ()
    match_size: int = 128
    meta_every: int = 50
    inner_steps: int = 2
    meta_momentum: float = 0.9
    meta_weight_decay: float = 5e-4

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in (("match_size", 1), ("inner_steps", 1), ("meta_every", 0)):
            if getattr(self, name) < least:
                raise UserError(f"{name} is {getattr(self, name)}; expected at least {least}")
        if not 0 <= self.meta_momentum < 1:
            raise UserError(f"meta_momentum is {self.meta_momentum}; expected it in [0, 1)")
        if not self.meta_weight_decay >= 0:
            raise UserError(f"meta_weight_decay is {self.meta_weight_decay}; expected at least 0")
        if len(self.branch_options) not in (0, self.num_networks):
            raise UserError(
                f"branch_options has {len(self.branch_options)} entries; expected one for each of "
                f"{self.num_networks} networks, or none"
            )
        counts = [backbone.num_stages - 1 for backbone in self.backbones]
        if self.stages == 0 and min(counts) != max(counts):
            raise UserError(
                f"networks have {counts} stages after the stem; expected as many in each, or a "
                "number of stages to tap"
            )
        if not 0 <= self.stages <= min(counts):
            raise UserError(f"stages is {self.stages}; expected 0 (all) to {min(counts)}")
        _ = self._branches  # wrong options are told at once

    @property
    def num_stages(self) -> int:
        """How many stages of each network are tapped."""
        return self.stages or self.backbones[0].num_stages - 1

    @property
    def network(self) -> StagedNetworks:
        """The Linen module behind the method, without the meta-network."""
        return StagedNetworks(
            networks=self.backbones,
            branches=self._branches,
            num_classes=self.num_classes or 1,
            embedding_size=self.embedding_size,
        )

    @property
    def _branches(self) -> tuple[tuple[Any, ...], ...]:
        others = self.branch_options or ({},) * self.num_networks
        return tuple(
            tuple(
                backbone_from({**options, **other}, owner=f"branches of networks[{i}]")
                for _ in range(self.num_stages - 1)
            )
            for i, (options, other) in enumerate(zip(self.networks, others, strict=True))
        )

    @property
    def _matching(self) -> MatchNetwork:
        return MatchNetwork(self.match_size)

    def init(self, key: Key[Array, ""], batch: Batch) -> Variables:
        """Initialises all networks, each differently, and the meta-network.

        Args:
          key: a typed PRNG key.
          batch: with `image` [b, h, w, 3].

        Returns:
          `params`, the meta-network's parameters `match` and momentum `match_velocity`, and, where
          the backbones normalise by batch statistics, `batch_stats`.
        """
        networks_key, match_key, image_key = jax.random.split(key, 3)
        images = self.images(batch, image_key, train=False)
        outputs, variables = self.network.init_with_output(networks_key, images, train=False)
        if self.meta_every:
            match = self._matching.init(match_key, outputs.features)["params"]
            variables = {
                **variables,
                MATCH: match,
                VELOCITY: jax.tree.map(jnp.zeros_like, match),
            }
        return variables

    def loss(
        self, variables: Variables, batch: Batch, key: Key[Array, ""], *, train: bool
    ) -> LossOutput:
        """Computes the loss terms of each example, for the main step.

        Args:
          variables: as `init` returns them.
          batch: `image` uint8 [b, h, w, 3], `label` int [b], `id` int [b] and `mask` bool [b]. An
            example with `mask` False is nobody's positive and adds to no term.
          key: a typed PRNG key for this step.
          train: whether colour jitter and batch statistics are in training mode.

        Returns:
          The terms, the new state, and the figures of `MutualOptions.figures` and
          `match/<i>.<k>-<j>.<z>`, the mean weight between stage k of network i and stage z of j.
        """
        contrast, key = self._contrast(variables, batch, key)
        images = self.images(batch, key, train=train)
        outputs, state = self._apply(variables, variables["params"], images, train=train)
        weights = jax.lax.stop_gradient(self._match_weights(variables.get(MATCH), outputs))
        task = aggregated_task(
            outputs.logits,
            outputs.aggregated,
            batch["label"],
            temperature=self.logit_temperature,
        )
        terms = {
            name: loss_term(loss) for name, loss in zip(task._fields, task, strict=True)
        } | self._weighed(contrast, outputs, weights)
        if train:
            state = {**state, **self._remembered(variables, outputs, batch)}
        figures = self.figures(outputs.logits[:, -1], batch)
        if self.meta_every:
            figures |= _match_figures(weights, batch["mask"])
        return masked(terms, batch["mask"]), state, figures

    def meta_step(
        self,
        variables: Variables,
        batch: Batch,
        key: Key[Array, ""],
        *,
        meta_batch: Batch,
        learning_rate: float | Array,
    ) -> tuple[Variables, dict[str, Array]]:
        """Takes a step of the meta-network alone.

        A copy of the networks takes `inner_steps` steps on the weighted contrast and one on the
        cross-entropies of all stages; the meta-network descends what these are then, through all of
        these steps. Nothing else changes: neither the networks nor their statistics, unlike in the
        released code, where running statistics move by one batch.

        Args:
          variables: as `init` returns them.
          batch: as `loss` takes it, of the main step.
          key: a typed PRNG key.
          meta_batch: what the meta-network's loss is computed on, after all steps were taken on
            `batch`: the same again, as released, or examples that were held out.
          learning_rate: of the main step, which all steps here use too.

        Returns:
          The new collections `match` and `match_velocity`, and `meta_loss` and `meta_grad_norm` to
          log.
        """
        contrast, key = self._contrast(variables, batch, key)
        seen, held = (
            {**one, "image": self.images(one, key, train=True)} for one in (batch, meta_batch)
        )

        def objective(params: PyTree, match: PyTree, phase: Array) -> Array:
            batch = {
                name: jnp.where(phase == JUDGE, held[name], seen[name])
                for name in ("image", "label", "mask")
            }
            outputs, _ = self._apply(variables, params, batch["image"], train=True)
            terms = self._weighed(contrast, outputs, self._match_weights(match, outputs))
            kept = masked(terms, seen["mask"]).values()
            contrasted = sum(term.weight * jnp.sum(term.sum) for term in kept)
            logits = outputs.logits.reshape(-1, *outputs.logits.shape[2:])
            losses = jax.vmap(cross_entropy, in_axes=(0, None))(logits, batch["label"])
            task = jnp.sum(jnp.where(batch["mask"][None], losses, 0.0))
            count = jnp.maximum(1, jnp.sum(batch["mask"]))
            return jnp.where(phase == INNER, contrasted, task) / count

        loss, grads = unrolled_gradient(
            objective,
            variables["params"],
            variables[MATCH],
            inner_steps=self.inner_steps,
            learning_rate=learning_rate,
            momentum=self.meta_momentum,
            weight_decay=self.meta_weight_decay,
        )
        decayed = jax.tree.map(lambda g, p: g + self.meta_weight_decay * p, grads, variables[MATCH])
        velocity = jax.tree.map(
            lambda v, d: self.meta_momentum * v + d, variables[VELOCITY], decayed
        )
        match = jax.tree.map(
            lambda p, d, v: p - learning_rate * (d + self.meta_momentum * v),
            variables[MATCH],
            decayed,
            velocity,
        )
        norm = jnp.sqrt(sum(jnp.sum(jnp.square(g)) for g in jax.tree.leaves(grads)))
        return {MATCH: match, VELOCITY: velocity}, {"meta_loss": loss, "meta_grad_norm": norm}

    def classifier_name(self, network: int) -> str:
        """Says where the classifier of a network's last stage is among the parameters.

        Args:
          network: which one, counted from 0.

        Returns:
          The name of its module.
        """
        return f"classifier{network}_{self.num_stages - 1}"

    def _apply(
        self, variables: Variables, params: PyTree, images: Array, *, train: bool
    ) -> tuple[StageOutputs, Variables]:
        """The outputs of all stages, and the whole state with new statistics."""
        network: Any = self.network
        outputs, new = network.apply(
            {**variables, "params": params},
            images,
            train=train,
            mutable=["batch_stats"] if train else [],
        )
        _, state, _ = split_variables(variables)
        return outputs, {**state, **new}

    def _match_weights(
        self, match: PyTree | None, outputs: StageOutputs
    ) -> Float[Array, "n s n s b"]:
        if match is None:
            n, s, b = outputs.embeddings.shape[:3]
            return jnp.ones((n, s, n, s, b), outputs.embeddings.dtype)
        matching: Any = self._matching
        return matching.apply({"params": match}, outputs.features)

    def _weighed(
        self, contrast: "Contrast", outputs: StageOutputs, weights: Float[Array, "n s n s b"]
    ) -> dict[str, LossTerm]:
        if not any(self.contrast_weights.values()):
            return {}
        losses = contrast(outputs.embeddings, weights)
        return self.contrast_terms(losses, accumulable=not self.contrasts_batch)

    def _contrast(
        self, variables: Variables, batch: Batch, key: Key[Array, ""]
    ) -> tuple["Contrast", Key[Array, ""]]:
        """The contrast of a batch, and a key for what else is random."""

        def contrast(embeddings: Array, weights: Array) -> MutualContrastive:
            return layerwise_mutual_contrastive(
                embeddings,
                contrast_labels(batch),
                weights,
                temperature=self.temperature,
                soft_temperature=self.soft_temperature,
                groups=self.contrast_groups,
            )

        return contrast, key

    def _remembered(self, variables: Variables, outputs: StageOutputs, batch: Batch) -> Variables:
        """Collections that change with what a batch was like, for later ones to contrast with."""
        return {}


Contrast = Callable[[Float[Array, "n s b d"], Float[Array, "n s n s b"]], MutualContrastive]
"""From embeddings and match weights to the terms of every anchor."""


def _match_figures(
    weights: Float[Array, "n s n s b"], mask: Array
) -> dict[str, tuple[Array, Array]]:
    """The mean weights between the stages of different networks, each pair once."""
    count = mask.astype(jnp.float32)
    networks, stages = weights.shape[:2]
    return {
        f"match/{i}.{k}-{j}.{z}": (weights[i, k, j, z] * count, count)
        for i in range(networks)
        for j in range(i + 1, networks)
        for k in range(stages)
        for z in range(stages)
    }
