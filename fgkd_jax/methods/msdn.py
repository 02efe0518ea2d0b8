"""MSDN: zero-shot recognition by two sub-nets that attend to attributes, distilled mutually.

Chen, Hong, Xie, Wang, Peng, Ding and Shao, "MSDN: Mutually semantic distillation network for
zero-shot learning", CVPR 2022.

    region features -> text to image: each attribute attends to regions -> attributes of the image
                    -> image to text: each region attends to attributes -> attributes of the image
    attributes of the image . attributes of each class -> scores: cross-entropy with the label,
        calibration towards unseen classes, and distillation between the scores of both

No image of an unseen class is needed: what is learned is how attributes look, and a class is known
by its attributes. At test both scores are added with fixed weights.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import jax.numpy as jnp
import numpy as np

from fgkd_jax.errors import UserError, nearest
from fgkd_jax.losses.zero_shot import (
    attribute_cross_entropy,
    attribute_ranking,
    calibration_bias,
    self_calibration,
    self_calibration_per_example,
    semantic_distillation,
    semantic_distillation_as_printed,
)
from fgkd_jax.methods.mutual import loss_term, masked
from fgkd_jax.models.attribute_attention import AttributeAttention, SubnetOutputs
from fgkd_jax.protocols import LossOutput, LossTerm, split_variables
from fgkd_jax.typing import Array, Batch, Float, Key, Variables

SUBNETS = ("text_to_image", "image_to_text")
"""The sub-nets, in the order of `fusion`."""

CONSTANTS = "constants"
"""The collection of what is known of classes: `attributes` float32 [k, a], `seen` bool [k]."""


@dataclasses.dataclass(frozen=True)
class MSDN:
    """Mutually semantic distillation of two sub-nets on region features.

    loss = sum over sub-nets (label loss + calibration_weight calibration)
    + distillation_weight distillation

    The defaults are those released for CUB; `msdn_presets` has the others. Where the paper prints
    something else, the released form is the default, for the published figures were made with it,
    and the printed one an option: `label_classes`, `calibration`, `distillation`, `swap_axes` and
    `relate_regions`. Nothing is behind `stop_gradient`.

    Attributes:
      num_classes: seen and unseen classes; taken from the data set where None.
      num_attributes: attributes of a class; likewise.
      word_size: dimensions of the word vectors; likewise.
      subnets: which sub-nets there are, of `SUBNETS`. One alone has no distillation, and its scores
        are the prediction.
      word_vectors: what stands for an attribute. `given`: the vector of its name, of length one,
        from the data set. `one_hot`: an axis of its own, where there are no vectors; attributes
        then share nothing, which is what word vectors are worth being compared with. Random
        vectors would share by chance.
      train_words: whether these vectors are trained.
      clip_attributes: whether negative attributes of classes count as 0. In any case a class's
        attributes are scaled to length one.
      centre_attributes: whether classes are told by what they differ in from the mean of the seen
        ones, which is taken off before the scaling; not in the paper. What all birds share then
        counts for nothing.
      bias: added to the scores of unseen classes and taken from those of seen ones, in training and
        at test (`calibration_bias`).
      label_loss: `cross_entropy` or `ranking` (`attribute_ranking`).
      label_classes: which classes it is over: `all`, or `seen`.
      calibration: `batch`, the log of the mean mass on unseen classes (`self_calibration`), which
        cannot be accumulated over micro-batches; or `example`, as printed.
      calibration_weight: its weight.
      distillation: `released` (`semantic_distillation`) or `printed`.
      distillation_weight: its weight.
      fusion: weights of the scores of `SUBNETS` in the prediction, where there are both.
      normalize_features, normalize_words, sigmoid_maps, rectify_attributes, uniform_regions,
        swap_axes, relate_regions, class_network, conv: of `AttributeAttention`.
    """

    task: ClassVar[str] = "zero_shot"

    num_classes: int | None = None
    num_attributes: int | None = None
    word_size: int | None = None
    subnets: tuple[str, ...] = SUBNETS
    word_vectors: Literal["given", "one_hot"] = "given"
    train_words: bool = True
    clip_attributes: bool = False
    centre_attributes: bool = False
    bias: float = 1.0
    label_loss: Literal["cross_entropy", "ranking"] = "cross_entropy"
    label_classes: Literal["all", "seen"] = "all"
    calibration: Literal["batch", "example"] = "batch"
    calibration_weight: float = 0.1
    distillation: Literal["released", "printed"] = "released"
    distillation_weight: float = 1e-3
    fusion: tuple[float, float] = (0.9, 0.1)
    normalize_features: bool = True
    normalize_words: bool = False
    sigmoid_maps: bool = False
    rectify_attributes: bool = False
    uniform_regions: bool = False
    swap_axes: bool = False
    relate_regions: bool = False
    class_network: bool = False
    conv: bool = False

    def __post_init__(self) -> None:
        for one in self.subnets:
            if one not in SUBNETS:
                raise UserError(f"subnets has {one!r}{nearest(one, SUBNETS)}")
        if not self.subnets or len(set(self.subnets)) < len(self.subnets):
            raise UserError(f"subnets is {self.subnets}; expected one of {SUBNETS}, or both")
        for name in ("bias", "calibration_weight", "distillation_weight"):
            if not getattr(self, name) >= 0:
                raise UserError(f"{name} is {getattr(self, name)}; expected a number of at least 0")
        if not (min(self.fusion) >= 0 and sum(self.fusion) > 0):
            raise UserError(f"fusion is {self.fusion}; expected weights of at least 0, not all 0")

    @property
    def network(self) -> AttributeAttention:
        """The Linen module behind the method."""
        options: dict[str, Any] = {name: getattr(self, name) for name in _SHARED_OPTIONS}
        options |= {name: name in self.subnets for name in SUBNETS}
        one_hot = self.word_vectors == "one_hot"
        size = self.num_attributes if one_hot else self.word_size
        return AttributeAttention(word_size=size or 1, **options)

    def frozen_parameters(self) -> tuple[str, ...]:
        """Names the words, where they are not trained.

        Returns:
          Regular expressions over parameter paths.
        """
        return () if self.train_words else ("^words$",)

    def describe(
        self,
        attributes: Float[np.ndarray, "k a"],
        seen: np.ndarray,
        word_vectors: Float[np.ndarray, "a v"] | None,
        *,
        class_names: Sequence[str],
    ) -> dict[str, dict[str, np.ndarray]]:
        """Computes what is known of classes and of words before training, on the host.

        Args:
          attributes: of each class.
          seen: bool [k], whether training has images of the class.
          word_vectors: of each attribute's name; None where there are none.
          class_names: for messages.

        Returns:
          `constants`, and of `params` the `words`; rows of all of length one.

        Raises:
          UserError: word vectors are missing or zero, a class has no attribute, or no class is
            seen, or unseen.
        """
        if word_vectors is None and self.word_vectors == "given":
            raise UserError(
                "the attributes have no word vectors; expected some with the data set, or "
                "method.word_vectors=one_hot"
            )
        for name, flags in (("seen", seen), ("unseen", ~seen)):
            if not flags.any():
                raise UserError(f"none of {len(seen)} classes is {name}; expected at least one")
        if self.clip_attributes:
            attributes = np.maximum(attributes, 0)
        for i in np.flatnonzero(~attributes.any(axis=1))[:1]:
            above = "above" if self.clip_attributes else "other than"
            raise UserError(f"class {class_names[i]!r} has no attribute {above} 0")
        if self.centre_attributes:
            attributes = attributes - attributes[seen].mean(axis=0)
            for i in np.flatnonzero(~attributes.any(axis=1))[:1]:
                raise UserError(f"class {class_names[i]!r} has just the mean attributes")
        if self.word_vectors == "one_hot" or word_vectors is None:
            word_vectors = np.eye(attributes.shape[1], dtype=np.float32)
        for i in np.flatnonzero(~word_vectors.any(axis=1))[:1]:
            raise UserError(f"the word vector of attribute {i} is zero; expected a direction")
        return {
            CONSTANTS: {"attributes": _unit_rows(attributes), "seen": seen},
            "params": {"words": _unit_rows(word_vectors)},
        }

    def init(self, key: Key[Array, ""], batch: Batch) -> Variables:
        """Initialises the sub-nets.

        Args:
          key: a typed PRNG key.
          batch: with `features` [b, h, w, f].

        Returns:
          `params` with random words, `constants` of no class, which those of `describe` are to
          replace, and with `conv` `batch_stats`.
        """
        classes = self.num_classes or 1
        attributes = jnp.zeros((classes, self.num_attributes or 1))
        variables = self.network.init(key, batch["features"], attributes, train=False)
        known = {"attributes": attributes, "seen": jnp.zeros((classes,), bool)}
        return {**variables, CONSTANTS: known}

    def loss(
        self, variables: Variables, batch: Batch, key: Key[Array, ""], *, train: bool
    ) -> LossOutput:
        """Computes the loss terms.

        Args:
          variables: as `init` returns them, with the `constants` of the data set.
          batch: `features` [b, h, w, f], `label` int [b] and `mask` bool [b].
          key: not used: nothing is random.
          train: whether batch statistics are in training mode.

        Returns:
          By sub-net `<subnet>_<label_loss>` and `<subnet>_calibration`; `distillation`; those of
          weight 0 left out. The new batch statistics. The figures `accuracy`, among seen classes,
          and `unseen_share`, of examples that are taken for an unseen class.
        """
        del key
        outputs, state = self._run(variables, batch, train=train)
        seen = variables[CONSTANTS]["seen"]
        bias = calibration_bias(seen, strength=self.bias)
        scores = {name: one.scores + bias[None] for name, one in outputs.items()}
        classes = seen if self.label_classes == "seen" else None
        terms = {}
        for name, one in scores.items():
            label_loss = _LABEL_LOSSES[self.label_loss](one, batch["label"], bias, classes)
            terms[f"{name}_{self.label_loss}"] = loss_term(label_loss)
            if self.calibration_weight:
                terms[f"{name}_calibration"] = _CALIBRATIONS[self.calibration](
                    one, ~seen, batch["mask"], self.calibration_weight
                )
        if len(scores) == 2 and self.distillation_weight:
            apart = _DISTILLATIONS[self.distillation](*scores.values())
            terms["distillation"] = loss_term(apart, weight=self.distillation_weight)
        per_example = {name: term for name, term in terms.items() if jnp.ndim(term.sum)}
        fused, mask = self._fuse(scores), batch["mask"].astype(jnp.float32)
        right = jnp.argmax(jnp.where(seen[None], fused, -jnp.inf), axis=1) == batch["label"]
        figures = {
            "accuracy": (right * mask, mask),
            "unseen_share": (~seen[jnp.argmax(fused, axis=1)] * mask, mask),
        }
        return {**terms, **masked(per_example, batch["mask"])}, state, figures

    def predict(self, variables: Variables, batch: Batch) -> dict[str, Array]:
        """Scores all classes, seen and unseen.

        Args:
          variables: as `init` returns them, with the `constants` of the data set.
          batch: `features` [b, h, w, f].

        Returns:
          `scores` float32 [b, k], those of the sub-nets added with the weights `fusion`, `bias`
          included; `subnet_scores` [s, b, k] of each; `attributes` [b, a], what the image shows of
          each, fused likewise; and `attention` [b, a, h, w], the share of each region in an
          attribute, by the first of the sub-nets.
        """
        outputs, _ = self._run(variables, batch, train=False)
        bias = calibration_bias(variables[CONSTANTS]["seen"], strength=self.bias)
        scores = {name: one.scores + bias[None] for name, one in outputs.items()}
        weights = next(outputs[name] for name in SUBNETS if name in outputs).attention
        total = jnp.sum(weights, axis=(1, 2), keepdims=True)
        share = weights / jnp.maximum(total, jnp.finfo(weights.dtype).tiny)
        return {
            "scores": self._fuse(scores),
            "subnet_scores": jnp.stack(list(scores.values())),
            "attributes": self._fuse({name: one.attributes for name, one in outputs.items()}),
            "attention": jnp.moveaxis(share, -1, 1),
        }

    def _run(
        self, variables: Variables, batch: Batch, *, train: bool
    ) -> tuple[dict[str, SubnetOutputs], dict[str, Any]]:
        """The sub-nets' outputs and the new model state."""
        _, state, _ = split_variables(variables)
        network: Any = self.network
        outputs, new = network.apply(
            {"params": variables["params"], **state},
            batch["features"],
            variables[CONSTANTS]["attributes"],
            train=train,
            mutable=list(state) if train else [],
        )
        return outputs, {**state, **new}

    def _fuse(self, values: Mapping[str, Array]) -> Array:
        """The sum by `fusion`; of one sub-net its own."""
        if len(values) == 1:
            return next(iter(values.values()))
        weights = dict(zip(SUBNETS, self.fusion, strict=True))
        parts = [weights[name] * value for name, value in values.items()]
        return jnp.sum(jnp.stack(parts), axis=0)


_SHARED_OPTIONS = tuple(
    field.name
    for field in dataclasses.fields(MSDN)
    if field.name in AttributeAttention.__dataclass_fields__ and field.name != "word_size"
)
"""Options of the method that are those of its module."""


def _cross_entropy(scores: Array, labels: Array, bias: Array, classes: Array | None) -> Array:
    return attribute_cross_entropy(scores, labels, bias, classes=classes)


def _ranking(scores: Array, labels: Array, bias: Array, classes: Array | None) -> Array:
    del bias  # which stays in the scores, as released
    return attribute_ranking(scores, labels, classes=classes)


def _of_batch(scores: Array, unseen: Array, mask: Array, weight: float) -> LossTerm:
    value = self_calibration(scores, unseen, where=mask)
    count = jnp.any(mask).astype(jnp.float32)
    return LossTerm(sum=value, count=count, weight=weight, accumulable=False)


def _of_examples(scores: Array, unseen: Array, mask: Array, weight: float) -> LossTerm:
    del mask  # taken off with that of the other terms
    return loss_term(self_calibration_per_example(scores, unseen), weight=weight)


_LABEL_LOSSES: Mapping[str, Callable[[Array, Array, Array, Array | None], Array]] = {
    "cross_entropy": _cross_entropy,
    "ranking": _ranking,
}
_CALIBRATIONS: Mapping[str, Callable[[Array, Array, Array, float], LossTerm]] = {
    "batch": _of_batch,
    "example": _of_examples,
}
_DISTILLATIONS: Mapping[str, Callable[[Array, Array], Array]] = {
    "released": semantic_distillation,
    "printed": semantic_distillation_as_printed,
}


def _unit_rows(x: np.ndarray) -> np.ndarray:
    """Rows of length one, in at least float32; none is zero."""
    wide = x.astype(np.float64)
    unit = wide / np.linalg.norm(wide, axis=1, keepdims=True)
    return unit.astype(np.result_type(x.dtype, np.float32))
