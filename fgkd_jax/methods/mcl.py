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
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from fgkd_jax.errors import UserError, nearest
from fgkd_jax.losses.classification import cross_entropy
from fgkd_jax.losses.contrastive import MutualContrastive, mutual_contrastive
from fgkd_jax.losses.distillation import ensemble_distillation, mutual_learning
from fgkd_jax.methods.mcl_network import MutualNetworks
from fgkd_jax.models.backbones import backbone_from
from fgkd_jax.ops.preprocess import IMAGENET_MEAN, IMAGENET_STD, color_jitter, normalize_image
from fgkd_jax.protocols import LossOutput, LossTerm, split_variables
from fgkd_jax.typing import Array, Batch, Float, Int, Key, Variables

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


def mcl_preset(name: str) -> dict[str, Any]:
    """Looks the options of a preset up.

    Args:
      name: a key of `PRESETS`.

    Returns:
      Options of `MCL`, for a config to complete.

    Raises:
      UserError: there is no such preset.
    """
    if name not in PRESETS:
        raise UserError(f"MCL has no preset {name!r}{nearest(name, PRESETS)}")
    return dict(PRESETS[name])


@dataclasses.dataclass(frozen=True)
class MCL:
    """Mutual contrastive learning of two or more networks.

    loss = sum over networks of CE + vcl_weight vcl + icl_weight icl + soft_vcl_weight soft_vcl
    + soft_icl_weight soft_icl + mutual_learning_weight dml + ensemble_weight ensemble

    The terms are those of `mutual_contrastive`, `mutual_learning` and `ensemble_distillation`; one
    of weight 0 is not computed. The defaults are the released weights for CIFAR. An anchor without
    another image of its class in the batch adds nothing to vcl and icl: batches should be drawn
    with `data.images_per_class` of at least 2.

    Attributes:
      num_classes: number of classes; taken from the data set where None.
      networks: `name` and options of each backbone, at least two, alike or not.
      shared_stages: leading stages of the first network that all networks share. The released code
        shares the stem and the first stage whenever there are more than two networks, and says so
        nowhere; here networks are separate unless asked for.
      embedding_size: dimensions of the embeddings.
      vcl_weight: weight of the contrast within each network.
      icl_weight: weight of the contrast between networks.
      soft_vcl_weight: weight of the distillation between the contrasts within.
      soft_icl_weight: weight of the distillation between the contrasts to and fro.
      temperature: of the contrasts.
      soft_temperature: further temperature of their distillation.
      contrast_groups: 1 contrasts over the global batch; g > 1 within each of g contiguous parts of
        it, as many as devices for a contrast that stays on each.
      mutual_learning_weight: weight of Deep Mutual Learning on the logits.
      ensemble_weight: weight of the distillation from the mean of all logits.
      logit_temperature: of that distillation.
      dropout: rate on the pooled features that are classified, in [0, 1).
      label_smoothing: share of the target spread evenly over all classes, in [0, 1).
      image_mean: per channel, subtracted from images in 0..1.
      image_std: per channel, divides after the mean is subtracted.
      brightness: strength of the colour jitter on the device, 0 for none.
      contrast: likewise.
      saturation: likewise.
    """

    task: ClassVar[str] = "mutual_classification"

    num_classes: int | None = None
    networks: tuple[Mapping[str, Any], ...] = (
        {"name": "cifar_resnet32"},
        {"name": "cifar_resnet32"},
    )
    shared_stages: int = 0
    embedding_size: int = 128
    vcl_weight: float = 0.1
    icl_weight: float = 0.1
    soft_vcl_weight: float = 1.0
    soft_icl_weight: float = 1.0
    temperature: float = 0.1
    soft_temperature: float = 3.0
    contrast_groups: int = 1
    mutual_learning_weight: float = 0.0
    ensemble_weight: float = 0.0
    logit_temperature: float = 3.0
    dropout: float = 0.0
    label_smoothing: float = 0.0
    image_mean: tuple[float, float, float] = IMAGENET_MEAN
    image_std: tuple[float, float, float] = IMAGENET_STD
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0

    def __post_init__(self) -> None:
        if len(self.networks) < 2:
            raise UserError(
                f"networks has {len(self.networks)} of them; expected at least two, which learn "
                "from each other"
            )
        for name in ("dropout", "label_smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; expected it in [0, 1)")
        for name in ("temperature", "soft_temperature", "logit_temperature"):
            if not getattr(self, name) > 0:
                raise UserError(f"{name} is {getattr(self, name)}; expected a number above 0")
        for name in ("embedding_size", "contrast_groups"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; expected at least 1")
        least = min(backbone.num_stages for backbone in self._backbones)
        if not 0 <= self.shared_stages < least:
            raise UserError(
                f"shared_stages is {self.shared_stages}; expected 0 to {least - 1}, fewer than the "
                "shallowest network has"
            )

    @property
    def num_networks(self) -> int:
        """How many networks there are."""
        return len(self.networks)

    @property
    def network(self) -> MutualNetworks:
        """The Linen module behind the method."""
        return MutualNetworks(
            networks=self._backbones,
            num_classes=self.num_classes or 1,
            embedding_size=self.embedding_size,
            shared_stages=self.shared_stages,
            dropout=self.dropout,
        )

    @property
    def _backbones(self) -> tuple[Any, ...]:
        return tuple(
            backbone_from(options, owner=f"networks[{i}]")
            for i, options in enumerate(self.networks)
        )

    def frozen_parameters(self) -> tuple[str, ...]:
        """Names no parameters: all are trained.

        Returns:
          Nothing.
        """
        return ()

    def init(self, key: Key[Array, ""], batch: Batch) -> Variables:
        """Initialises all networks, each differently.

        Args:
          key: a typed PRNG key.
          batch: with `image` [b, h, w, 3].

        Returns:
          `params` and, where the backbones normalise by batch statistics, `batch_stats`.
        """
        return self.network.init(key, self._normalize(batch["image"]), train=False)

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
          The terms, the new batch statistics, and the figures `accuracy` (mean over networks),
          `network<i>_accuracy` and, with contrast, `with_positive`: the share of examples that have
          another one of their class in the batch.
        """
        jitter_key, dropout_key = jax.random.split(key)
        images = batch["image"]
        if train:
            images = color_jitter(
                jitter_key,
                images,
                batch["id"],
                brightness=self.brightness,
                contrast=self.contrast,
                saturation=self.saturation,
            )
        _, state, _ = split_variables(variables)
        network: Any = self.network
        (logits, embeddings), new = network.apply(
            variables,
            self._normalize(images),
            train=train,
            mutable=list(state) if train else [],
            rngs={"dropout": dropout_key},
        )
        labels = jnp.where(batch["mask"], batch["label"], -1 - jnp.arange(len(batch["label"])))
        terms = {**self._logit_terms(logits, batch), **self._contrast_terms(embeddings, labels)}
        mask = batch["mask"].astype(jnp.float32)
        masked = {
            name: dataclasses.replace(term, sum=jnp.where(batch["mask"], term.sum, 0.0), count=mask)
            for name, term in terms.items()
        }
        return masked, {**state, **new}, self._figures(logits, labels, mask)

    def predict(self, variables: Variables, batch: Batch) -> dict[str, Array]:
        """Predicts the class of each image by every network.

        Args:
          variables: as `init` returns them.
          batch: `image` uint8 [b, h, w, 3].

        Returns:
          `network_logits` [n, b, k]; `probabilities` [b, k], their mean over networks, and
          `logits` [b, k], its logarithm; float32.
        """
        network: Any = self.network
        logits = network.apply(variables, self._normalize(batch["image"]), method="classify")
        log_p = jax.nn.log_softmax(logits)
        mean = jax.nn.logsumexp(log_p, axis=0) - jnp.log(float(self.num_networks))
        return {"network_logits": logits, "logits": mean, "probabilities": jnp.exp(mean)}

    def _logit_terms(self, logits: Float[Array, "n b k"], batch: Batch) -> dict[str, LossTerm]:
        """The terms that take each example by itself."""
        labels = jnp.broadcast_to(batch["label"], logits.shape[:2])
        losses = jax.vmap(
            lambda one, label: cross_entropy(one, label, label_smoothing=self.label_smoothing)
        )(logits, labels)
        terms = {"cross_entropy": _term(jnp.sum(losses, axis=0))}
        if self.mutual_learning_weight:
            loss = mutual_learning(logits)
            terms["mutual_learning"] = _term(loss, weight=self.mutual_learning_weight)
        if self.ensemble_weight:
            loss = ensemble_distillation(logits, temperature=self.logit_temperature)
            terms["ensemble"] = _term(loss, weight=self.ensemble_weight)
        return terms

    def _contrast_terms(
        self, embeddings: Float[Array, "n b d"], labels: Int[Array, "b"]
    ) -> dict[str, LossTerm]:
        """The terms that couple the examples of a batch."""
        if not any(self._contrast_weights.values()):
            return {}
        losses = mutual_contrastive(
            embeddings,
            labels,
            temperature=self.temperature,
            soft_temperature=self.soft_temperature,
            groups=self.contrast_groups,
        )
        return {
            name: _term(getattr(losses, name), weight=weight, accumulable=False)
            for name, weight in self._contrast_weights.items()
            if weight
        }

    def _figures(
        self, logits: Float[Array, "n b k"], labels: Int[Array, "b"], mask: Float[Array, "b"]
    ) -> dict[str, tuple[Array, Array]]:
        right = (jnp.argmax(logits, axis=-1) == labels[None]) * mask[None]
        figures = {"accuracy": (jnp.mean(right, axis=0), mask)}
        for i in range(self.num_networks):
            figures[f"network{i}_accuracy"] = (right[i], mask)
        if any(self._contrast_weights.values()):
            alike = labels.reshape(self.contrast_groups, -1)
            count = jnp.sum(alike[:, :, None] == alike[:, None, :], axis=-1).reshape(-1)
            figures["with_positive"] = ((count > 1) * mask, mask)
        return figures

    @property
    def _contrast_weights(self) -> dict[str, float]:
        return {name: getattr(self, f"{name}_weight") for name in MutualContrastive._fields}

    def _normalize(self, image: Array) -> Float[Array, "b h w 3"]:
        return normalize_image(image, mean=self.image_mean, std=self.image_std)


def _term(loss: Array, *, weight: float = 1.0, accumulable: bool = True) -> LossTerm:
    return LossTerm(sum=loss, count=jnp.ones_like(loss), weight=weight, accumulable=accumulable)
