"""What methods on image and text share: a batch's text, the labels' term, checks of options."""

from typing import Any

import jax
import jax.numpy as jnp

from fgkd_jax.errors import UserError
from fgkd_jax.losses.classification import cross_entropy
from fgkd_jax.methods.pma_network import Text, no_text
from fgkd_jax.protocols import LossTerm
from fgkd_jax.typing import Array, Batch, Float, Key


def text_of(batch: Batch, key: Key[Array, ""], *, dropout: float) -> Text:
    """Returns the phrases of a batch, those of some examples left out.

    Args:
      batch: with `phrases` and `phrase_lengths`, or without, which is no text; and `id` int [b].
      key: a typed PRNG key; an example's draw depends on it and on the id alone.
      dropout: probability that an example's text is left out.

    Returns:
      Phrases and their lengths.
    """
    if "phrases" not in batch:
        return no_text(len(batch["image"]))
    lengths: Any = batch["phrase_lengths"]
    if dropout:
        draw = jax.vmap(lambda i: jax.random.uniform(jax.random.fold_in(key, i)))
        lengths = jnp.where(draw(batch["id"])[:, None] < dropout, 0, lengths)
    return batch["phrases"], lengths


def label_loss(
    logits: Float[Array, "b k"], batch: Batch, *, label_smoothing: float
) -> tuple[dict[str, LossTerm], dict[str, tuple[Array, Array]]]:
    """Makes the term in which a network learns from the labels, and its accuracy.

    Args:
      logits: of the network.
      batch: with `label` int [b] and `mask` bool [b].
      label_smoothing: share of the target spread evenly over all classes.

    Returns:
      The term `cross_entropy` and the figure `accuracy`.
    """
    mask = batch["mask"].astype(jnp.float32)
    losses = cross_entropy(logits, batch["label"], label_smoothing=label_smoothing)
    correct = (jnp.argmax(logits, axis=-1) == batch["label"]) * mask
    terms = {"cross_entropy": LossTerm(sum=jnp.where(batch["mask"], losses, 0.0), count=mask)}
    return terms, {"accuracy": (correct, mask)}


def check_shares(options: Any, *names: str) -> None:
    """Checks options that are in [0, 1).

    Args:
      options: a dataclass.
      *names: of its fields.

    Raises:
      UserError: one of them is not.
    """
    for name in names:
        if not 0 <= getattr(options, name) < 1:
            raise UserError(f"{name} is {getattr(options, name)}; expected it in [0, 1)")


def check_counts(options: Any, *names: str) -> None:
    """Checks options that are at least 1.

    Args:
      options: a dataclass.
      *names: of its fields.

    Raises:
      UserError: one of them is not.
    """
    for name in names:
        if getattr(options, name) < 1:
            raise UserError(f"{name} is {getattr(options, name)}; expected at least 1")
