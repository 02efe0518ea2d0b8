"""DeFeat: a detector learns from a frozen one, on objects and on background apart.

    image -> student -> pyramid -> heads: the losses of a detector
                           |  1x1 convolutions
          -> teacher -> pyramid: squared errors, inside of objects and outside
                           |  the teacher's proposals
                         heads of both: divergence of class scores, on objects and on background

Source: Guo et al., "Distilling object detectors via decoupled features", CVPR 2021. With other
masks and weights the same is whole-feature imitation, fine-grained imitation and the like.
"""

import abc
import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fgkd_jax.losses.decoupled import DecoupledLogits
from fgkd_jax.methods.defeat_options import DecoupledOptions, strides_of
from fgkd_jax.methods.detector import PYRAMID, Detector
from fgkd_jax.methods.detector_network import FeatureMaps, Levels, Maps
from fgkd_jax.methods.map_comparison import ComparedMaps, Terms, compare_maps, map_size
from fgkd_jax.methods.scenes import dropped_boxes, objects, term
from fgkd_jax.methods.teaching_masks import MASKS, Masks, Scene
from fgkd_jax.models.adaptation import Adapters
from fgkd_jax.models.backbones import backbone_from, feature_shapes
from fgkd_jax.ops.box_masks import box_mask, resize_mask
from fgkd_jax.ops.regions import pyramid_levels
from fgkd_jax.parts import part
from fgkd_jax.protocols import FROZEN, Exported, LossOutput, Metric
from fgkd_jax.typing import Array, Batch, Bool, Float, Key, Variables

HEADS_COMPARED = "heads compared"
"""A part of a step, see `fgkd_jax.parts`."""

_NECK, _STAGES = "neck_adapters", "stage_adapters"
_SIDE = 64
_RELEASED_BASE = 56.0
"""Sides of boxes on the first level, in the released code whatever the detector."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decoupled(DecoupledOptions, abc.ABC):
    """A detector that is taught; which detector it is, a subclass says.

    The teacher sees the same images, after the same change of colours, in evaluation mode, and no
    gradient reaches it. Its weights are a file, `pretrained.teacher`, that `fgkd export` wrote.
    """

    @property
    def _adapters(self) -> dict[str, tuple[Adapters, tuple[int, ...]]]:
        """Adapters by their name among the parameters, with the channels that they read."""
        neck = Adapters(
            (self.teaching.pyramid_features,) * len(self.strides),
            size=self.adapter_size,
            std=self.adapter_std,
        )
        found = {_NECK: (neck, (self.pyramid_features,) * len(self.strides))}
        if self.compared_stages:
            ours, theirs = (
                _channels_of(method, self.compared_stages) for method in (self, self.teaching)
            )
            stages = Adapters(theirs, size=self.adapter_size, std=self.adapter_std, relu=True)
            found[_STAGES] = stages, ours
        return found

    def init(self, key: Key[Array, ""], batch: Batch) -> Variables:
        """Initialises both detectors and the adapters.

        Args:
          key: a typed PRNG key.
          batch: with `image` [b, h, w, 3], of any size.

        Returns:
          `params`, those of the student and the adapters', where the backbone normalises by batch
          statistics `batch_stats`, and `frozen`, the teacher's collections, to be replaced by
          trained ones.
        """
        student_key, teacher_key, *keys = jax.random.split(key, 4)
        student = self.student.init(student_key, batch)
        params = dict(student["params"])
        for one, (name, (module, channels)) in zip(keys, self._adapters.items(), strict=False):
            maps = [jnp.zeros((1, 1, 1, count)) for count in channels]
            params[name] = module.init(one, maps)["params"]
        return {**student, "params": params, FROZEN: self.teaching.init(teacher_key, batch)}

    def loss(
        self, variables: Variables, batch: Batch, key: Key[Array, ""], *, train: bool
    ) -> LossOutput:
        """Computes the losses of each image.

        Args:
          variables: as `init` returns them.
          batch: of detection.
          key: a typed PRNG key for this step.
          train: whether colour jitter and the student's batch statistics are in training mode; the
            teacher's never are.

        Returns:
          The terms of the detector; `neck_object_0`, `neck_background_0` and so on, of each level;
          `stage_object_1` and so on, of each compared stage; `head_object` and `head_background`.
          The student's new batch statistics. The figures of the detector.
        """
        colours, samples = jax.random.split(key)
        own, frozen = _own(variables), variables[FROZEN]
        again = jax.random.clone(colours)  # the teacher sees the colours that the student sees
        seen = self.maps(own, batch, colours, recolour=train, train=train)
        maps, state = part(PYRAMID, seen)
        taught, _ = self.teaching.maps(frozen, batch, again, recolour=train, train=False)
        taught = part("teacher's backbone and pyramid", jax.lax.stop_gradient(taught))
        terms, figures = self.taught_losses(own, frozen, maps.levels, taught.levels, batch, samples)
        features = self.feature_losses(variables["params"], maps, taught, batch)
        terms |= part("features compared", features)
        return terms, state, {**figures, "dropped_boxes": dropped_boxes(batch)}

    @abc.abstractmethod
    def taught_losses(
        self,
        own: Variables,
        frozen: Variables,
        levels: Levels,
        taught: Maps,
        batch: Batch,
        key: Key[Array, ""],
    ) -> tuple[Terms, dict[str, Metric]]:
        """Computes the losses of the heads: the detector's, and what the teacher's heads say.

        Args:
          own: the student's collections.
          frozen: the teacher's.
          levels: the student's pyramid.
          taught: the teacher's.
          batch: of detection.
          key: a typed PRNG key for what is sampled.

        Returns:
          Terms per image, and figures to log.
        """

    def feature_losses(
        self, params: Variables, maps: FeatureMaps, taught: FeatureMaps, batch: Batch
    ) -> Terms:
        """Compares pyramids, and stages of backbones.

        Args:
          params: with those of the adapters.
          maps: the student's.
          taught: the teacher's.
          batch: of detection.

        Returns:
          Terms per image. Every level and every stage is divided by cells of its own, as released,
          so every one has its own terms.
        """
        pyramids = ComparedMaps(
            "neck",
            tuple(range(len(maps.levels))),
            _NECK,
            maps.levels,
            taught.levels,
            MASKS[self.mask](self.scene(maps.levels, batch)),
            self.strides,
            (self.object_weight, self.background_weight),
        )
        terms = self._compare(pyramids, params, batch)
        if not self.compared_stages:
            return terms
        ours, theirs = (tuple(m.stages[i] for i in self.compared_stages) for m in (maps, taught))
        stages = ComparedMaps(
            "stage",
            self.compared_stages,
            _STAGES,
            ours,
            theirs,
            self._stage_masks(maps, batch),
            strides_of(self, self.compared_stages),
            (self.stage_object_weight, self.stage_background_weight),
        )
        return terms | self._compare(stages, params, batch)

    def _compare(self, found: ComparedMaps, params: Variables, batch: Batch) -> Terms:
        adapters: Any = self._adapters[found.adapters][0]
        adapted = adapters.apply({"params": params[found.adapters]}, found.student)
        return compare_maps(found._replace(student=adapted), batch, padding=self.count_padding)

    def _stage_masks(self, maps: FeatureMaps, batch: Batch) -> Masks:
        """All objects on every compared stage."""
        boxes, _, wanted = objects(batch)
        sizes = [map_size(maps.stages[index]) for index in self.compared_stages]
        if self.released_masks:
            first = map_size(maps.levels[0])
            painted = box_mask(boxes, wanted, stride=self.strides[0], size=first, single_cell=True)
            return tuple(resize_mask(painted, size=size) for size in sizes)
        strides = strides_of(self, self.compared_stages)
        return tuple(
            box_mask(boxes, wanted, stride=stride, size=size)
            for stride, size in zip(strides, sizes, strict=True)
        )

    @property
    @abc.abstractmethod
    def object_levels(self) -> tuple[int, float]:
        """Levels that have objects, and the `base_size` of `pyramid_levels`, of this detector."""

    def scene(self, levels: Levels, batch: Batch) -> Scene:
        """Assigns the objects of a batch to the levels of a pyramid.

        Args:
          levels: the pyramid.
          batch: of detection.

        Returns:
          What masks are made of.
        """
        found, anchors = objects(batch), self.anchors(levels, batch)
        released = len(levels), _RELEASED_BASE
        count, base = released if self.released_masks else self.object_levels
        ends = np.cumsum(anchors.level_sizes)
        return Scene(
            objects=found,
            levels=pyramid_levels(
                found.boxes, num_levels=count, base_size=base, inclusive=self.released_masks
            ),
            strides=self.strides,
            sizes=tuple(map(map_size, levels)),
            anchors=tuple(jnp.split(anchors.boxes, ends[:-1])),
            single_cell=self.released_masks,
        )

    @property
    def compares_heads(self) -> bool:
        """Whether the heads are compared."""
        return self.head_object_weight > 0 or self.head_background_weight > 0

    def head_terms(
        self,
        compare: Callable[..., DecoupledLogits],
        scores: tuple[Float[Array, "b p k"], Float[Array, "b p k"]],
        positive: Bool[Array, "b p"],
        valid: Bool[Array, "b p"],
        batch: Batch,
    ) -> Terms:
        """Compares what the heads say of the same boxes.

        Args:
          compare: `decoupled_logits` or `decoupled_scores`.
          scores: the student's and the teacher's logits.
          positive: boxes on objects.
          valid: boxes that count.
          batch: of detection.

        Returns:
          `head_object` and `head_background`, those that have a weight; no gradient reaches the
          teacher.
        """
        temperatures = {
            "object_temperature": self.object_temperature,
            "background_temperature": self.background_temperature,
        }
        parts = jax.vmap(lambda s, t, one, two: compare(s, t, one, valid=two, **temperatures))(
            scores[0], jax.lax.stop_gradient(scores[1]), positive, valid
        )
        weights = self.head_object_weight, self.head_background_weight
        return {
            f"head_{name}": term((total.sum(axis=1), count.sum(axis=1)), batch, weight=weight)
            for name, (total, count), weight in zip(parts._fields, parts, weights, strict=True)
            if weight
        }

    def predict(self, variables: Variables, batch: Batch) -> dict[str, Array]:
        """Finds objects by the student; the teacher is not needed.

        Args:
          variables: as `init` returns them.
          batch: `image` uint8 [b, h, w, 3] and, where images are padded, `valid_size` int [b, 2].

        Returns:
          As of the detector.
        """
        return super().predict(_own(variables), batch)

    def export(self, variables: Variables, *, network: int = 0) -> Exported:
        """Takes the student out, without adapters.

        Args:
          variables: as `init` returns them.
          network: 0, the only one that is trained.

        Returns:
          The student, a detector like any other.

        Raises:
          UserError: `network` is not 0.
        """
        return self.student.export(_own(variables), network=network)


def _own(variables: Variables) -> dict[str, Any]:
    """The student's collections."""
    params = {k: v for k, v in variables["params"].items() if k not in (_NECK, _STAGES)}
    return {**{k: v for k, v in variables.items() if k != FROZEN}, "params": params}


def _channels_of(method: Detector, stages: tuple[int, ...]) -> tuple[int, ...]:
    shapes = feature_shapes(backbone_from(method.backbone), (_SIDE, _SIDE))
    return tuple(shapes[index][2] for index in stages)
