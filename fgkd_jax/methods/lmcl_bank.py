"""L-MCL against memory banks: stages contrast with stored embeddings of the whole training set.

Yang, An, Zhou, Zhuang, Xu and Zhang, "Online knowledge distillation via mutual contrastive learning
for visual recognition", TPAMI 2023, as its authors released it for ImageNet.

    rows of every network's bank -> the terms of every pair of stages, weighted by a meta-network
    afterwards: the anchors' own rows move towards the new embeddings of the last stages

There is one bank per network: what a stage is contrasted with are embeddings of last stages.
"""

import dataclasses

import jax

from fgkd_jax.losses.contrastive import MutualContrastive
from fgkd_jax.losses.contrastive_bank import layerwise_bank_mutual_contrastive
from fgkd_jax.methods.banks import BankOptions
from fgkd_jax.methods.lmcl import LMCL, Contrast
from fgkd_jax.methods.lmcl_network import StageOutputs
from fgkd_jax.typing import Array, Batch, Key, Variables


@dataclasses.dataclass(frozen=True)
class LMCLBank(BankOptions, LMCL):
    """Layer-wise mutual contrastive learning, against a memory bank of each network.

    The loss is that of `LMCL` with the terms of `layerwise_bank_mutual_contrastive`; the defaults
    are the released ones for ImageNet. In a step of the meta-network all inner steps contrast with
    the same candidates, drawn once, and the banks stay as they are; the released code writes to
    them in each.

    Attributes, besides those of `LMCL` and of `BankOptions`:
      reference_intra: contrast the second network of a pair within the bank of the first, as the
        released code does by mistake, and not within its own.
    """

    vcl_weight: float = 0.01
    icl_weight: float = 0.01
    meta_every: int = 500
    meta_weight_decay: float = 1e-4
    reference_intra: bool = False

    def init(self, key: Key[Array, ""], batch: Batch) -> Variables:
        """Initialises all networks, each differently, their banks, and the meta-network.

        Args:
          key: a typed PRNG key.
          batch: with `image` [b, h, w, 3].

        Returns:
          The collections of `LMCL`, `banks`, and the `constants` of no examples, which those of
          the data set are to replace.
        """
        network_key, bank_key = jax.random.split(key)
        return {**super().init(network_key, batch), **self.init_banks(bank_key)}

    def _contrast(
        self, variables: Variables, batch: Batch, key: Key[Array, ""]
    ) -> tuple[Contrast, Key[Array, ""]]:
        key, draw_key = jax.random.split(key)
        rows = self.gather(variables, self.candidates(variables, batch, draw_key))

        def contrast(embeddings: Array, weights: Array) -> MutualContrastive:
            losses = layerwise_bank_mutual_contrastive(
                embeddings,
                rows,
                weights,
                num_positives=self.num_positives,
                temperature=self.temperature,
                soft_temperature=self.soft_temperature,
                reference_intra=self.reference_intra,
            )
            return self.known_only(losses, variables, batch)

        return contrast, key

    def _remembered(self, variables: Variables, outputs: StageOutputs, batch: Batch) -> Variables:
        return self.moved_banks(variables, outputs.embeddings[:, -1], batch)
