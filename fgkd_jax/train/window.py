"""The metrics between two lines of a run, and what is said where one of them is not finite."""

from collections.abc import Mapping

import jax
import numpy as np

from fgkd_jax.errors import NonFiniteError

IN_FLIGHT = 4
"""Steps that may be enqueued on the device before the host waits."""


class Window:
    """The metrics since the last line, fetched together so that no step waits for the host."""

    def __init__(self) -> None:
        self._steps: list[tuple[int, dict[str, jax.Array], np.ndarray]] = []

    def add(self, step: int, metrics: dict[str, jax.Array], ids: np.ndarray) -> None:
        """Takes the metrics of one step.

        Args:
          step: its number.
          metrics: as the train step returns them.
          ids: of this process's examples.
        """
        self._steps.append((step, metrics, ids))
        if len(self._steps) > IN_FLIGHT:
            # Without a bound, the batches of a whole window could wait on the device.
            jax.block_until_ready(self._steps[-IN_FLIGHT][1]["loss"])

    def flush(self) -> dict[str, float]:
        """Averages over the steps, after a check that all of them were finite.

        Returns:
          Mean by name.

        Raises:
          NonFiniteError: a step was not finite.
        """
        fetched = jax.device_get([metrics for _, metrics, _ in self._steps])
        for (step, _, ids), metrics in zip(self._steps, fetched, strict=True):
            if not metrics["finite"]:
                raise NonFiniteError(_describe_non_finite(step, metrics, ids))
        self._steps = []
        scalars = [name for name, value in fetched[0].items() if value.ndim == 0]
        scalars.remove("finite")
        return {name: float(np.mean([m[name] for m in fetched])) for name in scalars}


def finite_scalars(step: int, metrics: Mapping[str, jax.Array]) -> dict[str, float]:
    """Fetches the metrics of one step.

    Args:
      step: its number, for the message.
      metrics: scalars by name.

    Returns:
      The numbers.

    Raises:
      NonFiniteError: one of them is not finite.
    """
    values = {name: float(value) for name, value in jax.device_get(metrics).items()}
    for name, value in values.items():
        if not np.isfinite(value):
            raise NonFiniteError(f"step {step}: {name} is {value}; the run stops")
    return values


def _describe_non_finite(step: int, metrics: Mapping[str, np.ndarray], ids: np.ndarray) -> str:
    share = metrics["example_finite"][jax.process_index() * len(ids) :][: len(ids)]
    local = ids[~share].tolist()
    if local:
        which = f"the loss of examples {local}"
    elif metrics["example_finite"].all():
        which = f"the update from examples {ids.tolist()}"
    else:
        which = "examples of another process"
    return f"step {step}: loss {float(metrics['loss'])}, not finite in {which}; the run stops"
