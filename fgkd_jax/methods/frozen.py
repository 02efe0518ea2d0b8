"""The parameters that frozen stages have, by name."""

import re
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import traverse_util


def frozen_patterns(network: nn.Module, method: str, *, side: int = 64) -> tuple[str, ...]:
    """Names the parameters that a function of a network has.

    Args:
      network: without variables.
      method: name of its function of images [b, h, w, 3], which runs what is frozen.
      side: rows and columns of the images that it is tried on.

    Returns:
      One regular expression per parameter, as `Method.frozen_parameters` gives them.
    """

    def init(key: Any, x: Any) -> Any:
        return network.init(key, x, method=method)

    image = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    shapes = jax.eval_shape(init, jax.random.key(0), image)
    paths = traverse_util.flatten_dict(shapes["params"], sep="/")
    return tuple(f"^{re.escape(path)}$" for path in paths)
