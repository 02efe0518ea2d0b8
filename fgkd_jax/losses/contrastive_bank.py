"""Mutual contrastive learning against memory banks."""

import jax
import jax.numpy as jnp
from jax import lax

from fgkd_jax.errors import UserError
from fgkd_jax.losses.contrastive import (
    MutualContrastive,
    _check_temperatures,
    _contrast,
    _divergence,
    _logits,
    _other_networks_only,
    normalize_embeddings,
)
from fgkd_jax.typing import Array, Float, Int


def bank_mutual_contrastive(
    embeddings: Float[Array, "n b d"],
    candidates: Float[Array, "n b m d"],
    *,
    num_positives: int,
    temperature: float = 0.07,
    soft_temperature: float = 3.0,
) -> MutualContrastive:
    """Returns the terms of mutual contrastive learning against rows of memory banks.

    With `G_ac[i, j] = y_a[i, j] . x_c[i] / temperature`, between anchor i in network c and its
    candidate j in the bank of network a, and G' without column 0,

        C(L)[i] = log sum_j exp L[i, j] - mean_{positives j} L[i, j]
        vcl = sum_a C(G'_aa)             soft_vcl = sum_{a != c} KL(G'_aa <- G'_cc)
        icl = sum_{a != c} C(G_ac)       soft_icl = sum_{a != c} KL(G_ac <- G_ca)

    and KL of `mutual_contrastive`. Within a network the anchor's own row is left out; between
    networks it is the first positive.

    Args:
      embeddings: `[n b d]`, of length one (`normalize_embeddings`), for n networks.
      candidates: `[n b m d]`, gathered rows of each network's bank, at the same m indices of the
        data set: the anchor's own, then its other positives, then negatives.
      num_positives: the positives among the candidates, the own row among them, from 1 to m; with
        1, `vcl` is exactly zero.
      temperature: divides the products, above 0.
      soft_temperature: divides once more what the divergences compare, above 0.

    Returns:
      Each term `[b]`, in nats, in the dtype of `embeddings`, computed in at least float32; sums
      over networks and pairs. No gradient reaches `candidates` or a teacher (`stop_gradient`).

    Raises:
      UserError: the shapes do not fit, there is one candidate alone, or a number is out of range.

    Source:
      Yang et al., "Mutual contrastive learning for visual representation learning", AAAI 2022,
      as its authors released it for ImageNet.

    Example:
      >>> x, bank = jnp.ones((2, 1, 1)), jnp.ones((2, 1, 4, 1))
      >>> terms = bank_mutual_contrastive(x, bank, num_positives=2)
      >>> f"{terms.vcl[0]:.3f}", f"{terms.icl[0]:.3f}"  # 2 log 3, 2 log 4
      ('2.197', '2.773')
    """
    n, b, d = embeddings.shape if embeddings.ndim == 3 else (-1,) * 3
    m = candidates.shape[2] if candidates.ndim == 4 else 0
    if candidates.shape != (n, b, m, d) or m < 2:
        raise UserError(
            f"embeddings have the shape {embeddings.shape} and candidates {candidates.shape}; "
            "expected [n, b, d], [n, b, m, d] with m at least 2"
        )
    _check_temperatures(temperature, soft_temperature)
    positives = _first_columns(num_positives, m)
    rows = lax.stop_gradient(candidates)
    logits = _logits("cbd,abmd->acbm", embeddings, rows, temperature=temperature)
    nets = jnp.arange(n)
    own = logits[nets, nets][..., 1:]
    terms = _terms(
        _contrast(logits, positives),
        _contrast(own, positives[1:]),
        jax.nn.log_softmax(logits / soft_temperature),
        jax.nn.log_softmax(own / soft_temperature),
        _others(n, dtype=logits.dtype),
        jnp.ones((n, 1), logits.dtype),
        soft_temperature=soft_temperature,
    )
    return MutualContrastive(*(term.astype(embeddings.dtype) for term in terms))


def layerwise_bank_mutual_contrastive(
    embeddings: Float[Array, "n s b d"],
    candidates: Float[Array, "n b m d"],
    match_weights: Float[Array, "n s n s b"],
    *,
    num_positives: int,
    temperature: float = 0.07,
    soft_temperature: float = 3.0,
    reference_intra: bool = False,
) -> MutualContrastive:
    """Returns the terms between the stages of networks against rows of one bank per network.

    With p = (network i, stage k), q = (network j, stage z), `w_pq` for `match_weights[i, k, j, z]`
    and G, G', C and KL as in `bank_mutual_contrastive`, `G_iq` having the candidates of network i
    and the anchors of q, sums over all ordered pairs with i != j:

        vcl = sum w_pq (C(G'_ip) + C(G'_jq))
        icl = sum w_pq (C(G_iq) + C(G_jp))
        soft_vcl = sum w_pq (KL(G'_ip <- G'_jq) + KL(G'_jq <- G'_ip))
        soft_icl = sum w_pq (KL(G_iq <- G_jp) + KL(G_jp <- G_iq))

    Symmetric weights count everything twice, as in `layerwise_mutual_contrastive`.

    Memory: one tensor `[n n s b m]` of products and a few alike.

    Args:
      embeddings: `[n s b d]`, of length one (`normalize_embeddings`), of n networks, s stages.
      candidates, num_positives, temperature, soft_temperature: as in `bank_mutual_contrastive`.
      match_weights: `[n s n s b]`, at `[i, k, j, z, b]` the weight of anchor b in both matrices of
        the entry; need not be symmetric. Entries of a network with itself are ignored.
      reference_intra: take `G'_iq` for `G'_jq` in `vcl` and `soft_vcl`, as the released code does:
        it puts the first network's bank where symmetry, and the default, ask for the second's.

    Returns:
      Each term `[b]`, in nats, in the dtype of `embeddings`, computed in at least float32. The
      gradient reaches `match_weights`, but not `candidates` or a teacher (`stop_gradient`).

    Raises:
      UserError: the shapes do not fit, there is one candidate alone, or a number is out of range.

    Source:
      Yang et al., "Online knowledge distillation via mutual contrastive learning for visual
      recognition", TPAMI 2023, as its authors released it for ImageNet, but for `reference_intra`.

    Example:
      >>> x, bank, weights = (jnp.ones((2, 1, *shape)) for shape in [(1, 1), (4, 1), (2, 1, 1)])
      >>> terms = layerwise_bank_mutual_contrastive(x, bank, weights, num_positives=2)
      >>> f"{terms.vcl[0]:.3f}"  # 4 log 3
      '4.394'
    """
    n, s, b, d = embeddings.shape if embeddings.ndim == 4 else (-1,) * 4
    m = candidates.shape[2] if candidates.ndim == 4 else 0
    if candidates.shape != (n, b, m, d) or match_weights.shape != (n, s, n, s, b) or m < 2:
        raise UserError(
            f"embeddings have the shape {embeddings.shape}, candidates {candidates.shape} and "
            f"match_weights {match_weights.shape}; expected [n, s, b, d], [n, b, m, d] with m at "
            "least 2, [n, s, n, s, b]"
        )
    _check_temperatures(temperature, soft_temperature)
    positives = _first_columns(num_positives, m)
    rows = lax.stop_gradient(candidates)
    logits = _logits("jzbd,ibmd->ijzbm", embeddings, rows, temperature=temperature)
    weights = _other_networks_only(match_weights.astype(logits.dtype))
    within = _released_within_networks if reference_intra else _within_networks
    terms = (
        *within(logits[..., 1:], positives[1:], weights, soft_temperature=soft_temperature),
        *_between_networks(logits, positives, weights, soft_temperature=soft_temperature),
    )
    vcl, soft_vcl, icl, soft_icl = (term.astype(embeddings.dtype) for term in terms)
    return MutualContrastive(vcl=vcl, icl=icl, soft_vcl=soft_vcl, soft_icl=soft_icl)


def update_bank(
    bank: Float[Array, "n size d"],
    embeddings: Float[Array, "n b d"],
    indices: Int[Array, "b"],
    *,
    momentum: float = 0.5,
) -> Float[Array, "n size d"]:
    """Returns the banks with the rows of a batch moved towards its embeddings.

    `bank[a, r] <- unit(momentum bank[a, r] + (1 - momentum) x_a[i])` for `r = indices[i]`

    Args:
      bank: `[n size d]`, one row per example of the data set, for n networks.
      embeddings: `[n b d]`, of length one.
      indices: `[b]`, rows in `[0, size)`. Where one appears twice, its last example counts, from
        the row as it was before; one outside changes nothing.
      momentum: the share of the old row, in `[0, 1]`.

    Returns:
      `[n size d]`, in the dtype of `bank`; the rows at `indices` have length one, the others are
      as they were. No gradient passes (`stop_gradient`).

    Raises:
      UserError: the shapes do not fit, or `momentum` is out of range.

    Source:
      Yang et al., AAAI 2022, as its authors released it for ImageNet, where any of the examples
      with the same index may win.

    Example:
      >>> update_bank(jnp.zeros((1, 2, 1)), jnp.ones((1, 1, 1)), jnp.array([1])).ravel()
      Array([0., 1.], dtype=float32)
    """
    n, size, d = bank.shape if bank.ndim == 3 else (-1,) * 3
    b = indices.shape[0] if indices.ndim == 1 else 0
    if bank.ndim != 3 or indices.shape != (b,) or embeddings.shape != (n, b, d):
        raise UserError(
            f"bank has the shape {bank.shape}, embeddings {embeddings.shape} and indices "
            f"{indices.shape}; expected [n, size, d], [n, b, d], [b]"
        )
    if not 0 <= momentum <= 1:
        raise UserError(f"momentum is {momentum}; expected a number in [0, 1]")
    bank, embeddings = lax.stop_gradient((bank, embeddings))
    dtype = jnp.promote_types(jnp.promote_types(bank.dtype, embeddings.dtype), jnp.float32)
    old = bank.at[:, indices].get(mode="clip").astype(dtype)
    rows = normalize_embeddings(momentum * old + (1 - momentum) * embeddings.astype(dtype))
    # Scattering to one place twice leaves the order open: send all but the last out of bounds.
    again = jnp.triu(indices[:, None] == indices[None, :], k=1).any(axis=1)
    places = jnp.where(again | (indices < 0), size, indices)
    return bank.at[:, places].set(rows.astype(bank.dtype), mode="drop")


def _terms(
    inter: Array,
    intra: Array,
    inter_log_p: Array,
    intra_log_p: Array,
    inter_weights: Array,
    intra_weights: Array,
    *,
    soft_temperature: float,
) -> MutualContrastive:
    """The sums over m sources, from contrasts and log probabilities.

    `inter` is `[m m b]` and `intra` `[m b]`, the log probabilities have one more axis of columns;
    the weights are like the contrasts, or have size 1 at b. The matrix from p to q learns from the
    one from q to p, the one of p with itself from the one of q with itself.
    """
    soft_intra = _divergence(intra_log_p[:, None], intra_log_p[None])
    soft_inter = _divergence(inter_log_p, jnp.swapaxes(inter_log_p, 0, 1))
    square = soft_temperature**2
    return MutualContrastive(
        vcl=jnp.sum(intra_weights * intra, axis=0),
        icl=jnp.sum(inter_weights * inter, axis=(0, 1)),
        soft_vcl=square * jnp.sum(inter_weights * soft_intra, axis=(0, 1)),
        soft_icl=square * jnp.sum(inter_weights * soft_inter, axis=(0, 1)),
    )


def _others(n: int, *, dtype: jnp.dtype) -> Array:
    """The weights `[n n 1]` of the ordered pairs of networks: 1, and 0 of each with itself."""
    return 1 - jnp.eye(n, dtype=dtype)[:, :, None]


def _between_networks(
    logits: Array, positives: Array, weights: Array, *, soft_temperature: float
) -> tuple[Array, Array]:
    """`icl` and `soft_icl` from `[n n s b m]`, the network of the bank first."""
    # Entry (i, k, j, z) has the matrices at [i, j, z] and [j, i, k]; summed over k with both
    # weights, every contrast appears once, and the divergence with the pair exchanged is another
    # entry.
    both_ways = _both_ways(weights)
    log_p = jax.nn.log_softmax(logits / soft_temperature)
    student = log_p[:, None]
    teacher = jnp.transpose(log_p, (1, 2, 0, 3, 4))[:, :, :, None]
    return (
        jnp.sum(jnp.sum(both_ways, axis=1) * _contrast(logits, positives), axis=(0, 1, 2)),
        soft_temperature**2 * _weighted(both_ways, _divergence(student, teacher)),
    )


def _within_networks(
    logits: Array, positives: Array, weights: Array, *, soft_temperature: float
) -> tuple[Array, Array]:
    """`vcl` and `soft_vcl`, each stage against the bank of its own network."""
    nets = jnp.arange(logits.shape[0])
    own = logits[nets, nets]
    both_ways = _both_ways(weights)
    log_p = jax.nn.log_softmax(own / soft_temperature)
    soft = _divergence(log_p[:, :, None, None], log_p[None, None])
    return (
        jnp.sum(jnp.sum(both_ways, axis=(2, 3)) * _contrast(own, positives), axis=(0, 1)),
        soft_temperature**2 * _weighted(both_ways, soft),
    )


def _released_within_networks(
    logits: Array, positives: Array, weights: Array, *, soft_temperature: float
) -> tuple[Array, Array]:
    """`vcl` and `soft_vcl`, both stages of an entry against the bank of the first network."""
    nets = jnp.arange(logits.shape[0])
    contrast = _contrast(logits, positives)
    log_p = jax.nn.log_softmax(logits / soft_temperature)
    first, second = log_p[nets, nets][:, :, None, None], log_p[:, None]
    soft = _divergence(first, second) + _divergence(second, first)
    hard = contrast[nets, nets][:, :, None, None] + contrast[:, None]
    return _weighted(weights, hard), soft_temperature**2 * _weighted(weights, soft)


def _both_ways(weights: Array) -> Array:
    """The weights `[n s n s b]` of entry (i, k, j, z) and entry (j, z, i, k) together."""
    return weights + jnp.transpose(weights, (2, 3, 0, 1, 4))


def _weighted(weights: Array, terms: Array) -> Array:
    """The sum over all entries `[n s n s b]`."""
    return jnp.sum(weights * terms, axis=(0, 1, 2, 3))


def _first_columns(num_positives: int, m: int) -> Array:
    """Which of m columns are positives, `[m]`."""
    if not 1 <= num_positives <= m:
        raise UserError(f"num_positives is {num_positives}; expected from 1 to {m} candidates")
    return jnp.arange(m) < num_positives
