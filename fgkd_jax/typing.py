"""Array types, and the one glossary of the dimension names used in annotations.

| name | meaning |
|---|---|
| `a` | attributes of classes; anchors |
| `b` | examples of a batch |
| `h w` | rows and columns of an image or a feature map |
| `oh ow` | rows and columns after a resize or a convolution |
| `c`, `ci`, `co` | channels; channels going in and coming out |
| `kh kw` | rows and columns of a convolution kernel |
| `k` | classes; slots of a queue |
| `g` | groups of classes (genera); objects of an image |
| `n` | networks trained together; cells of a density; blocks of a feature map |
| `s` | stages of a network |
| `d` | dimensions of an embedding |
| `f` | channels of region features |
| `m` | candidates that an anchor is contrasted with |
| `size` | rows of a memory bank, one per example of a data set |
| `p` | proposals, boxes, parts or phrases |
| `v` | dimensions of a word vector |
| `t` | words of a phrase |
| `e` | dimensions of a phrase's embedding |
| `...` | any leading dimensions |
"""

from collections.abc import Mapping
from typing import Any

from jaxtyping import Array, Bool, Float, Int, Int32, Key, Num, PyTree, Scalar, Shaped, UInt8

Batch = Mapping[str, Any]
"""Arrays by name; `fgkd_jax.data` documents the keys of each task."""

Variables = Mapping[str, Any]
"""Flax variable collections by name: `params`, `batch_stats`, `constants`, `frozen`."""

Leaf = Any
"""A field of a pytree: an array, or what stands for one (a shape, a sharding) in a tree alike."""

__all__ = [
    "Array",
    "Batch",
    "Bool",
    "Float",
    "Int",
    "Int32",
    "Key",
    "Leaf",
    "Num",
    "PyTree",
    "Scalar",
    "Shaped",
    "UInt8",
    "Variables",
]
