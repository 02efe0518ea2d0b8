"""Mutual contrastive learning within a batch: networks contrast and distil their embeddings."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fgkd_jax.errors import UserError
from fgkd_jax.typing import Array, Float, Int, Shaped


class MutualContrastive(NamedTuple):
    """The four terms of mutual contrastive learning, of every anchor, in nats.

    Attributes:
      vcl: `[b]`, contrast within each network, summed over networks.
      icl: `[b]`, contrast from one network to another, summed over ordered pairs.
      soft_vcl: `[b]`, divergence between the distributions of two networks, each within itself.
      soft_icl: `[b]`, divergence between the distributions from one to the other and back.
    """

    vcl: Float[Array, "b"]
    icl: Float[Array, "b"]
    soft_vcl: Float[Array, "b"]
    soft_icl: Float[Array, "b"]


def normalize_embeddings(x: Float[Array, "... d"], *, eps: float = 1e-12) -> Float[Array, "... d"]:
    """Returns vectors of length one.

    `x / sqrt(sum_d x[d]^2 + eps)`

    Args:
      x: `[... d]`, embeddings.
      eps: above 0; keeps the gradient at a vector of zeros finite, and that vector at zero.

    Returns:
      `[... d]`, in the dtype of `x`, computed in at least float32.

    Raises:
      UserError: `x` is of rank 0, or `eps` is not above 0.

    Source:
      Yang et al., AAAI 2022. The released code divides by the norm without eps.

    Example:
      >>> normalize_embeddings(jnp.array([3.0, 4.0]))
      Array([0.6, 0.8], dtype=float32)
    """
    if x.ndim < 1:
        raise UserError(f"embeddings have the shape {x.shape}; expected [..., d]")
    if not eps > 0:
        raise UserError(f"eps is {eps}; expected a number above 0")
    wide = x.astype(_wide(x))
    squares = jnp.sum(jnp.square(wide), axis=-1, keepdims=True)
    return (wide * lax.rsqrt(squares + eps)).astype(x.dtype)


def mutual_contrastive(
    embeddings: Float[Array, "n b d"],
    labels: Int[Array, "b"],
    *,
    temperature: float = 0.1,
    soft_temperature: float = 3.0,
    groups: int = 1,
) -> MutualContrastive:
    """Returns the terms of mutual contrastive learning among the examples of a batch.

    With `L_ac[i, j] = x_a[i] . x_c[j] / temperature` from anchor i in network a to example j in
    network c, and P(i) the other examples with the label of i,

        C(L)[i]   = log sum_{j != i} exp L[i, j] - mean_{j in P(i)} L[i, j]
        KL(S <- T)[i] = t^2 sum_j q[i, j] (log q[i, j] - log p[i, j]),
                        p = softmax_j(S / t), q = softmax_j(T / t), t = soft_temperature
        vcl = sum_a C(L_aa)              soft_vcl = sum_{a != c} KL(L_aa <- L_cc)
        icl = sum_{a != c} C(L_ac)       soft_icl = sum_{a != c} KL(L_ac <- L_ca)

    The softmax of C holds every positive, and never the anchor's own image, not even in another
    network; that of KL has all columns, the anchor's own too. An anchor without another of its
    class, P(i) being empty, contributes exactly zero to `vcl` and `icl`. The teacher T is behind
    `stop_gradient`; S is not, in either of its networks.

    Args:
      embeddings: `[n b d]`, of length one (`normalize_embeddings`), for n networks.
      labels: `[b]`, classes; any integers.
      temperature: divides the products, above 0.
      soft_temperature: divides once more what the divergences compare, above 0.
      groups: 1 contrasts over the whole batch. g > 1 contrasts within each of g contiguous parts
        of the batch, of which it is a multiple: with as many groups as devices that share the
        batch, nothing is exchanged between them.

    Returns:
      Each term `[b]`, in nats, in the dtype of `embeddings`, computed in at least float32. Its
      mean over the batch is the released loss: sums over networks and pairs, never averages.

    Raises:
      UserError: the shapes do not fit, a temperature is not above 0, or `groups` does not divide b.

    Source:
      Yang et al., "Mutual contrastive learning for visual representation learning", AAAI 2022,
      as its authors released it for CIFAR. There an anchor without a positive makes `vcl` and
      `icl` of the batch NaN. Their sampler draws two images of each class: one positive in each
      softmax.

    Example:
      >>> x = jnp.eye(4)[jnp.array([[0, 0, 1, 1], [2, 2, 3, 3]])]
      >>> terms = mutual_contrastive(x, jnp.array([0, 0, 1, 1]), temperature=1.0)
      >>> terms.icl.shape, f"{terms.icl[0]:.3f}"  # 2 log 3
      ((4,), '2.197')
    """
    if embeddings.ndim != 3 or labels.shape != embeddings.shape[1:2]:
        raise UserError(
            f"embeddings have the shape {embeddings.shape} and labels {labels.shape}; "
            "expected [n, b, d], [b]"
        )
    _check_temperatures(temperature, soft_temperature)
    n, b, _ = embeddings.shape
    dtype = _wide(embeddings)
    return _in_batch(
        embeddings[:, None],
        labels,
        jnp.ones((n * (n - 1), 1, 1, b), dtype),
        jnp.ones((n, 1, b), dtype),
        temperature=temperature,
        soft_temperature=soft_temperature,
        groups=groups,
    )


def layerwise_mutual_contrastive(
    embeddings: Float[Array, "n s b d"],
    labels: Int[Array, "b"],
    match_weights: Float[Array, "n s n s b"],
    *,
    temperature: float = 0.1,
    soft_temperature: float = 3.0,
    groups: int = 1,
) -> MutualContrastive:
    """Returns the terms of mutual contrastive learning between the stages of networks.

    With p = (network i, stage k), q = (network j, stage z), `w_pq` for `match_weights[i, k, j, z]`
    and L, C and KL as in `mutual_contrastive`, sums over all ordered pairs with i != j:

        vcl = sum w_pq (C(L_pp) + C(L_qq))
        icl = sum w_pq (C(L_pq) + C(L_qp))
        soft_vcl = sum w_pq (KL(L_pp <- L_qq) + KL(L_qq <- L_pp))
        soft_icl = sum w_pq (KL(L_pq <- L_qp) + KL(L_qp <- L_pq))

    Every entry has both directions already, and (p, q) and (q, p) are two entries: symmetric
    weights count everything twice. That is how it was released; to undo it, halve the weights of
    the terms. A term within one stage appears once for each partner, with the partner's weight;
    it is computed once.

    Memory: one tensor `[n (n-1) s s b b]` of products and a few alike (b b/groups with groups), in
    float32 2 MiB each for n = 2, s = 4 and b = 128, 128 MiB for b = 1024. Compiled for the CPU, six
    of them are alive at a time, ten with gradients.

    Args:
      embeddings: `[n s b d]`, of length one (`normalize_embeddings`), of n networks, s stages.
      labels: `[b]`, classes; any integers.
      match_weights: `[n s n s b]`, at `[i, k, j, z, b]` the weight of anchor b in both matrices of
        the entry; need not be symmetric. Entries of a network with itself are ignored.
      temperature, soft_temperature, groups: as in `mutual_contrastive`.

    Returns:
      Each term `[b]`, in nats, in the dtype of `embeddings`, computed in at least float32. The
      gradient reaches `match_weights`, and no teacher (`stop_gradient`).

    Raises:
      UserError: the shapes do not fit, a temperature is not above 0, or `groups` does not divide b.

    Source:
      Yang et al., "Online knowledge distillation via mutual contrastive learning for visual
      recognition", TPAMI 2023, as its authors released it for CIFAR; we differ where an anchor has
      no positive, as `mutual_contrastive` does.

    Example:
      >>> x, labels = jnp.ones((2, 3, 4, 1)), jnp.array([0, 0, 1, 1])
      >>> terms = layerwise_mutual_contrastive(x, labels, jnp.ones((2, 3, 2, 3, 4)))
      >>> terms.icl.shape, f"{terms.icl[0]:.3f}"  # 36 log 3
      ((4,), '39.550')
    """
    n, s, b, _ = embeddings.shape if embeddings.ndim == 4 else (-1,) * 4
    if labels.shape != (b,) or match_weights.shape != (n, s, n, s, b):
        raise UserError(
            f"embeddings have the shape {embeddings.shape}, labels {labels.shape} and "
            f"match_weights {match_weights.shape}; expected [n, s, b, d], [b], [n, s, n, s, b]"
        )
    _check_temperatures(temperature, soft_temperature)
    pairs = _Pairs.of(n)
    weights = match_weights.astype(_wide(embeddings))[pairs.first, :, pairs.second]
    both_ways = weights + pairs.turned(weights)
    return _in_batch(
        embeddings,
        labels,
        both_ways,
        jnp.sum(both_ways, axis=2).reshape(n, n - 1, s, b).sum(axis=1),
        temperature=temperature,
        soft_temperature=soft_temperature,
        groups=groups,
    )


class _Pairs(NamedTuple):
    """The ordered pairs of different networks, in the order of the first one.

    Attributes:
      first: network of each pair.
      second: likewise.
      reverse: index of the pair the other way round.
    """

    first: np.ndarray
    second: np.ndarray
    reverse: np.ndarray

    @classmethod
    def of(cls, n: int) -> "_Pairs":
        """All pairs of n networks."""
        pairs = [(i, j) for i in range(n) for j in range(n) if i != j]
        table = np.array(pairs, int).reshape(-1, 2)
        reverse = np.array([pairs.index((j, i)) for i, j in pairs], int)
        return cls(table[:, 0], table[:, 1], reverse)

    def turned(self, x: Shaped[Array, "u s s ..."]) -> Shaped[Array, "u s s ..."]:
        """At [u, k, z], what x has for the other direction of pair u and of the stages k and z."""
        return jnp.swapaxes(x[self.reverse], 1, 2)


def _in_batch(
    embeddings: Float[Array, "n s b d"],
    labels: Array,
    inter_weights: Float[Array, "u s s b"],
    intra_weights: Float[Array, "n s b"],
    *,
    temperature: float,
    soft_temperature: float,
    groups: int,
) -> MutualContrastive:
    """The terms among all stages, group by group; weights of `_Pairs`, and of single stages."""
    b = labels.shape[0]
    if groups < 1 or b % groups:
        raise UserError(f"groups is {groups}; expected a divisor of the batch size, which is {b}")

    def split(x: Array, axis: int) -> Array:
        return x.reshape(*x.shape[:axis], groups, b // groups, *x.shape[axis + 1 :])

    # Mapped over the groups, every operation is apart along the axis by which a batch is sharded.
    one_group = partial(_in_one_group, temperature=temperature, soft_temperature=soft_temperature)
    terms = jax.vmap(one_group, in_axes=(2, 0, 3, 2))(
        split(embeddings, 2), split(labels, 0), split(inter_weights, 3), split(intra_weights, 2)
    )
    return MutualContrastive(*(term.reshape(b).astype(embeddings.dtype) for term in terms))


def _in_one_group(
    embeddings: Float[Array, "n s b d"],
    labels: Array,
    inter_weights: Float[Array, "u s s b"],
    intra_weights: Float[Array, "n s b"],
    *,
    temperature: float,
    soft_temperature: float,
) -> MutualContrastive:
    """The terms among the examples of one group, each with all others of its group."""
    pairs = _Pairs.of(len(embeddings))
    first, second = embeddings[pairs.first], embeddings[pairs.second]
    # Both directions by a product each: a transpose would be an exchange between devices.
    inter = _logits("ukbd,uzcd->ukzbc", first, second, temperature=temperature)
    intra = _logits("nkbd,nkcd->nkbc", embeddings, embeddings, temperature=temperature)
    itself = jnp.eye(labels.shape[0], dtype=bool)
    positives = (labels[:, None] == labels[None, :]) & ~itself

    def contrast(logits: Array) -> Array:
        # The lowest number instead of -inf: an anchor alone in its group has no other column.
        return _contrast(jnp.where(itself, jnp.finfo(logits.dtype).min, logits), positives)

    inter_log_p = jax.nn.log_softmax(inter / soft_temperature)
    intra_log_p = jax.nn.log_softmax(intra / soft_temperature)
    soft_inter = _divergence(inter_log_p, pairs.turned(inter_log_p))
    soft_intra = _divergence(
        intra_log_p[pairs.first][:, :, None], intra_log_p[pairs.second][:, None]
    )
    square = soft_temperature**2
    return MutualContrastive(
        vcl=jnp.sum(intra_weights * contrast(intra), axis=(0, 1)),
        icl=jnp.sum(inter_weights * contrast(inter), axis=(0, 1, 2)),
        soft_vcl=square * jnp.sum(inter_weights * soft_intra, axis=(0, 1, 2)),
        soft_icl=square * jnp.sum(inter_weights * soft_inter, axis=(0, 1, 2)),
    )


def _contrast(logits: Array, positives: Array) -> Array:
    """Log-sum-exp over the last axis less the mean over positives there; 0 where there are none."""
    positives = jnp.broadcast_to(positives, logits.shape)
    count = jnp.sum(positives, axis=-1)
    mean = jnp.sum(jnp.where(positives, logits, 0.0), axis=-1) / jnp.maximum(count, 1)
    return jnp.where(count > 0, jax.nn.logsumexp(logits, axis=-1) - mean, 0.0)


def _divergence(student_log_p: Array, teacher_log_p: Array) -> Array:
    """Kullback-Leibler divergence of the student from the teacher, who gets no gradient."""
    teacher_log_p = lax.stop_gradient(teacher_log_p)
    # One elementwise expression under one sum, so that compilers make no tensor of the pairs.
    return jnp.sum(jnp.exp(teacher_log_p) * (teacher_log_p - student_log_p), axis=-1)


def _logits(subscripts: str, embeddings: Array, others: Array, *, temperature: float) -> Array:
    """Products over the temperature, in full precision: the temperature multiplies errors."""
    dtype = jnp.promote_types(_wide(embeddings), _wide(others))
    x, y = embeddings.astype(dtype), others.astype(dtype)
    return jnp.einsum(subscripts, x, y, precision=lax.Precision.HIGHEST) / temperature


def _other_networks_only(match_weights: Array) -> Array:
    """The weights `[n s n s b]` with zeros at the entries of a network with itself."""
    itself = jnp.eye(match_weights.shape[0], dtype=bool)[:, None, :, None, None]
    return jnp.where(itself, 0.0, match_weights)


def _wide(x: Array) -> jnp.dtype:
    """The dtype to compute in."""
    return jnp.promote_types(x.dtype, jnp.float32)


def _check_temperatures(temperature: float, soft_temperature: float) -> None:
    for name, value in (("temperature", temperature), ("soft_temperature", soft_temperature)):
        if not value > 0:
            raise UserError(f"{name} is {value}; expected a number above 0")
