"""TASN: trilinear attention sampling, and distillation from a detail view to the whole.

Zheng, Fu, Zha and Luo, "Looking for the devil in the details: learning trilinear attention sampling
network for fine-grained image recognition", CVPR 2019.

    small copy of the image -> attention net -> one attention map per channel
    mean of the maps   -> sampled structure image -> master   \\  one network,
    one map at random  -> sampled detail image    -> part     /   two classifiers and a shared one
    the part's softened probabilities -> the master

At test time the structure image and the master are all there is. Attention is not trained through
the sampler: as in the released code, no gradient leaves it towards the attention net.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from fgkd_jax.errors import UserError, nearest
from fgkd_jax.losses.classification import cross_entropy
from fgkd_jax.losses.distillation import soft_target_cross_entropy
from fgkd_jax.methods.classifier import check_network, exported_classifier
from fgkd_jax.methods.image_options import ImageOptions
from fgkd_jax.methods.sampling import GRIDS, SOURCES, Positions, SamplingOptions
from fgkd_jax.methods.tasn_network import TASNNetwork
from fgkd_jax.models.backbones import backbone_from
from fgkd_jax.ops.attention import detail_map, structure_map, trilinear_attention
from fgkd_jax.ops.resample import corner_aligned_resize, separable_resample
from fgkd_jax.protocols import Exported, LossOutput, LossTerm, split_variables
from fgkd_jax.typing import Array, Batch, Float, Key, Variables

PRESETS: Mapping[str, Mapping[str, Any]] = {
    "default": {},
    "paper": {"attention_scale": 1.0},
    "reference": {
        "squared_structure": True,
        "grid": "reference",
        "attention_bias": True,
        "teacher_gradient": True,
    },
}
"""Options of `TASN` by preset: ours; the paper's equations on our grid; the released MXNet code."""


def tasn_preset(name: str) -> dict[str, Any]:
    """Looks the options of a preset up.

    Args:
      name: a key of `PRESETS`.

    Returns:
      Options of `TASN`, for a config to complete.

    Raises:
      UserError: there is no such preset.
    """
    if name not in PRESETS:
        raise UserError(f"TASN has no preset {name!r}{nearest(name, PRESETS)}")
    return dict(PRESETS[name])


@dataclasses.dataclass(frozen=True)
class TASN(ImageOptions):
    """Trilinear attention sampling with distillation from part to master.

    loss = attention_weight CE(attention net) + view_weight (CE(part) + CE(master))
    + auxiliary_weight (CE(part, shared) + CE(master, shared))
    + distill_weight H(softmax(part / T), softmax(master / T))

    The defaults are the released weights and T = 10, without a factor T^2. The mask by which the
    released code means to drop duplicate channels scrambles them, and is not reproduced.

    The colour jitter is the same for the three small images of an example.

    Attributes, besides those of `ImageOptions`:
      num_classes: number of classes; taken from the data set where None.
      backbone: `name` and options of the network that part and master share.
      attention_backbone: `name` and options of the attention net's. The default is the paper's
        ResNet-18 whose last map has a stride of 8.
      attention_stages: how many stages of it the attention net has, the stem among them; 0 for all.
        Attention needs a fine map: a stride of 8 or 16 where a network ends at 32.
      attention_size: side of the attention net's input, to which the image is shrunk.
      out_size: side of the sampled images.
      sampling: where density comes from: `attention`; for controls `uniform` (a plain resize) or
        `box` (the annotated box, `bbox` in the batch).
      grid: `half_pixel`, our unbiased grid; `reference`, the released one, which resizes the
        attention to the (square) image and shapes both axes together.
      max_density: cap of the density along an axis, in multiples of uniform.
      iterations: rounds of the limiter of the `reference` grid.
      attention_scale: factor in the first softmax of the attention; 1 in the paper.
      dilated_head: end the attention net with the dilated convolutions of `AttentionHead`.
      attention_bias: whether those have biases.
      squared_structure: square the structure map: it magnifies the object more, and cuts more of
        it off.
      attention_weight: weight of the attention net's cross-entropy.
      view_weight: weight of the cross-entropies of part and master, by their own classifiers.
      auxiliary_weight: weight of those by the shared classifier.
      distill_weight: weight of the distillation, the paper's lambda.
      temperature: T of the distillation.
      teacher_gradient: let the distillation move the part as well, as the released code does; by
        default the part is a fixed target for it.
      dropout: rate on the pooled features of part and master, in [0, 1).
      label_smoothing: of every cross-entropy, in [0, 1).
    """

    task: ClassVar[str] = "sampled_classification"

    num_classes: int | None = None
    backbone: Mapping[str, Any] = dataclasses.field(default_factory=lambda: {"name": "resnet50"})
    attention_backbone: Mapping[str, Any] = dataclasses.field(
        default_factory=lambda: {"name": "resnet18", "strides": (1, 1, 2, 1)}
    )
    attention_stages: int = 0
    attention_size: int = 224
    out_size: int = 224
    sampling: str = "attention"
    grid: str = "half_pixel"
    max_density: float = 4.0
    iterations: int = 5
    attention_scale: float = 7.0
    dilated_head: bool = True
    attention_bias: bool = False
    squared_structure: bool = False
    attention_weight: float = 1.0
    view_weight: float = 0.5
    auxiliary_weight: float = 0.5
    distill_weight: float = 1.0
    temperature: float = 10.0
    teacher_gradient: bool = False
    dropout: float = 0.0
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        for name in ("dropout", "label_smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; expected it in [0, 1)")
        for name in ("attention_size", "out_size", "max_density"):
            if not getattr(self, name) >= 1:
                raise UserError(f"{name} is {getattr(self, name)}; expected at least 1")
        if not self.temperature > 0:
            raise UserError(f"temperature is {self.temperature}; expected a number above 0")
        for name, choices in (("sampling", SOURCES), ("grid", GRIDS)):
            if getattr(self, name) not in choices:
                value = getattr(self, name)
                raise UserError(f"{name} is {value!r}{nearest(value, choices)}")
        backbone_from(self.backbone, owner="backbone")
        stages = backbone_from(self.attention_backbone, owner="attention_backbone").num_stages
        if not 0 <= self.attention_stages <= stages:
            raise UserError(
                f"attention_stages is {self.attention_stages}; expected 0 (all) to {stages}"
            )

    @property
    def network(self) -> TASNNetwork:
        """The Linen module behind the method."""
        return TASNNetwork(
            attention_backbone=backbone_from(self.attention_backbone, owner="attention_backbone"),
            backbone=backbone_from(self.backbone, owner="backbone"),
            num_classes=self.num_classes or 1,
            attention_stages=self.attention_stages,
            dilated_head=self.dilated_head,
            attention_bias=self.attention_bias,
            dropout=self.dropout,
        )

    def frozen_parameters(self) -> tuple[str, ...]:
        """Names no parameters: all are trained.

        Returns:
          Nothing.
        """
        return ()

    def init(self, key: Key[Array, ""], batch: Batch) -> Variables:
        """Initialises all networks.

        Args:
          key: a typed PRNG key.
          batch: with `image` [b, h, w, 3].

        Returns:
          `params` and, where the backbones normalise by batch statistics, `batch_stats`.
        """
        del batch
        small = jnp.zeros((1, self.attention_size, self.attention_size, 3))
        views = jnp.zeros((1, 2, self.out_size, self.out_size, 3))
        return self.network.init(key, small, views)

    def loss(
        self, variables: Variables, batch: Batch, key: Key[Array, ""], *, train: bool
    ) -> LossOutput:
        """Computes the six loss terms of each example.

        Args:
          variables: as `init` returns them.
          batch: `image` uint8 [b, h, w, 3], `label` int [b], `id` int [b], `mask` bool [b], and
            `bbox` [b, 4] where `sampling` is `box`.
          key: a typed PRNG key for this step.
          train: whether colour jitter, dropout and batch statistics are in training mode.

        Returns:
          The terms, the new batch statistics, and the figures `accuracy` (of the master),
          `part_accuracy` and `attention_accuracy`. Attention that is not finite makes the
          distillation of its example NaN, so that the run stops and names it.
        """
        detail_key, jitter_key, dropout_key, view_key = jax.random.split(key, 4)
        colour = self._jitter(jitter_key, batch["id"]) if train else lambda image: image
        _, state, _ = split_variables(variables)

        def apply(inputs: Array, name: str, rng: Array) -> Any:
            return self.network.apply(
                {**variables, **state},
                inputs,
                train=train,
                method=name,
                mutable=list(state) if train else [],
                rngs={"dropout": rng},
            )

        small = self.normalize(colour(self._shrink(batch["image"])))
        (attention_logits, features), new = apply(small, "attend", dropout_key)
        state = {**state, **new}
        attention = self._attention(features)
        maps = detail_map(detail_key, attention, batch["id"]), structure_map(attention)
        detail, structure = (
            colour(self._sample(batch, one, squared=squared)[0])
            for one, squared in zip(maps, (False, self.squared_structure), strict=True)
        )
        # Stacked, not concatenated along the batch: sharded examples stay where they are.
        views = jnp.stack([self.normalize(detail), self.normalize(structure)], axis=1)
        logits, new = apply(views, "classify_views", view_key)
        state = {**state, **new}
        teacher = logits["part"]
        if not self.teacher_gradient:
            teacher = jax.lax.stop_gradient(teacher)
        distillation = soft_target_cross_entropy(
            logits["master"], teacher, temperature=self.temperature
        )
        seen = jnp.all(jnp.isfinite(attention), axis=(1, 2, 3))
        losses = {"distillation": jnp.where(seen, distillation, jnp.nan)}
        for name, value in {"attention": attention_logits, **logits}.items():
            losses[name] = cross_entropy(
                value, batch["label"], label_smoothing=self.label_smoothing
            )
        mask = batch["mask"].astype(jnp.float32)
        terms = {
            name: LossTerm(
                sum=jnp.where(batch["mask"], losses[name], 0.0), count=mask, weight=weight
            )
            for name, weight in self._weights.items()
        }
        figures = {
            name: ((jnp.argmax(value, axis=-1) == batch["label"]) * mask, mask)
            for name, value in (
                ("accuracy", logits["master"]),
                ("part_accuracy", logits["part"]),
                ("attention_accuracy", attention_logits),
            )
        }
        return terms, state, figures

    def predict(self, variables: Variables, batch: Batch) -> dict[str, Array]:
        """Predicts the class of each image by the master on its structure image.

        Args:
          variables: as `init` returns them.
          batch: `image` uint8 [b, h, w, 3], and `bbox` where `sampling` is `box`.

        Returns:
          `logits` and `probabilities`, float32 [b, k]; `attention` [b, ah, aw], the structure map;
          `sampled_rows` and `sampled_columns` [b, out_size], the pixels of the image that the
          structure image was read at; `structure` [b, out_size, out_size, 3] in 0..255.
        """
        attention = self._attended(variables, batch)
        maps = structure_map(attention)
        structure, (rows, columns) = self._sample(batch, maps, squared=self.squared_structure)
        network: Any = self.network
        logits = network.apply(variables, self.normalize(structure), method="classify_structure")
        return {
            "logits": logits,
            "probabilities": jax.nn.softmax(logits),
            "attention": maps,
            "sampled_rows": rows,
            "sampled_columns": columns,
            "structure": structure,
        }

    def explain(self, variables: Variables, batch: Batch, key: Key[Array, ""]) -> dict[str, Array]:
        """Shows what the network looks at.

        Args:
          variables: as `init` returns them.
          batch: `image` uint8 [b, h, w, 3] and `id` int [b].
          key: chooses the channel of the detail map.

        Returns:
          What `predict` returns, and `detail_attention`, `detail`, `detail_rows` and
          `detail_columns` likewise for the detail image.
        """
        maps = detail_map(key, self._attended(variables, batch), batch["id"])
        detail, (rows, columns) = self._sample(batch, maps, squared=False)
        return {
            **self.predict(variables, batch),
            "detail_attention": maps,
            "detail": detail,
            "detail_rows": rows,
            "detail_columns": columns,
        }

    def export(self, variables: Variables, *, network: int = 0) -> Exported:
        """Takes the master out, without the attention net and the sampler in front of it.

        Args:
          variables: as `init` returns them.
          network: 0, the only one.

        Returns:
          The master, as a classifier of images like the structure images, of `out_size`.

        Raises:
          UserError: `network` is not 0.
        """
        check_network(network, count=1)
        return exported_classifier(
            self,
            variables,
            backbone=self.backbone,
            parts={"backbone": "backbone", "head": "master_classifier"},
            image_size=(self.out_size, self.out_size),
        )

    @property
    def _weights(self) -> dict[str, float]:
        return {
            "attention": self.attention_weight,
            "part": self.view_weight,
            "master": self.view_weight,
            "part_auxiliary": self.auxiliary_weight,
            "master_auxiliary": self.auxiliary_weight,
            "distillation": self.distill_weight,
        }

    def _attended(self, variables: Variables, batch: Batch) -> Float[Array, "b ah aw c"]:
        """The attention maps, in evaluation mode."""
        network: Any = self.network
        small = self.normalize(self._shrink(batch["image"]))
        return self._attention(network.apply(variables, small, train=False, method="attend")[1])

    def _attention(self, features: Array) -> Float[Array, "b ah aw c"]:
        """Trilinear attention, cut from the gradient."""
        return jax.lax.stop_gradient(trilinear_attention(features, scale=self.attention_scale))

    def _shrink(self, image: Array) -> Float[Array, "b h w 3"]:
        """The attention net's view of the image, in 0..255."""
        size = (self.attention_size, self.attention_size)
        if self.grid == "reference":
            return corner_aligned_resize(image, size=size)
        shape = (image.shape[0], *size, image.shape[3])
        return jax.image.resize(image.astype(jnp.float32), shape, "linear")

    def _sample(
        self, batch: Batch, maps: Float[Array, "b ah aw"], *, squared: bool
    ) -> tuple[Float[Array, "b s s 3"], Positions]:
        """Reads the image where a map says; returns the positions as well, in pixels."""
        image = batch["image"]
        options = SamplingOptions(
            size=self.out_size,
            max_density=self.max_density,
            iterations=self.iterations,
            squared=squared,
        )
        maps = SOURCES[self.sampling](batch, maps)
        rows, columns = GRIDS[self.grid](maps, image.shape[1:3], options)
        return separable_resample(image, rows, columns), (rows, columns)

    def _jitter(self, key: Array, ids: Array) -> Callable[[Array], Array]:
        """Changes the colours of every view of an example alike."""
        return lambda image: self.recolour(key, image, ids)
