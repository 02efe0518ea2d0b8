"""The training state: one pytree that holds everything a resumed run needs."""

import dataclasses
from typing import Any

import jax
from flax import struct

from fgkd_jax.protocols import FROZEN
from fgkd_jax.typing import Leaf, PyTree, Variables


@struct.dataclass
class TrainState:
    """Everything a training step reads and writes.

    What is not in here is not resumed. `constants` are inputs of the step that
    never change; they are rebuilt from their sources at the start of a run, not saved. Where a
    source is a file, the checkpoint's metadata has its hash.

    Attributes:
      step: int32 scalar, number of optimiser updates done.
      key: typed base PRNG key; step t draws from `fold_in(key, t)`.
      params: trainable and frozen parameters of the method.
      model_state: collections that the forward pass updates (`batch_stats`).
      opt_state: state of the optimiser.
      ema: exponential moving average of `params`, or None.
      constants: the collections that never change, by name: `constants` (attribute matrices, word
        vectors) and `frozen` (a teacher).
    """

    step: Leaf
    key: Leaf
    params: PyTree
    model_state: dict[str, Any]
    opt_state: PyTree
    ema: PyTree | None = None
    constants: dict[str, Any] = struct.field(default_factory=dict)

    @property
    def frozen(self) -> Any:
        """The collections of a frozen teacher; none where there is no teacher."""
        return self.constants.get(FROZEN, {})

    def variables(self, *, ema: bool = False) -> Variables:
        """Returns the collections that a method's functions take.

        Args:
          ema: whether to take the averaged parameters; without an average, the current ones.

        Returns:
          Collections by name.
        """
        params = self.ema if ema and self.ema is not None else self.params
        return {"params": params, **self.model_state, **self.constants}

    def to_save(self) -> dict[str, Any]:
        """Returns the part that a checkpoint holds.

        Returns:
          A dict of pytrees; `with_saved` is its inverse.
        """
        return {
            "step": self.step,
            "key": self.key,
            "params": self.params,
            "model_state": self.model_state,
            "opt_state": self.opt_state,
            "ema": self.ema,
        }

    def with_saved(self, saved: dict[str, Any]) -> "TrainState":
        """Returns this state with the saved part replaced.

        Args:
          saved: what `to_save` returned in an earlier run.

        Returns:
          A state that continues the earlier run.
        """
        return dataclasses.replace(self, **saved)


def abstract_like(tree: PyTree) -> PyTree:
    """Describes a pytree of arrays without their values.

    Args:
      tree: arrays, placed on devices.

    Returns:
      The same structure with `jax.ShapeDtypeStruct` leaves that carry shape, dtype and sharding.
    """
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), tree
    )
