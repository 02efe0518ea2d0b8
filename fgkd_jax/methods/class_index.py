"""Rows of a table with one row for every training example, and draws among them by class.

Rows are ordered by class, and within a class by id. So the rows of a class are neighbours, those of
all other classes are what is left of one range, and both are drawn from by arithmetic, without a
list per class. The order depends on labels and ids alone: N examples have the rows 0 to N - 1
whatever the gaps in their ids, for example those of the examples held out for validation.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from fgkd_jax.errors import UserError
from fgkd_jax.typing import Array, Int, Key

Index = Mapping[str, Array]
"""`ids` int32 [size], in rising order; `rows` int32 [size], of each of them; `starts` int32
[k + 1], the first row of each class, and behind the last class the number of rows."""


def class_index(
    labels: Int[np.ndarray, "size"], ids: Int[np.ndarray, "size"], *, num_classes: int
) -> dict[str, np.ndarray]:
    """Gives every example of a split its row.

    Args:
      labels: of each example, in `[0, num_classes)`.
      ids: of each example, all different.
      num_classes: number of classes k.

    Returns:
      An `Index`, on the host.

    Raises:
      UserError: a label is out of range, or two examples have one id.
    """
    for i in np.flatnonzero((labels < 0) | (labels >= num_classes))[:1]:
        raise UserError(
            f"the training example with id {ids[i]} has label {labels[i]}; expected 0 to "
            f"{num_classes - 1}"
        )
    by_class = np.lexsort((ids, labels))
    rows = np.argsort(ids[by_class], kind="stable")
    ordered = ids[by_class][rows]
    for i in np.flatnonzero(ordered[1:] == ordered[:-1])[:1]:
        raise UserError(f"several training examples have the id {ordered[i]}; expected it once")
    starts = np.searchsorted(labels[by_class], np.arange(num_classes + 1))
    values = {"ids": ordered, "rows": rows, "starts": starts}
    return {name: value.astype(np.int32) for name, value in values.items()}


def rows_of(index: Index, ids: Int[Array, "b"]) -> Int[Array, "b"]:
    """Looks the rows of examples up.

    Args:
      index: as `class_index` makes it.
      ids: of the examples.

    Returns:
      Rows in `[0, size)`, and `size` for an id that the index does not have.
    """
    size = len(index["ids"])
    places = jnp.clip(jnp.searchsorted(index["ids"], ids), 0, size - 1)
    return jnp.where(index["ids"][places] == ids, index["rows"][places], size)


def draw_candidates(
    key: Key[Array, ""],
    index: Index,
    rows: Int[Array, "b"],
    labels: Int[Array, "b"],
    *,
    num_positives: int,
    num_negatives: int,
    own_again: bool = False,
) -> Int[Array, "b m"]:
    """Draws rows for each anchor: its own, others of its class, and some of other classes.

    The rows of an anchor are all different: the range that is drawn from is turned by a random
    number of places and cut into as many parts as rows are wanted, and each part gives one. Every
    row is as likely as any other, and an anchor's negatives are spread over the other classes by
    their sizes.

    Args:
      key: a typed PRNG key.
      index: as `class_index` makes it.
      rows: of the anchors, in `[0, size)`; for others, what is drawn means nothing.
      labels: of the anchors.
      num_positives: rows of the anchor's class, its own among them, at least 1. A class with fewer
        gives some of them again.
      num_negatives: rows of other classes, at most as many as there are.
      own_again: whether the other positives may be the anchor's own row again. The only row of a
        class is, in any case.

    Returns:
      Rows `[b, num_positives + num_negatives]` in `[0, size)`: the own one, the other positives,
      the negatives.
    """
    size = len(index["ids"])
    own = jnp.clip(rows, 0, size - 1)
    start = index["starts"][labels]
    count = index["starts"][labels + 1] - start
    positive_key, negative_key = jax.random.split(key)
    if own_again:
        positives = start[:, None] + _spread(positive_key, count, num_positives - 1)
    else:
        place = start[:, None] + _spread(positive_key, count - 1, num_positives - 1)
        positives = jnp.where(count[:, None] > 1, place + (place >= own[:, None]), own[:, None])
    place = _spread(negative_key, size - count, num_negatives)
    negatives = place + jnp.where(place >= start[:, None], count[:, None], 0)
    drawn = jnp.concatenate([own[:, None], positives, negatives], axis=1)
    return jnp.clip(drawn, 0, size - 1)


def _spread(key: Key[Array, ""], sizes: Int[Array, "b"], count: int) -> Int[Array, "b count"]:
    """Draws so many places in `[0, size)` for each size, evenly spread and, if they fit, distinct.

    The parts' bounds are computed from quotient and remainder: the product of a place and a size
    would not fit into 32 bits.
    """
    sizes = jnp.maximum(sizes, 1)[:, None]
    parts = jnp.arange(count, dtype=sizes.dtype)[None, :]
    quotient, rest = sizes // max(count, 1), sizes % max(count, 1)
    first = jnp.where(quotient > 0, parts * quotient + jnp.minimum(parts, rest), parts)
    width = jnp.maximum(quotient + (parts < rest), 1)
    inside_key, turn_key = jax.random.split(key)
    inside = jax.random.randint(inside_key, width.shape, 0, width, dtype=sizes.dtype)
    turn = jax.random.randint(turn_key, sizes.shape, 0, sizes, dtype=sizes.dtype)
    return (first + inside + turn) % sizes
