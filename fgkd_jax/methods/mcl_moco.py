"""MCL on top of MoCo: networks that learn from images without labels, and from each other.

Yang, An, Cai and Xu, "Mutual contrastive learning for visual representation learning", AAAI 2022,
with He, Fan, Wu, Xie and Girshick, "Momentum contrast for unsupervised visual representation
learning", CVPR 2020.

    one view of each image -> network i -> its query
    the other view -> the moving average of network i -> its key, which then joins queue i
    each query against its key and the queue, of its own network (VCL) and of the others (ICL), and
    distillation of what each contrast looks like (soft VCL, soft ICL)

Labels teach nothing to the networks. A linear classifier on features that no gradient leaves, a
probe, is trained beside them, so that a run tells how much the features hold.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from fgkd_jax.errors import UserError
from fgkd_jax.losses.classification import cross_entropy
from fgkd_jax.losses.contrastive import normalize_embeddings
from fgkd_jax.losses.contrastive_queue import enqueue, moco_mutual_contrastive
from fgkd_jax.methods.mcl_network import MutualNetworks
from fgkd_jax.methods.mutual import MutualOptions, loss_term, masked
from fgkd_jax.protocols import LossOutput, split_variables
from fgkd_jax.typing import Array, Batch, Float, Key, PyTree, Variables

KEYS, QUEUES = "keys", "queues"
"""Collections of the state: the moving averages, `params` and `batch_stats` of the networks without
their classifiers; and `columns` [n, d, k] with the `pointer` to the oldest."""


@dataclasses.dataclass(frozen=True)
class MCLMoCo(MutualOptions):
    """Mutual contrastive learning of two or more networks without labels.

    loss = vcl_weight vcl + icl_weight icl + soft_vcl_weight soft_vcl + soft_icl_weight soft_icl
    + CE of the probes, of which no gradient reaches the networks

    The terms are those of `moco_mutual_contrastive`, by default unweighted, as released. In a step,
    first the averages move, `k <- m k + (1 - m) q`, with the parameters as they were before the
    step; then keys are computed, the averages normalising by batch statistics of their own; and
    after the loss the keys take the place of the oldest in the queue. Batches need `data.views` of
    2. Predictions are the probes'.

    The authors' colour augmentation has hue and random grey besides, which is not here.

    Attributes, besides those of `MutualOptions`, of which `contrast_groups` has no meaning here:
      queue_size: keys in each queue, at least the batch size, of which it need not be a multiple.
      key_momentum: m above, in [0, 1].
      mlp: whether embeddings come from two layers. The default is one linear layer: the released
        option of this name changes nothing, so that published figures are the linear layer's.
      shuffle_keys: whether images are dealt to the groups of batch norm at random for the keys, and
        back. Query and key of an image would otherwise be normalised with the same others, by
        which they can be matched without a look at the image. It does nothing where `norm_groups`
        is 1; there that weakness stays, so a group per 32 examples or so is to be preferred.
    """

    contrasts_batch: ClassVar[bool] = False

    vcl_weight: float = 1.0
    icl_weight: float = 1.0
    temperature: float = 0.07
    queue_size: int = 65536
    key_momentum: float = 0.999
    mlp: bool = False
    shuffle_keys: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.queue_size < 1:
            raise UserError(f"queue_size is {self.queue_size}; expected at least 1")
        if not 0 <= self.key_momentum <= 1:
            raise UserError(f"key_momentum is {self.key_momentum}; expected it in [0, 1]")

    @property
    def network(self) -> MutualNetworks:
        """The Linen module behind the method."""
        return MutualNetworks(
            networks=self.backbones,
            num_classes=self.num_classes or 1,
            embedding_size=self.embedding_size,
            linear_projection=not self.mlp,
            probe=True,
        )

    def init(self, key: Key[Array, ""], batch: Batch) -> Variables:
        """Initialises all networks, each differently, their averages alike, and random queues.

        Args:
          key: a typed PRNG key.
          batch: with `image` [b, h, w, 3] and `other_views`.

        Returns:
          `params`, `keys`, `queues` and, where the backbones normalise by batch statistics,
          `batch_stats`.

        Raises:
          UserError: there is one view alone, or the batch is larger than the queue.
        """
        second_view(batch)
        if len(batch["image"]) > self.queue_size:
            raise UserError(
                f"queue_size is {self.queue_size}; expected at least the batch size, which is "
                f"{len(batch['image'])}"
            )
        network_key, queue_key = jax.random.split(key)
        images = self.images(batch, network_key, train=False)
        variables = self.network.init(network_key, images, train=False)
        columns = jax.random.normal(
            queue_key, (self.num_networks, self.queue_size, self.embedding_size)
        )
        return {
            **variables,
            KEYS: {
                "params": jax.tree.map(jnp.copy, _without_probes(variables["params"])),
                "batch_stats": jax.tree.map(jnp.copy, variables.get("batch_stats", {})),
            },
            QUEUES: {
                "columns": jnp.swapaxes(normalize_embeddings(columns), 1, 2),
                "pointer": jnp.zeros((), jnp.int32),
            },
        }

    def loss(
        self, variables: Variables, batch: Batch, key: Key[Array, ""], *, train: bool
    ) -> LossOutput:
        """Computes the loss terms of each example.

        Args:
          variables: as `init` returns them.
          batch: `image` uint8 [b, h, w, 3], `other_views` uint8 [b, v, h, w, 3] of which the first
            is taken, `label` int [b], `id` int [b] and `mask` bool [b]. An example with `mask`
            False adds to no term, but its key joins the queue like any other.
          key: a typed PRNG key for this step.
          train: whether colour jitter and batch statistics are in training mode, and averages and
            queues move.

        Returns:
          The terms, of which those of the contrast cannot be accumulated over micro-batches, as
          averages and queues move once a step; the new state; and the figures of
          `MutualOptions.figures`.

        Raises:
          UserError: there is one view alone.
        """
        query_key, other_key, shuffle_key = jax.random.split(key, 3)
        network: Any = self.network
        (logits, queries), new = network.apply(
            variables,
            self.images(batch, query_key, train=train),
            train=train,
            mutable=["batch_stats"] if train else [],
        )
        other = self.images({**batch, "image": second_view(batch)}, other_key, train=train)
        average = variables[KEYS]
        if train:
            average = {**average, "params": self._moved(average["params"], variables["params"])}
        keys, average = self._keys(average, other, shuffle_key, train=train)
        queues = variables[QUEUES]
        losses = moco_mutual_contrastive(
            queries,
            keys,
            queues["columns"],
            temperature=self.temperature,
            soft_temperature=self.soft_temperature,
        )
        if train:
            columns, pointer = enqueue(queues["columns"], queues["pointer"], keys)
            queues = {"columns": columns, "pointer": pointer}
        labels = jnp.broadcast_to(batch["label"], logits.shape[:2])
        probe = jax.vmap(lambda one, label: cross_entropy(one, label))(logits, labels)
        terms = {"probe": loss_term(jnp.sum(probe, axis=0))} | self.contrast_terms(losses)
        _, state, _ = split_variables(variables)
        state |= {**new, KEYS: average, QUEUES: queues}
        return masked(terms, batch["mask"]), state, self.figures(logits, batch)

    def _moved(self, average: PyTree, params: PyTree) -> PyTree:
        """The moving averages after a step towards the networks."""
        m = self.key_momentum
        return jax.tree.map(
            lambda k, q: m * k + (1 - m) * jax.lax.stop_gradient(q),
            average,
            _without_probes(params),
        )

    def _keys(
        self, average: Mapping[str, PyTree], images: Array, key: Key[Array, ""], *, train: bool
    ) -> tuple[Float[Array, "n b d"], dict[str, PyTree]]:
        """The keys of images, and the averages with new batch statistics."""
        order = jnp.arange(len(images))
        if train and self.shuffle_keys:
            order = jax.random.permutation(key, order)
        network: Any = self.network
        keys, new = network.apply(
            dict(average),
            images[order],
            train=train,
            mutable=["batch_stats"] if train else [],
            method="embed",
        )
        return keys[:, jnp.argsort(order)], {**average, **new}


def second_view(batch: Batch) -> Array:
    """Returns the view of each image that keys are made of.

    Args:
      batch: of a training pipeline with two views or more.

    Returns:
      `[b, h, w, 3]`.

    Raises:
      UserError: the batch has one view alone.
    """
    if "other_views" not in batch:
        raise UserError("data.views is 1; expected at least 2, one for queries and one for keys")
    return batch["other_views"][:, 0]


def _without_probes(params: Mapping[str, PyTree]) -> dict[str, PyTree]:
    return {name: tree for name, tree in params.items() if not name.startswith("classifier")}
