"""The options of DeFeat: what a detector takes from its teacher, and which teacher that is."""

import abc
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from typing_extensions import override

from fgkd_jax.errors import UserError, nearest
from fgkd_jax.methods.detector import Detector, stage_strides
from fgkd_jax.methods.teaching_masks import MASKS
from fgkd_jax.models.backbones import backbone_from


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoupledOptions(Detector, abc.ABC):
    """Options of a detector and of its teacher.

    Attributes, besides those of `Detector`:
      teacher: options in which the teacher, a detector of the same kind, differs from the student.
        Classes and changes of colours are the student's.
      mask: where the pyramids are compared, a key of `MASKS`: inside of the mask with
        `object_weight`, outside of it with `background_weight`.
      object_weight: of half the mean squared error within the mask, averaged over levels; 0 leaves
        it out.
      background_weight: likewise, outside of the mask.
      adapter_size: rows and columns of the convolutions that adapt the student's pyramid.
      adapter_std: of their first kernels as released, and then their biases start as released too;
        0 for this library's own start, see `Adapters`.
      compared_stages: of the backbone, that are compared like the pyramid, each after a convolution
        and a ReLU.
      stage_object_weight: as `object_weight`, averaged over `compared_stages`.
      stage_background_weight: likewise, outside of objects.
      head_object_weight: of the divergence of class scores on objects; 0 leaves it out.
      head_background_weight: likewise, on background.
      object_temperature: T of the scores on objects, above 0.
      background_temperature: T of those on background, above 0.
      count_padding: whether the padding of images counts as background, as released.
      released_masks: whether boxes are painted as released: on levels that are those of a Faster
        R-CNN with five of them, whatever the detector; long ones of less than one cell as one cell;
        those of the backbone's stages as enlarged or reduced cells of the first level.
    """

    student_class: ClassVar[type[Detector]]

    teacher: Mapping[str, Any] = dataclasses.field(
        default_factory=lambda: {"backbone": {"name": "resnet101", "frozen_norm": "."}}
    )
    mask: str = "boxes"
    object_weight: float = 3.0
    background_weight: float = 12.0
    adapter_size: int = 1
    adapter_std: float = 0.0
    compared_stages: tuple[int, ...] = ()
    stage_object_weight: float = 3.0
    stage_background_weight: float = 12.0
    head_object_weight: float = 2.0
    head_background_weight: float = 2.0
    object_temperature: float = 1.0
    background_temperature: float = 1.0
    count_padding: bool = False
    released_masks: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mask not in MASKS:
            raise UserError(f"mask is {self.mask!r}{nearest(self.mask, MASKS)}")
        weights = ("object_weight", "background_weight")
        self._check_least(0, *(f"{of}{name}" for of in ("", "stage_", "head_") for name in weights))
        for name in ("object_temperature", "background_temperature"):
            if not getattr(self, name) > 0:
                self._refuse(name, "a number above 0")
        if self.adapter_size < 1 or self.adapter_size % 2 == 0:
            self._refuse("adapter_size", "an odd number above 0")
        self._check_least(0, "adapter_std")
        last = self.stages[-1]
        if not all(self.frozen_stages <= index <= last for index in self.compared_stages):
            self._refuse("compared_stages", f"stages from {self.frozen_stages}, trained, to {last}")
        names = self._student_options()
        for name in self.teacher:
            if name not in names:
                raise UserError(f"teacher.{name} is not an option{nearest(name, names)}")
        self._check_shared("brightness", "contrast", "saturation")
        if self.num_classes is not None:
            self._check_shared("num_classes")
        self._check_strides("pyramid", lambda method: method.strides)
        stages, count = self.compared_stages, backbone_from(self.teaching.backbone).num_stages
        if not all(index < count for index in stages):
            self._refuse("compared_stages", f"stages to {count - 1}, the teacher's last")
        self._check_strides(f"stages {stages}", lambda method: strides_of(method, stages))

    def _check_shared(self, *names: str) -> None:
        """Raises where an option of the teacher is not as the student's, which it has to be."""
        for name in names:
            ours, theirs = getattr(self, name), self.teacher.get(name, getattr(self, name))
            theirs = tuple(theirs) if isinstance(theirs, list) else theirs
            if theirs != ours:
                raise UserError(f"teacher.{name} is {theirs}; expected {ours}, the student's")

    def _check_strides(self, maps: str, strides: Callable[[Detector], tuple[int, ...]]) -> None:
        """Raises where maps of student and teacher differ in more than channels."""
        ours, theirs = strides(self), strides(self.teaching)
        if ours != theirs:
            raise UserError(
                f"the strides of the teacher's {maps} are {theirs}; expected {ours}, the student's"
            )

    @property
    def student(self) -> Detector:
        """The detector without what teaches it."""
        return self.student_class(**self._student_options())

    @property
    def teaching(self) -> Any:
        """The teacher, a detector."""
        given = {k: tuple(v) if isinstance(v, list) else v for k, v in self.teacher.items()}
        options = {**self._student_options(), **given, "num_classes": self.num_classes}
        return self.student_class(**options)

    @override
    def chosen(self) -> "DecoupledOptions":
        stages, teacher = self.teaching.stages, dict(self.teacher)
        if stages != self.stages:
            # Given to the student, they would be the teacher's too.
            teacher["pyramid_stages"] = stages
        return dataclasses.replace(self, pyramid_stages=self.stages, teacher=teacher)

    def _student_options(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self.student_class)}


def strides_of(method: Detector, stages: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the pixels from one cell to the next, of some stages of a backbone.

    Args:
      method: the detector.
      stages: their indices.

    Returns:
      One stride per stage.
    """
    strides = stage_strides(method.network.backbone)
    return tuple(strides[index] for index in stages)
