"""A run by its shapes alone: what `fgkd train` would compile, without data, weights or devices."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from fgkd_jax.cli.batch_spec import batch_spec
from fgkd_jax.cli.experiment import Experiment
from fgkd_jax.cli.session import method_for
from fgkd_jax.data.published_sizes import REGIONS, SIZES, WORDS, DatasetSizes, sized_dataset
from fgkd_jax.errors import UserError, nearest
from fgkd_jax.protocols import Method, TextMethod
from fgkd_jax.train.sharding import check_batch_size
from fgkd_jax.train.state import TrainState
from fgkd_jax.train.steps import Steps, abstract_state, training_steps
from fgkd_jax.typing import Batch


@dataclasses.dataclass(frozen=True)
class AbstractRun:
    """The steps of a run and the shapes of what they take.

    Attributes:
      method: with the sizes of its data set.
      steps: the jitted steps.
      state: `jax.ShapeDtypeStruct` of the state of step 0.
      batch: likewise, of a global training batch.
      sizes: what was taken for the data set: numbers by name, and where they are from.
    """

    method: Method
    steps: Steps
    state: TrainState
    batch: Batch
    sizes: Mapping[str, Any]


def abstract_run(experiment: Experiment, *, mesh: Mesh, sizes_of: str | None = None) -> AbstractRun:
    """Prepares the steps of an experiment as `fgkd train` does, from shapes alone.

    Args:
      experiment: the experiment.
      mesh: the devices; they need not be there.
      sizes_of: name of a data set in `SIZES` whose numbers of classes, examples and attributes
        hold; by default the experiment's own.

    Returns:
      The steps, and what they can be lowered with. Where features are stored
      (`features.views`), still the step on images.

    Raises:
      UserError: the sizes are not known, the batch does not divide by the devices, or as of
        `fgkd train`.
    """
    train, data = experiment.train, experiment.data
    check_batch_size(
        train.batch_size, mesh=mesh, accumulate=train.accumulate, name="train.batch_size"
    )
    dataset_sizes, source = _sizes(experiment, sizes_of)
    dataset = sized_dataset(data, dataset_sizes)
    method = method_for(experiment, dataset)
    spec = batch_spec(dataset.info, data, batch_size=train.batch_size)
    steps = training_steps(
        method,
        spec,
        optimizer=experiment.optim,
        total_steps=train.steps,
        accumulate=train.accumulate,
        mesh=mesh,
        placement=experiment.mesh,
    )
    taken: dict[str, Any] = {"from": source, **dataclasses.asdict(dataset_sizes)}
    taken["train"] = dataset.info.splits["train"]
    if dataset.info.feature_shape is not None:
        taken["features"] = REGIONS
    if isinstance(method, TextMethod):
        taken["words"] = WORDS
    batch = dict(spec)
    if "bbox" in experiment.extra_keys:
        batch["bbox"] = jax.ShapeDtypeStruct((train.batch_size, 4), np.float32)
    state = abstract_state(steps, method, spec, ema=experiment.optim.ema_decay > 0)
    return AbstractRun(method, steps, state, batch, taken)


def _sizes(experiment: Experiment, sizes_of: str | None) -> tuple[DatasetSizes, str]:
    """The sizes of the data set, and where they are from."""
    name = sizes_of or experiment.data.dataset
    if name in SIZES:
        return SIZES[name], f"published sizes of {name}"
    method: Any = experiment.method
    if sizes_of is None and getattr(method, "num_classes", None):
        options = {
            "num_classes": method.num_classes,
            "train": getattr(method, "num_examples", None) or 1,
            "num_attributes": getattr(method, "num_attributes", None) or 0,
            "word_size": getattr(method, "word_size", None) or 0,
        }
        return DatasetSizes(**options), "options of the method"
    hint = nearest(name, SIZES)
    raise UserError(
        f"the sizes of data set '{name}' are not known; expected --config.method.num_classes, or "
        f"--sizes_of one of {', '.join(SIZES)}{hint}"
    )
