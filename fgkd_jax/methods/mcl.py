"""MCL: several networks trained together, each contrasting its embeddings with those of the others.

Yang, An, Cai and Xu, "Mutual contrastive learning for visual representation learning", AAAI 2022.

    image -> network i -> pooled features -> classifier i -> logits: cross-entropy
                                          -> projection i -> embedding: contrast within network i
                                             (VCL) and with the others (ICL), and distillation of
                                             what each contrast looks like (soft VCL, soft ICL)

At test time each network stands alone. With other weights the same class is what MCL is compared
with: networks that are independent, Deep Mutual Learning, and an ensemble as the teacher.
"""

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from fgkd_jax.errors import UserError
from fgkd_jax.losses.contrastive import mutual_contrastive
from fgkd_jax.losses.distillation import ensemble_distillation, mutual_learning
from fgkd_jax.methods.classifier import check_network
from fgkd_jax.methods.mcl_network import MutualNetworks
from fgkd_jax.methods.mutual import (
    MutualOptions,
    contrast_labels,
    loss_term,
    masked,
)
from fgkd_jax.protocols import Exported, LossOutput, LossTerm, split_variables
from fgkd_jax.typing import Array, Batch, Float, Key, Variables

_NONE: Mapping[str, float] = {
    "vcl_weight": 0.0,
    "icl_weight": 0.0,
    "soft_vcl_weight": 0.0,
    "soft_icl_weight": 0.0,
}
PRESETS: Mapping[str, Mapping[str, Any]] = {
    "mcl": {},
    "independent": _NONE,
    "dml": {**_NONE, "mutual_learning_weight": 1.0},
    "ensemble": {**_NONE, "ensemble_weight": 1.0},
}
"""Options of `MCL` by preset: the method as released for CIFAR, and what it is compared with."""

PRESET_TITLES: Mapping[str, str] = {
    "mcl": "MCL",
    "independent": "independent networks",
    "dml": "Deep Mutual Learning",
    "ensemble": "distilling the mean of logits",
}
"""What the presets are called in a table."""


@dataclasses.dataclass(frozen=True)
class MCL(MutualOptions):
    """Mutual contrastive learning of two or more networks.

    loss = sum over networks of CE + vcl_weight vcl + icl_weight icl + soft_vcl_weight soft_vcl
    + soft_icl_weight soft_icl + mutual_learning_weight dml + ensemble_weight ensemble

    The terms are those of `mutual_contrastive`, `mutual_learning` and `ensemble_distillation`; one
    of weight 0 is not computed. The defaults are the released weights for CIFAR. An anchor without
    another image of its class in the batch adds nothing to vcl and icl: batches should be drawn
    with `data.images_per_class` of at least 2.

    Attributes, besides those of `MutualOptions`:
      shared_stages: leading stages of the first network that all networks share. The released code
        shares the stem and the first stage whenever there are more than two networks, and says so
        nowhere; here networks are separate unless asked for.
      mutual_learning_weight: weight of Deep Mutual Learning on the logits.
      ensemble_weight: weight of the distillation from the mean of all logits.
      dropout: rate on the pooled features that are classified, in [0, 1).
    """

    shared_stages: int = 0
    mutual_learning_weight: float = 0.0
    ensemble_weight: float = 0.0
    dropout: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.dropout < 1:
            raise UserError(f"dropout is {self.dropout}; expected it in [0, 1)")
        least = min(backbone.num_stages for backbone in self.backbones)
        if not 0 <= self.shared_stages < least:
            raise UserError(
                f"shared_stages is {self.shared_stages}; expected 0 to {least - 1}, fewer than the "
                "shallowest network has"
            )

    @property
    def network(self) -> MutualNetworks:
        """The Linen module behind the method."""
        return MutualNetworks(
            networks=self.backbones,
            num_classes=self.num_classes or 1,
            embedding_size=self.embedding_size,
            shared_stages=self.shared_stages,
            dropout=self.dropout,
        )

    def init(self, key: Key[Array, ""], batch: Batch) -> Variables:
        """Initialises all networks, each differently.

        Args:
          key: a typed PRNG key.
          batch: with `image` [b, h, w, 3].

        Returns:
          `params` and, where the backbones normalise by batch statistics, `batch_stats`.
        """
        return self.network.init(key, self.images(batch, key, train=False), train=False)

    def loss(
        self, variables: Variables, batch: Batch, key: Key[Array, ""], *, train: bool
    ) -> LossOutput:
        """Computes the loss terms of each example.

        Args:
          variables: as `init` returns them.
          batch: `image` uint8 [b, h, w, 3], `label` int [b], `id` int [b] and `mask` bool [b]. An
            example with `mask` False is nobody's positive and adds to no term.
          key: a typed PRNG key for this step.
          train: whether colour jitter, dropout and batch statistics are in training mode.

        Returns:
          The terms, the new batch statistics, and the figures of `MutualOptions.figures`.
        """
        logits, embeddings, state = self.run(variables, batch, key, train=train)
        terms = self.logit_terms(logits, batch)
        if any(self.contrast_weights.values()):
            losses = mutual_contrastive(
                embeddings,
                contrast_labels(batch),
                temperature=self.temperature,
                soft_temperature=self.soft_temperature,
                groups=self.contrast_groups,
            )
            terms |= self.contrast_terms(losses)
        return masked(terms, batch["mask"]), state, self.figures(logits, batch)

    def export(self, variables: Variables, *, network: int = 0) -> Exported:
        """Takes one network out, with a copy of the trunk where it is shared.

        Args:
          variables: as `init` returns them.
          network: which one, counted from 0.

        Returns:
          The network, as a classifier.

        Raises:
          UserError: there is no such network, or the trunk is of another kind than the network
            that stands on it, which then is no backbone by itself.
        """
        check_network(network, count=self.num_networks)
        if self.shared_stages and network:
            variables = self._with_trunk(variables, network)
        return super().export(variables, network=network)

    def _with_trunk(self, variables: Variables, network: int) -> Variables:
        """The variables, with the stages that a network shares put before its own."""
        first, backbone = self.backbones[0], self.backbones[network]
        shapes = self._trunk_shapes(backbone)
        if type(first) is not type(backbone) or shapes != self._trunk_shapes(first):
            raise UserError(
                f"network {network} stands on {self.shared_stages} stages of network 0, which are "
                "not of its kind, and is no network by itself; expected network 0"
            )
        variables = dict(variables)
        for collection, stages in shapes[1].items():
            tree = variables[collection]
            trunk = {name: tree["networks_0"][name] for name in stages}
            own = {**trunk, **tree.get(f"networks_{network}", {})}
            variables[collection] = {**tree, f"networks_{network}": own}
        return variables

    def _trunk_shapes(self, backbone: Any) -> Any:
        """The shapes of what the shared stages of a backbone put out, and of their variables."""
        image = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
        begin = partial(backbone.init_with_output, train=False, stop=self.shared_stages)
        return jax.tree.map(
            lambda leaf: leaf.shape, jax.eval_shape(begin, jax.random.key(0), image)
        )

    def run(
        self, variables: Variables, batch: Batch, key: Key[Array, ""], *, train: bool
    ) -> tuple[Float[Array, "n b k"], Float[Array, "n b d"], Variables]:
        """Runs all networks on the images of a batch.

        Args:
          variables: as `init` returns them.
          batch: as `loss` takes it.
          key: a typed PRNG key.
          train: as `loss` takes it.

        Returns:
          The logits, the embeddings, and the whole model state with new batch statistics.
        """
        jitter_key, dropout_key = jax.random.split(key)
        _, state, _ = split_variables(variables)
        network: Any = self.network
        (logits, embeddings), new = network.apply(
            variables,
            self.images(batch, jitter_key, train=train),
            train=train,
            mutable=["batch_stats"] if train else [],
            rngs={"dropout": dropout_key},
        )
        return logits, embeddings, {**state, **new}

    def logit_terms(self, logits: Float[Array, "n b k"], batch: Batch) -> dict[str, LossTerm]:
        """Computes the terms without embeddings.

        Args:
          logits: of each network.
          batch: `label` int [b].

        Returns:
          `cross_entropy` and, where they have a weight, `mutual_learning` and `ensemble`.
        """
        terms = {"cross_entropy": self.label_term(logits, batch)}
        if self.mutual_learning_weight:
            loss = mutual_learning(logits)
            terms["mutual_learning"] = loss_term(loss, weight=self.mutual_learning_weight)
        if self.ensemble_weight:
            loss = ensemble_distillation(logits, temperature=self.logit_temperature)
            terms["ensemble"] = loss_term(loss, weight=self.ensemble_weight)
        return terms
