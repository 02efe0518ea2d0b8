"""MCL and what it is compared with on the same footing, by name."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from fgkd_jax.errors import UserError, nearest
from fgkd_jax.methods.mcl import PRESET_TITLES, PRESETS

Networks = Sequence[Mapping[str, Any]]


def _mcl(networks: Networks, *, preset: str) -> dict[str, Any]:
    return {"name": "mcl", "networks": tuple(networks), **PRESETS[preset]}


def _afd(networks: Networks) -> dict[str, Any]:
    return {"name": "afd", "networks": tuple(networks)}


def _kd(networks: Networks) -> dict[str, Any]:
    if len(networks) != 2:
        raise UserError(f"{len(networks)} networks; expected two, the student and its teacher")
    return {"name": "kd", "backbone": networks[0], "teacher": networks[1]}


COMPARISONS: Mapping[str, Callable[[Networks], dict[str, Any]]] = {
    **{preset: partial(_mcl, preset=preset) for preset in PRESETS},
    "afd": _afd,
    "kd": _kd,
}
"""From networks to `name` and options of the method that trains them: the presets of MCL, AFD, and
plain distillation, in which the first network learns from the second, a frozen teacher."""

COMPARISON_TITLES: Mapping[str, str] = {
    **PRESET_TITLES,
    "afd": "adversarial distillation of feature maps",
    "kd": "distilling a frozen teacher",
}
"""What they are called in a table."""


def comparison(name: str, networks: Networks) -> dict[str, Any]:
    """Looks a method up, for networks.

    Args:
      name: a key of `COMPARISONS`.
      networks: `name` and options of each backbone.

    Returns:
      `name` and options of the method.

    Raises:
      UserError: there is no such comparison, or the number of networks does not fit.
    """
    if name not in COMPARISONS:
        raise UserError(f"MCL has no preset or comparison {name!r}{nearest(name, COMPARISONS)}")
    return COMPARISONS[name](networks)
