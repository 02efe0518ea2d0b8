"""AFD: networks trained together, each of which imitates another's feature maps adversarially.

Chung, Park, Kim and Kwak, "Feature-map-level online adversarial knowledge distillation", ICML 2020.

    image -> network i -> last map -> classifier i -> logits: cross-entropy, and distillation from
                                                      the logits of its peer
                                   -> discriminator i, which is to tell it from the map of the peer

Two networks are each other's peer. Of more, network i learns from network i - 1, and the first from
the last. At test time each network stands alone.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from fgkd_jax.errors import UserError
from fgkd_jax.losses.adversarial import feature_discrimination, feature_imitation
from fgkd_jax.losses.distillation import knowledge_distillation
from fgkd_jax.methods.afd_network import AdversarialNetworks
from fgkd_jax.methods.mutual import SeveralNetworks, loss_term, masked
from fgkd_jax.protocols import LossOutput, LossTerm, split_variables
from fgkd_jax.typing import Array, Batch, Float, Key, PyTree, Variables


@dataclasses.dataclass(frozen=True)
class AFD(SeveralNetworks):
    """Adversarial distillation of feature maps, and distillation of logits.

    loss = sum over networks of CE + distill_weight T^2 KL(p_peer || p) + imitation_weight
    feature_imitation + discrimination_weight feature_discrimination

    In the third the discriminators are constants, in the fourth the maps are, and what teaches is
    constant in the second: a step of one optimiser is at once a step of the networks and one of the
    discriminators, each down its own loss. The paper lets the adversarial steps of both follow the
    step on the logits, on another batch and with an optimiser of their own (Adam, 2e-5); a rule for
    `^discriminator` in `optim.rules` changes their rate here.

    Attributes, besides those of `SeveralNetworks`; T is `logit_temperature`:
      distill_weight: weight of the distillation of logits.
      imitation_weight: weight of what networks minimise against the discriminators.
      discrimination_weight: weight of what the discriminators minimise.
      map_channels: channels of the maps that are compared; a network whose last map has others gets
        a 1 x 1 convolution. 0 takes those of the first network.
      discriminator_features: channels inside a discriminator.
    """

    distill_weight: float = 1.0
    imitation_weight: float = 1.0
    discrimination_weight: float = 1.0
    map_channels: int = 0
    discriminator_features: int = 128

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in (("map_channels", 0), ("discriminator_features", 1)):
            if getattr(self, name) < least:
                raise UserError(f"{name} is {getattr(self, name)}; expected at least {least}")

    @property
    def network(self) -> AdversarialNetworks:
        """The Linen module behind the method."""
        return AdversarialNetworks(
            networks=self.backbones,
            num_classes=self.num_classes or 1,
            map_channels=self.map_channels,
            discriminator_features=self.discriminator_features,
        )

    def init(self, key: Key[Array, ""], batch: Batch) -> Variables:
        """Initialises all networks, each differently, and their discriminators.

        Args:
          key: a typed PRNG key.
          batch: with `image` [b, h, w, 3].

        Returns:
          `params` and, where the backbones normalise by batch statistics, `batch_stats`.
        """
        return self.network.init(key, self.normalize(batch["image"]), method="everything")

    def loss(
        self, variables: Variables, batch: Batch, key: Key[Array, ""], *, train: bool
    ) -> LossOutput:
        """Computes the loss terms of each example.

        Args:
          variables: as `init` returns them.
          batch: `image` uint8 [b, h, w, 3], `label` int [b], `id` int [b] and `mask` bool [b].
          key: a typed PRNG key for this step.
          train: whether colour jitter and batch statistics are in training mode.

        Returns:
          The terms `cross_entropy`, `distillation`, `imitation` and `discrimination`; the new batch
          statistics; the figures of `SeveralNetworks.figures`, and `own_score` and `peer_score`,
          the mean scores of the discriminators: both 0.5 where they can tell nothing.
        """
        _, state, _ = split_variables(variables)
        network: Any = self.network
        (logits, maps), new = network.apply(
            variables,
            self.images(batch, key, train=train),
            train=train,
            mutable=list(state) if train else [],
        )
        adversarial, scores = self._adversarial_terms(variables["params"], maps)
        peers = jnp.roll(logits, 1, axis=0)
        distilled = jax.vmap(
            lambda one, peer: knowledge_distillation(one, peer, temperature=self.logit_temperature)
        )(logits, peers)
        terms = {
            "cross_entropy": self.label_term(logits, batch),
            "distillation": loss_term(jnp.sum(distilled, axis=0), weight=self.distill_weight),
            **adversarial,
        }
        count = batch["mask"].astype(jnp.float32)
        figures = self.figures(logits, batch) | {
            name: (jnp.mean(value, axis=0) * count, count) for name, value in scores.items()
        }
        return masked(terms, batch["mask"]), {**state, **new}, figures

    def _adversarial_terms(
        self, params: PyTree, maps: tuple[Float[Array, "b _ _ c"], ...]
    ) -> tuple[dict[str, LossTerm], dict[str, Float[Array, "n b"]]]:
        """What networks and discriminators minimise against each other, and the scores."""
        network: Any = self.network

        def score(params: PyTree, seen: tuple[Array, ...]) -> Array:
            return network.apply({"params": params}, seen, method="score")

        fixed = jax.lax.stop_gradient(maps)
        own, peer = score(params, fixed), score(params, fixed[-1:] + fixed[:-1])
        taken = score(jax.lax.stop_gradient(params), maps)
        imitation = jax.vmap(feature_imitation)(taken)
        discrimination = jax.vmap(feature_discrimination)(peer, own)
        terms = {
            "imitation": loss_term(jnp.sum(imitation, axis=0), weight=self.imitation_weight),
            "discrimination": loss_term(
                jnp.sum(discrimination, axis=0), weight=self.discrimination_weight
            ),
        }
        return terms, {"own_score": own, "peer_score": peer}
