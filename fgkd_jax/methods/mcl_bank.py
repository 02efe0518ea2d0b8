"""MCL against memory banks: contrast with stored embeddings of the whole training set.

Yang, An, Cai and Xu, "Mutual contrastive learning for visual representation learning", AAAI 2022,
as its authors released it for ImageNet.

    the batch's ids -> rows: of each anchor its own, others of its class, many of other classes
    rows of every network's bank -> VCL and ICL of the anchors' embeddings, and the soft terms
    afterwards: the anchors' own rows move towards their new embeddings

A batch of a thousand classes hardly holds two images of one; the bank holds them all. Batches are
plain, and each anchor is contrasted by itself.
"""

import dataclasses

import jax

from fgkd_jax.losses.contrastive_bank import bank_mutual_contrastive
from fgkd_jax.methods.banks import BankOptions
from fgkd_jax.methods.mcl import MCL
from fgkd_jax.methods.mutual import masked
from fgkd_jax.protocols import LossOutput
from fgkd_jax.typing import Array, Batch, Key, Variables


@dataclasses.dataclass(frozen=True)
class MCLBank(BankOptions, MCL):
    """Mutual contrastive learning of two or more networks, against a memory bank of each.

    The loss is that of `MCL` with the terms of `bank_mutual_contrastive`; the defaults are the
    released ones for ImageNet. Attributes are those of `MCL` and of `BankOptions`.
    """

    def init(self, key: Key[Array, ""], batch: Batch) -> Variables:
        """Initialises all networks, each differently, and their banks.

        Args:
          key: a typed PRNG key.
          batch: with `image` [b, h, w, 3].

        Returns:
          `params`, `banks`, the `constants` of no examples, which those of the data set are to
          replace, and, where the backbones normalise by batch statistics, `batch_stats`.
        """
        network_key, bank_key = jax.random.split(key)
        return {**super().init(network_key, batch), **self.init_banks(bank_key)}

    def loss(
        self, variables: Variables, batch: Batch, key: Key[Array, ""], *, train: bool
    ) -> LossOutput:
        """Computes the loss terms of each example.

        Args:
          variables: as `init` returns them, with `constants` of the training examples.
          batch: `image` uint8 [b, h, w, 3], `label` int [b], `id` int [b] and `mask` bool [b]. An
            example with `mask` False adds to no term and leaves its row as it is. The contrast of
            any other whose id has no row is NaN, which stops a run.
          key: a typed PRNG key for this step, from which candidates are drawn as well.
          train: whether colour jitter, dropout and batch statistics are in training mode, and the
            banks are updated.

        Returns:
          The terms, of which each takes every example by itself; the new batch statistics and
          banks; and the figures of `MutualOptions.figures`.
        """
        network_key, draw_key = jax.random.split(key)
        logits, embeddings, state = self.run(variables, batch, network_key, train=train)
        losses = bank_mutual_contrastive(
            embeddings,
            self.gather(variables, self.candidates(variables, batch, draw_key)),
            num_positives=self.num_positives,
            temperature=self.temperature,
            soft_temperature=self.soft_temperature,
        )
        losses = self.known_only(losses, variables, batch)
        terms = self.logit_terms(logits, batch) | self.contrast_terms(losses, accumulable=True)
        if train:
            state = {**state, **self.moved_banks(variables, embeddings, batch)}
        return masked(terms, batch["mask"]), state, self.figures(logits, batch)
