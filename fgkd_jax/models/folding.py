"""Putting batch norms back into a network that was published with them folded into biases.

A folded network cannot be trained well: nothing normalises it any more. With the mean and variance
of each convolution's output over some images, batch norms can be put behind the convolutions that
change nothing to begin with.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from fgkd_jax.errors import UserError
from fgkd_jax.typing import PyTree, Variables


def merge_statistics(statistics: Sequence[PyTree]) -> PyTree:
    """Statistics of several batches of equal size taken together.

    mean = E[mean_i]; var = E[var_i] + E[(mean_i - mean)^2].

    Args:
      statistics: the collection `statistics` of each batch, as `apply` of a network with
        norm="folded" returns it with `mutable=["statistics"]`.

    Returns:
      The same tree for all batches.

    Raises:
      UserError: there is none.
    """
    if not statistics:
        raise UserError("merge_statistics: no batches; expected at least one")
    parts = [flatten_dict(dict(part)) for part in statistics]
    merged: dict[tuple[str, ...], jax.Array] = {}
    for *place, kind in parts[0]:
        if kind == "mean":
            means = jnp.stack([part[*place, "mean"] for part in parts])
            variances = jnp.stack([part[*place, "var"] for part in parts])
            merged[*place, "mean"] = jnp.mean(means, axis=0)
            merged[*place, "var"] = jnp.mean(variances, axis=0) + jnp.var(means, axis=0)
    return unflatten_dict(merged)


def unfold_batch_norm(
    variables: Variables, statistics: PyTree, *, epsilon: float = 1e-5
) -> dict[str, Any]:
    """Variables for norm="batch" that compute what a folded network computes.

    For a convolution u = w * x with bias b, whose output u + b has mean m and variance v over the
    calibration images: running mean m - b, running variance v, scale sqrt(v + epsilon), bias m. So
    in evaluation the norm gives u + b, and in training it starts with outputs of the same size.

    Args:
      variables: of a network with norm="folded".
      statistics: mean and variance of every convolution's output, biases included, as
        `merge_statistics` takes and gives them.
      epsilon: of the batch norms.

    Returns:
      Variables of the same network with norm="batch"; other collections and variables are kept.

    Raises:
      UserError: statistics and biases of convolutions are not of the same modules.
    """
    params = flatten_dict(dict(variables["params"]))
    known = flatten_dict(dict(statistics))
    places = {key[:-2] for key in params if key[-2:] == ("conv", "bias")}
    measured = {key[:-1] for key in known}
    if places != measured:
        odd = "/".join(sorted(places ^ measured)[0])
        raise UserError(
            f"unfold_batch_norm: {odd} has "
            + ("a bias and no statistics" if odd in map("/".join, places) else "no bias to unfold")
        )
    stats = {}
    for place in places:
        mean, var = known[*place, "mean"], known[*place, "var"]
        stats[*place, "norm", "mean"] = mean - params.pop((*place, "conv", "bias"))
        stats[*place, "norm", "var"] = var
        params[*place, "norm", "scale"] = jnp.sqrt(var + epsilon)
        params[*place, "norm", "bias"] = mean
    return {
        **variables,
        "params": unflatten_dict(params),
        "batch_stats": unflatten_dict(stats),
    }
