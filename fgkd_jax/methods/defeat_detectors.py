"""DeFeat for Faster R-CNN and for RetinaNet, and the presets of both."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
from typing_extensions import override

from fgkd_jax.errors import UserError, nearest
from fgkd_jax.losses.decoupled import decoupled_logits, decoupled_scores
from fgkd_jax.methods.defeat import HEADS_COMPARED, Decoupled
from fgkd_jax.methods.detector import LOSSES, Detector
from fgkd_jax.methods.detector_network import Levels, Maps
from fgkd_jax.methods.faster_rcnn import FasterRCNN
from fgkd_jax.methods.map_comparison import Terms
from fgkd_jax.methods.retinanet import RetinaNet
from fgkd_jax.parts import part
from fgkd_jax.protocols import Metric
from fgkd_jax.typing import Array, Batch, Key, Variables


@dataclasses.dataclass(frozen=True, kw_only=True)
class DefeatFasterRCNN(Decoupled, FasterRCNN):
    """A Faster R-CNN that learns from another one.

    Both heads read the same regions: by default a sample of the teacher's proposals, with the
    labels of those regions. The released code takes the labels from the student's sample, which is
    another; and it falls back to one temperature, the object's, for both parts.

    Attributes, besides those of `Decoupled` and `FasterRCNN`:
      student_proposals: whether the regions are a sample of the student's proposals.
    """

    student_class: ClassVar[type[Detector]] = FasterRCNN

    student_proposals: bool = False

    @property
    def object_levels(self) -> tuple[int, float]:
        """Levels that have objects, and the `base_size` of `pyramid_levels`: those of regions."""
        return len(self.stages), self.region_scale * self.strides[0]

    @override
    def taught_losses(
        self,
        own: Variables,
        frozen: Variables,
        levels: Levels,
        taught: Maps,
        batch: Batch,
        key: Key[Array, ""],
    ) -> tuple[Terms, dict[str, Metric]]:
        key, regions = jax.random.split(key)
        terms, figures = part(LOSSES, self.losses(own, levels, batch, key))
        if not self.compares_heads:
            return terms, figures
        teacher: Any = self.teaching
        proposer, weights, maps = (
            (self, own, levels) if self.student_proposals else (teacher, frozen, taught)
        )
        proposals = proposer.propose(proposer.dense(weights, maps), maps, batch, train=True)
        sample = part("regions to compare", self.sample_regions(proposals, batch, regions))
        theirs, _ = part("teacher's region head", teacher.regions(frozen, taught, sample.boxes))
        ours, _ = part("region head again", self.regions(own, levels, sample.boxes))
        scores = ours, theirs
        heads = self.head_terms(decoupled_logits, scores, sample.positive, sample.valid, batch)
        return terms | part(HEADS_COMPARED, heads), figures


@dataclasses.dataclass(frozen=True, kw_only=True)
class DefeatRetinaNet(Decoupled, RetinaNet):
    """A RetinaNet that learns from another one.

    There are no proposals; anchors on objects and on background take their place, and every class
    is a yes or no of its own. No coefficients were published for it.
    """

    student_class: ClassVar[type[Detector]] = RetinaNet

    # As the student alone has them: a dataclass takes the defaults of its first base, which are
    # those of any detector.
    anchor_scale: float = RetinaNet.anchor_scale
    anchor_octaves: int = RetinaNet.anchor_octaves

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.compares_heads:
            self._check_shared("anchor_scale", "anchor_octaves", "anchor_ratios")

    @property
    def object_levels(self) -> tuple[int, float]:
        """Levels that have objects, and the `base_size` of `pyramid_levels`: nearest in size.

        The anchors of a level are spread over an octave; a box belongs where its side is within
        half an octave of their mean.
        """
        mean = (self.anchor_octaves - 1) / (2 * self.anchor_octaves)
        return len(self.strides), self.anchor_scale * self.strides[0] * 2 ** (mean - 0.5)

    @override
    def taught_losses(
        self,
        own: Variables,
        frozen: Variables,
        levels: Levels,
        taught: Maps,
        batch: Batch,
        key: Key[Array, ""],
    ) -> tuple[Terms, dict[str, Metric]]:
        del key
        found, target = self.trained(own, levels, batch)
        terms, figures = part(LOSSES, self.dense_terms(found, target, batch))
        if not self.compares_heads:
            return terms, figures
        teacher: Any = self.teaching
        theirs = part("teacher's dense head", teacher.dense(frozen, taught))
        scores = found.logits, theirs.logits
        valid = target.positive | target.negative
        heads = self.head_terms(decoupled_scores, scores, target.positive, valid, batch)
        return terms | part(HEADS_COMPARED, heads), figures


HEADLESS: Mapping[str, Any] = {"head_object_weight": 0.0, "head_background_weight": 0.0}
"""Options that leave heads out."""

TEACHING: Mapping[str, Mapping[str, Any]] = {
    "defeat": {},
    "reference": {
        "object_weight": 3.0,
        "background_weight": 12.0,
        **HEADLESS,
        "adapter_size": 3,
        "adapter_std": 1e-4,
        "count_padding": True,
        "released_masks": True,
    },
    "imitation": {
        "mask": "everything",
        "object_weight": 15.0,
        "background_weight": 0.0,
        **HEADLESS,
    },
    "object": {"background_weight": 0.0, **HEADLESS},
    "background": {"object_weight": 0.0, **HEADLESS},
    "fine_grained": {"mask": "near_anchors", "background_weight": 0.0, **HEADLESS},
    "gaussian": {"mask": "gaussian", "background_weight": 0.0, **HEADLESS},
}
"""Options by what the student takes from its teacher: DeFeat; DeFeat as released for VOC, without
heads; and, of the pyramid alone, everything (with the sum of DeFeat's weights), one part, or one
part by the masks of others."""

TEACHING_TITLES: Mapping[str, str] = {
    "defeat": "DeFeat",
    "reference": "DeFeat with the released settings",
    "imitation": "imitation of whole feature maps",
    "object": "imitation on objects",
    "background": "imitation on background",
    "fine_grained": "imitation near objects",
    "gaussian": "imitation within Gaussians of objects",
}
"""What they are called in a table."""


def teaching(name: str) -> dict[str, Any]:
    """Looks up what a student takes from its teacher.

    Args:
      name: a key of `TEACHING`.

    Returns:
      Options of `Decoupled`, for a config to complete.

    Raises:
      UserError: there is no such name.
    """
    if name not in TEACHING:
        raise UserError(f"DeFeat has no preset or comparison {name!r}{nearest(name, TEACHING)}")
    return dict(TEACHING[name])
