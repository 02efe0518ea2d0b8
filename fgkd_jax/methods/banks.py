"""Memory banks of networks that learn from each other: a stored embedding per training example."""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from fgkd_jax.errors import UserError
from fgkd_jax.losses.contrastive import MutualContrastive, normalize_embeddings
from fgkd_jax.losses.contrastive_bank import update_bank
from fgkd_jax.methods.class_index import class_index, draw_candidates, rows_of
from fgkd_jax.methods.mutual import MutualOptions
from fgkd_jax.typing import Array, Batch, Float, Int, Key, Variables

BANKS, CONSTANTS = "banks", "constants"
"""Collections: the banks, `rows` [n, size, d], and the class index over their rows."""


@dataclasses.dataclass(frozen=True)
class BankOptions(MutualOptions):
    """Options of methods that contrast with a memory bank of every network.

    Every network's bank has one row per training example. Candidates are drawn once per step, and
    every network gathers the same ones: at ImageNet's size (2 networks, batch 256, 8,194 candidates
    of 128 dimensions) 2,148,007,936 bytes in one gather from banks of 1,311,915,008 bytes
    (`gather_bytes`, `bank_bytes`).

    On several devices each holds the banks whole, and with `mesh.split_state` all rows and a share
    of the dimensions, where their number divides d. Then a gather stays on the device, for the
    candidates of the whole batch, whose short rows a TPU pads; what it gathered for others is
    exchanged, and on the way back the gradients of all products. It is for banks that do not fit
    otherwise (`benchmarks/results/scaling_v5e.md`). Split by rows, the bank would be gathered whole
    in every step.

    Attributes, besides those of `MutualOptions`, of which `contrast_groups` has no meaning here:
      num_examples: rows of each bank; taken from the data set where None.
      num_positives: candidates of the anchor's class, its own row among them, at least 1. Within a
        network the own row is left out: with 1, `vcl` is zero.
      num_negatives: candidates of other classes, drawn without repetition.
      bank_momentum: share of the old row in the new one, in [0, 1].
      own_row_again: whether the other positives may be the anchor's own row once more, as in the
        released code, where VCL then asks an embedding to be like its own past and not like its
        class. Not by default.
      unit_rows: whether rows have length one from the start. The released ones do only from their
        first update on; until then a longer row is a harder negative for no reason.
    """

    split_axes: ClassVar[Mapping[str, int]] = {BANKS: 2}
    contrasts_batch: ClassVar[bool] = False

    temperature: float = 0.07
    num_examples: int | None = None
    num_positives: int = 2
    num_negatives: int = 8192
    bank_momentum: float = 0.5
    own_row_again: bool = False
    unit_rows: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("num_positives", "num_negatives"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; expected at least 1")
        if not 0 <= self.bank_momentum <= 1:
            raise UserError(f"bank_momentum is {self.bank_momentum}; expected it in [0, 1]")
        if self.num_examples is not None and self.num_examples <= self.num_negatives:
            raise UserError(
                f"num_negatives is {self.num_negatives}; expected fewer than the bank has rows, "
                f"which are {self.num_examples}"
            )

    @property
    def bank_bytes(self) -> int:
        """Bytes of the banks of all networks."""
        return 4 * self.num_networks * (self.num_examples or 1) * self.embedding_size

    def gather_bytes(self, batch_size: int) -> int:
        """Counts what one step gathers from the banks.

        Args:
          batch_size: anchors of a step, or of a micro-batch.

        Returns:
          Bytes, over all networks and devices.

        Example:
          >>> from fgkd_jax.methods.mcl_bank import MCLBank
          >>> MCLBank().gather_bytes(256)
          2148007936
        """
        candidates = self.num_positives + self.num_negatives
        return 4 * self.num_networks * batch_size * candidates * self.embedding_size

    def constants(
        self, labels: Int[np.ndarray, "size"], ids: Int[np.ndarray, "size"]
    ) -> dict[str, np.ndarray]:
        """Makes the class index of the training examples, `num_examples` of them.

        Args:
          labels: of each example of the split that is trained on, after a share of it was held out.
          ids: of each.

        Returns:
          The `constants` collection, an `Index`.

        Raises:
          UserError: a label is out of range, an id is there twice, or the examples outside some
            class are fewer than `num_negatives`.
        """
        index = class_index(labels, ids, num_classes=self.num_classes or 1)
        sizes = np.diff(index["starts"])
        others = len(ids) - int(sizes.max())
        if others < self.num_negatives:
            raise UserError(
                f"num_negatives is {self.num_negatives}; expected at most {others}, the rows of "
                f"the bank that are not of class {int(sizes.argmax())}"
            )
        return index

    def init_banks(self, key: Key[Array, ""]) -> Variables:
        """Fills the banks at random.

        Args:
          key: a typed PRNG key.

        Returns:
          `banks`, and the `constants` of no examples, which those of the data set are to replace.
        """
        size, bound = self.num_examples or 1, (3 / self.embedding_size) ** 0.5
        shape = (self.num_networks, size, self.embedding_size)
        rows = jax.random.uniform(key, shape, minval=-bound, maxval=bound)
        empty = {
            "ids": jnp.full((size,), -1, jnp.int32),
            "rows": jnp.zeros((size,), jnp.int32),
            "starts": jnp.zeros(((self.num_classes or 1) + 1,), jnp.int32),
        }
        return {
            BANKS: {"rows": normalize_embeddings(rows) if self.unit_rows else rows},
            CONSTANTS: empty,
        }

    def candidates(
        self, variables: Variables, batch: Batch, key: Key[Array, ""]
    ) -> Int[Array, "b m"]:
        """Draws the rows that each example is contrasted with, in every network the same.

        Args:
          variables: with `constants`.
          batch: `id` int [b] and `label` int [b].
          key: a typed PRNG key.

        Returns:
          Rows of the banks: the own one, the other positives, the negatives (`draw_candidates`).
        """
        index = variables[CONSTANTS]
        return draw_candidates(
            key,
            index,
            rows_of(index, batch["id"]),
            batch["label"],
            num_positives=self.num_positives,
            num_negatives=self.num_negatives,
            own_again=self.own_row_again,
        )

    def gather(
        self, variables: Variables, candidates: Int[Array, "b m"]
    ) -> Float[Array, "n b m d"]:
        """Gathers rows of all banks.

        Args:
          variables: with `banks`.
          candidates: rows, all of them in the banks.

        Returns:
          The rows.
        """
        return variables[BANKS]["rows"].at[:, candidates].get(mode="promise_in_bounds")

    def known_only(
        self, losses: MutualContrastive, variables: Variables, batch: Batch
    ) -> MutualContrastive:
        """Tells examples apart that have no positive, or no row.

        Args:
          losses: terms of every anchor.
          variables: with `banks` and `constants`.
          batch: `id` int [b] and `label` int [b].

        Returns:
          The terms, without `vcl` where an anchor is alone in its class, NaN where it has no row.
        """
        starts = variables[CONSTANTS]["starts"]
        alone = starts[batch["label"] + 1] - starts[batch["label"]] < 2
        known = rows_of(variables[CONSTANTS], batch["id"]) < variables[BANKS]["rows"].shape[1]
        losses = losses._replace(vcl=jnp.where(alone, 0.0, losses.vcl))
        return MutualContrastive(*(jnp.where(known, term, jnp.nan) for term in losses))

    def moved_banks(
        self, variables: Variables, embeddings: Float[Array, "n b d"], batch: Batch
    ) -> Variables:
        """Moves the own rows of a batch towards its embeddings.

        Args:
          variables: with `banks` and `constants`.
          embeddings: of each network, of length one.
          batch: `id` int [b] and `mask` bool [b]; the rows where `mask` is False stay.

        Returns:
          The new `banks`.
        """
        bank = variables[BANKS]["rows"]
        own = rows_of(variables[CONSTANTS], batch["id"])
        kept = jnp.where(batch["mask"], own, bank.shape[1])
        return {BANKS: {"rows": update_bank(bank, embeddings, kept, momentum=self.bank_momentum)}}
