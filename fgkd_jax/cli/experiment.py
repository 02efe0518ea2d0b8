"""An experiment: every option of a run, as frozen dataclasses."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from fgkd_jax.cli.options import build, to_dict
from fgkd_jax.data.detection_pipeline import DetectionOptions
from fgkd_jax.data.options import DataOptions
from fgkd_jax.data.text import TextOptions
from fgkd_jax.errors import UserError, nearest
from fgkd_jax.methods import METHODS
from fgkd_jax.protocols import Method
from fgkd_jax.train.checkpoint import CheckpointOptions
from fgkd_jax.train.loop import TrainOptions
from fgkd_jax.train.optim import OptimOptions
from fgkd_jax.train.sharding import MeshOptions

DATA_OPTIONS: Mapping[str, type] = {"detection": DetectionOptions}
"""Class of `config.data` by the method's task; `DataOptions` for every other task."""


@dataclasses.dataclass(frozen=True)
class PretrainedOptions:
    """Weights that a run starts from.

    Attributes:
      path: a `.safetensors`, `.pth` or `.npz` file; empty starts from random weights. A detector
        starts from all of another one's file, or from the backbone of any other.
      reinit_head: whether the head keeps its random weights; of a detector's file, whether those
        layers do that are of another number of classes there.
      others: files for other backbones of the method, by their name among its parameters, for
        example `attention_backbone`; their heads are left out. `backbone` is the one of `path`.
      teacher: a file with backbone and head of the frozen teacher that a method learns from; those
        that `fgkd export` writes do.
    """

    path: str = ""
    reinit_head: bool = True
    others: Mapping[str, str] = dataclasses.field(default_factory=dict)
    teacher: str = ""


@dataclasses.dataclass(frozen=True)
class FeatureCacheOptions:
    """Precomputed output of a method's frozen stages, so that they run once and not every epoch.

    Attributes:
      views: augmented views of each training example to store; 0 stores none and runs the frozen
        stages in every step.
    """

    views: int = 0

    def __post_init__(self) -> None:
        if self.views < 0:
            raise UserError(f"views is {self.views}; expected at least 0")


@dataclasses.dataclass(frozen=True)
class ReportOptions:
    """The row of the results table that a config stands for.

    Attributes:
      title: what the row is called.
      paper: the published figure, with its data, or why there is none.
      split: what is evaluated at the end of a run.
      figures: the evaluator's figures in the row, in order.
      unseen_offset: added to the scores of unseen classes for the figures `calibrated_...`, the
        `best_offset` of a run with `data.validation_classes`; 0 reports no such figures.
      checkpoint: which checkpoint the row is about: the last one, or the one that was best on the
        validation split.
      controls: configs, with `:ARGUMENT` where they take one, that `fgkd reproduce` runs as well.
    """

    title: str = ""
    paper: str = "none: no published figure on these data"
    split: str = "test"
    figures: tuple[str, ...] = ("accuracy",)
    unseen_offset: float = 0.0
    checkpoint: Literal["last", "best"] = "last"
    controls: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Every option of a run.

    Attributes:
      method: the method's options.
      data: data set, sizes and augmentation; which options there are depends on the method's task.
      optim: optimiser, schedule, rules over parameter names.
      train: length and intervals.
      checkpoint: how often, how many, chosen by what.
      mesh: devices.
      pretrained: weights to start from.
      features: precomputed frozen features.
      report: the row of the results table.
      seed: seeds parameters, order of examples, augmentation and dropout.
    """

    method: Method
    data: DataOptions | DetectionOptions
    optim: OptimOptions = dataclasses.field(default_factory=OptimOptions)
    train: TrainOptions = dataclasses.field(default_factory=TrainOptions)
    checkpoint: CheckpointOptions = dataclasses.field(default_factory=CheckpointOptions)
    mesh: MeshOptions = dataclasses.field(default_factory=MeshOptions)
    pretrained: PretrainedOptions = dataclasses.field(default_factory=PretrainedOptions)
    features: FeatureCacheOptions = dataclasses.field(default_factory=FeatureCacheOptions)
    report: ReportOptions = dataclasses.field(default_factory=ReportOptions)
    seed: int = 0

    def __post_init__(self) -> None:
        expected = DATA_OPTIONS.get(self.method.task, DataOptions)
        if not isinstance(self.data, expected):
            raise UserError(
                f"data is {type(self.data).__name__}, but the method's task is "
                f"{self.method.task!r}; expected {expected.__name__}"
            )
        if not self.features.views:
            return
        if isinstance(self.data, DetectionOptions):
            raise UserError(
                f"features.views is {self.features.views}, but features of scenes with boxes are "
                "not stored; expected 0"
            )
        if not getattr(self.method, "frozen_stages", 0):
            raise UserError(
                f"features.views is {self.features.views}, but the method has no frozen stages; "
                "expected method.frozen_stages of at least 1"
            )
        if self.data.images_per_class:
            raise UserError(
                f"data.images_per_class is {self.data.images_per_class}, but stored features are "
                "shuffled; expected 0 with features.views"
            )
        for name in ("brightness", "contrast", "saturation"):
            if getattr(self.method, name, 0):
                raise UserError(
                    f"method.{name} is {getattr(self.method, name)}, but stored features cannot "
                    "be recoloured; expected 0 with features.views"
                )

    @property
    def text(self) -> TextOptions | None:
        """What is read of captions; None where none are."""
        return self.data.text if isinstance(self.data, DataOptions) else None

    @property
    def extra_keys(self) -> tuple[str, ...]:
        """Annotations that batches carry besides what the task needs."""
        return self.data.extra_keys if isinstance(self.data, DataOptions) else ()

    @property
    def meta_fraction(self) -> float:
        """Share of the training images that are set apart for second steps."""
        return self.data.meta_fraction if isinstance(self.data, DataOptions) else 0.0

    def images(self, reader: str) -> DataOptions:
        """Returns the options of images with one label.

        Args:
          reader: what reads them, for the message.

        Returns:
          The options of the data.

        Raises:
          UserError: the experiment reads scenes with boxes.
        """
        if not isinstance(self.data, DataOptions):
            raise UserError(
                f"{reader} reads images with one label; the config is of {self.data.dataset}, "
                "scenes with boxes"
            )
        return self.data


def parse_experiment(values: Mapping[str, Any]) -> Experiment:
    """Builds an experiment from nested dictionaries.

    Args:
      values: sections by name; `method` holds the method's `name` and its options.

    Returns:
      The experiment.

    Raises:
      UserError: a section, an option or a value is wrong.
    """
    values = dict(values)
    method = parse_method(values.pop("method", None), path="config.method")
    if isinstance(values.get("data"), Mapping):
        # Told here, where the task is known, which options there are.
        kind: Any = DATA_OPTIONS.get(method.task, DataOptions)
        values["data"] = build(kind, values["data"], path="config.data")
    return build(
        Experiment,
        {"method": method, **values},
        path="config",
    )


def parse_method(values: Any, *, path: str) -> Method:
    """Builds a method from its name and its options.

    Args:
      values: a mapping with `name` and options.
      path: what to call the place in messages.

    Returns:
      The method.

    Raises:
      UserError: there is no such method, or an option or a value is wrong.
    """
    if not isinstance(values, Mapping) or "name" not in values:
        raise UserError(f"{path} is {values!r}; expected a mapping with a key 'name'")
    options = dict(values)
    name = options.pop("name")
    if name not in METHODS:
        raise UserError(f"{path}.name is {name!r}{nearest(str(name), METHODS)}")
    method: Any = build(METHODS[name], options, path=path)
    return method


def experiment_to_dict(experiment: Experiment) -> dict[str, Any]:
    """Turns an experiment back into nested dictionaries.

    Args:
      experiment: the experiment.

    Returns:
      What `parse_experiment` accepts, and JSON can hold.
    """
    return {**to_dict(experiment), "method": method_to_dict(experiment.method)}


def method_to_dict(method: Method) -> dict[str, Any]:
    """Names a method and lists its options.

    Args:
      method: a registered method.

    Returns:
      `name` and the options.
    """
    name = next(name for name, cls in METHODS.items() if cls is type(method))
    return {"name": name, **to_dict(method)}
