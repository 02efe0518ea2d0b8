"""What every backbone shares: the interface of its stages, and checks of its options."""

import abc
import re
from collections.abc import Mapping

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from fgkd_jax.errors import UserError
from fgkd_jax.typing import Array, Float


class Backbone(nn.Module):
    """A network in stages: what `make_backbone` returns.

    Stage 0 is the stem and every further one is one resolution (a backbone may end with a stage at
    the resolution of the one before); the last is the final feature map. Parameters are float32.

    A backbone that is only ever run from `start=k` holds the variables of stages k and later alone,
    and one run up to `stop=k` those before k. So a branch with parameters of its own (an auxiliary
    classifier behind stage k - 1, or one of several networks on a shared trunk) is a further
    backbone, made by another call of `make_backbone` with the same options and run from `start=k`
    on what stage k - 1 put out. Made with other `stage_sizes`, it is shallower than the network.

    Attributes:
      norm_groups: parts of the batch that batch norms normalise apart (`BatchNorm.groups`).
      frozen_norm: regular expression over the "/"-joined path of a batch norm; those that match
        use and keep their running statistics in training (`BatchNorm.frozen`).
      dtype: of the computation and the outputs.
      remat: stages whose inner activations are computed again in the backward pass instead of
        being kept: less memory, about a third more work in those stages.
    """

    norm_groups: int = 1
    frozen_norm: str = ""
    dtype: DTypeLike = jnp.float32
    remat: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Checks the options that all backbones share."""
        name = type(self).__name__
        check_at_least(name, 1, {"norm_groups": self.norm_groups})
        if not _is_floating(self.dtype):
            raise UserError(f"{name}: dtype={self.dtype}; expected a floating type")
        try:
            re.compile(self.frozen_norm)
        except re.error as error:
            raise UserError(
                f"{name}: frozen_norm={self.frozen_norm!r} is not a regular expression: {error}"
            ) from error
        if not set(self.remat) <= set(range(self.num_stages)):
            raise UserError(
                f"{name}: remat={self.remat}; expected stages from 0 to {self.num_stages - 1}"
            )
        super().__post_init__()

    @property
    @abc.abstractmethod
    def num_stages(self) -> int:
        """Number of stages, the stem included."""

    @abc.abstractmethod
    def _stage(self, index: int) -> nn.Module:
        """A new module of stage `index`, called as `module(x, train)`."""

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], *, train: bool, start: int = 0, stop: int | None = None
    ) -> tuple[Array, ...]:
        """Runs the stages start, ..., stop - 1.

        Args:
          x: the normalised image, or with start > 0 the output of stage start - 1.
          train: whether batch norms use and collect the statistics of the batch.
          start: first stage to run.
          stop: the stage before which to end; None: after the last.

        Returns:
          The outputs of these stages, first to last, in `dtype`.

        Raises:
          UserError: not 0 <= start < stop <= number of stages.
        """
        end = self.num_stages if stop is None else stop
        if not 0 <= start < end <= self.num_stages:
            raise UserError(
                f"{type(self).__name__}: stages start={start} to stop={stop}; expected "
                f"0 <= start < stop <= {self.num_stages}"
            )
        x = x.astype(self.dtype)
        outputs = []
        for index in range(start, end):
            x = self._stage(index)(x, train)
            outputs.append(x)
        return tuple(outputs)


def _is_floating(dtype: DTypeLike) -> bool:
    try:
        return bool(jnp.issubdtype(jnp.dtype(dtype), jnp.floating))
    except TypeError:  # not the name of a type
        return False


def maybe_remat(module: type[nn.Module], remat: bool) -> type[nn.Module]:
    """The module class, recomputing its activations in the backward pass if asked.

    Args:
      module: a class whose `__call__` takes `(x, train)`.
      remat: whether to recompute.

    Returns:
      A class to be constructed as `module` is, with the same parameters.
    """
    return nn.remat(module, static_argnums=(2,)) if remat else module


def check_at_least(owner: str, minimum: float, values: Mapping[str, float]) -> None:
    """Checks numbers against a lower bound.

    Args:
      owner: what they belong to, for the message.
      minimum: the least admitted value.
      values: numbers by the name of their option.

    Raises:
      UserError: one of them is smaller.
    """
    for name, value in values.items():
        if not value >= minimum:
            raise UserError(f"{owner}: {name}={value}; expected at least {minimum}")
