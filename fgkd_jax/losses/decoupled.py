"""Detector distillation with objects and background apart: of features, and of class scores."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fgkd_jax.errors import UserError
from fgkd_jax.typing import Array, Bool, Float


class DecoupledFeatures(NamedTuple):
    """The two parts of `decoupled_features`, each a sum and a count `[b]`.

    Attributes:
      object: of the cells in the mask.
      background: of all other cells.
    """

    object: tuple[Float[Array, "b"], Float[Array, "b"]]
    background: tuple[Float[Array, "b"], Float[Array, "b"]]


class DecoupledLogits(NamedTuple):
    """The two parts of `decoupled_logits`, each a sum and a count `[p]`.

    Attributes:
      object: of the valid positive proposals.
      background: of the other valid proposals.
    """

    object: tuple[Float[Array, "p"], Float[Array, "p"]]
    background: tuple[Float[Array, "p"], Float[Array, "p"]]


def decoupled_features(
    student: Float[Array, "b h w c"],
    teacher: Float[Array, "b h w c"],
    mask: Bool[Array, "b h w"] | Float[Array, "b h w"],
    *,
    valid: Bool[Array, "b h w"] | None = None,
) -> DecoupledFeatures:
    """Compares feature maps inside and outside of objects.

    With M the mask, e = mean over channels of (student - teacher)^2 / 2,

        object = (sum M e, sum M)        background = (sum (1 - M) e, sum (1 - M))

    over the cells of each image. Over a batch, `sum(sums) / max(1, sum(counts))` is half the mean
    squared error of the selected elements. Without `valid` no cell is left out, and what is padding
    counts as background, as released.

    There is no `stop_gradient`: a frozen teacher gets no gradient because it is frozen, and the
    caller cuts any other.

    Args:
      student: `[b h w c]`, adapted to the teacher's channels.
      teacher: `[b h w c]`.
      mask: `[b h w]`, True at objects, or weights in [0, 1].
      valid: `[b h w]`, False at cells that belong to neither part; None: there are none.

    Returns:
      Sums and counts, each `[b]`, of at least float32 whatever the features are: sums over a map
      and counts of cells do not fit half precision.

    Raises:
      UserError: the shapes do not fit.

    Source:
      Guo et al., "Distilling object detectors via decoupled features", CVPR 2021, equation 3. There
      1 / (2 N) times the squared error, N being cells times channels: the same where the sum over
      levels is left to the caller. The released code normalises per batch and level.

    Example:
      >>> student, teacher = jnp.zeros((1, 1, 3, 2)), jnp.full((1, 1, 3, 2), 2.0)
      >>> mask = jnp.array([[[True, False, False]]])
      >>> [[float(x[0]) for x in part] for part in decoupled_features(student, teacher, mask)]
      [[2.0, 1.0], [4.0, 2.0]]
    """
    masks = [x.shape for x in (mask, valid) if x is not None]
    fits = student.ndim == 4 and student.shape == teacher.shape
    if not fits or any(shape != student.shape[:3] for shape in masks):
        told = " and valid ".join(map(str, masks))
        raise UserError(
            f"student has the shape {student.shape}, teacher {teacher.shape} and mask {told}; "
            "expected [b, h, w, c] twice and [b, h, w]"
        )
    wide = jnp.promote_types(jnp.promote_types(student.dtype, teacher.dtype), jnp.float32)
    inside = mask.astype(wide)
    outside = 1.0 - inside
    if valid is not None:
        inside, outside = (jnp.where(valid, x, 0.0) for x in (inside, outside))
    # Features that count for nothing are replaced before they are squared, and so may be infinite.
    counts = ((inside > 0) | (outside > 0))[..., None]
    apart = jnp.where(counts, student.astype(wide) - teacher.astype(wide), 0.0)
    error = 0.5 * jnp.mean(jnp.square(apart), axis=3)

    def part(weights: Array) -> tuple[Array, Array]:
        chosen = jnp.where(weights > 0, weights * error, 0.0)
        return jnp.sum(chosen, axis=(1, 2)), jnp.sum(weights, axis=(1, 2))

    return DecoupledFeatures(object=part(inside), background=part(outside))


def decoupled_logits(
    student: Float[Array, "p k"],
    teacher: Float[Array, "p k"],
    positive: Bool[Array, "p"],
    *,
    valid: Bool[Array, "p"],
    object_temperature: float = 1.0,
    background_temperature: float = 1.0,
) -> DecoupledLogits:
    """Compares the class scores of proposals on objects and on background.

    With q = softmax(teacher / T), p = softmax(student / T), each part having its own T,

        T^2 sum_k q[k] (log q[k] - log p[k])

    There is no `stop_gradient`, as in `decoupled_features`.

    Args:
      student: `[p k]`, of the same proposals as the teacher's, the background being one class.
      teacher: `[p k]`; -inf excludes a class.
      positive: `[p]`, whether the label of the proposal is an object.
      valid: `[p]`, False at the padding.
      object_temperature: T of the positive proposals, above 0.
      background_temperature: T of the others, above 0.

    Returns:
      Sums and counts, each `[p]`, 0 where the proposal is not of that part; nats, in the dtype of
      `student`, computed in at least float32.

    Raises:
      UserError: the shapes do not fit, or a temperature is not above 0.

    Source:
      Guo et al., CVPR 2021, section 3.2: proposals decoupled, with a temperature each. The released
      code reads one temperature for both, and takes the largest label that occurs for background.

    Example:
      >>> student, teacher = jnp.zeros((2, 2)), jnp.array([[0.0, 4.0], [0.0, 0.0]])
      >>> positive, valid = jnp.array([True, False]), jnp.array([True, True])
      >>> parts = decoupled_logits(student, teacher, positive, valid=valid, object_temperature=4.0)
      >>> parts.object[0].round(4), parts.background[1]
      (Array([1.7751, 0.    ], dtype=float32), Array([0., 1.], dtype=float32))
    """
    return _decoupled(
        _divergence, student, teacher, positive, valid, object_temperature, background_temperature
    )


def decoupled_scores(
    student: Float[Array, "p k"],
    teacher: Float[Array, "p k"],
    positive: Bool[Array, "p"],
    *,
    valid: Bool[Array, "p"],
    object_temperature: float = 1.0,
    background_temperature: float = 1.0,
) -> DecoupledLogits:
    """Compares the class scores of anchors, where every class is a yes or no of its own.

    With q = sigmoid(teacher / T), p = sigmoid(student / T), each part having its own T,

        T^2 sum_k (q[k] log(q[k] / p[k]) + (1 - q[k]) log((1 - q[k]) / (1 - p[k])))

    which is `decoupled_logits` of every class against 0, summed over classes. There is no
    `stop_gradient`, as in `decoupled_features`.

    Args:
      student: `[p k]`, of the same anchors as the teacher's.
      teacher: `[p k]`.
      positive: `[p]`, whether the anchor answers for an object.
      valid: `[p]`, False at anchors that answer for nothing.
      object_temperature: T of the positive anchors, above 0.
      background_temperature: T of the others, above 0.

    Returns:
      Sums and counts as of `decoupled_logits`.

    Raises:
      UserError: the shapes do not fit, or a temperature is not above 0.

    Source:
      Guo et al., CVPR 2021, section 3.2, for a head without a class for the background. There is no
      released code of it for RetinaNet.

    Example:
      >>> student, teacher = jnp.zeros((2, 1)), jnp.array([[4.0], [0.0]])
      >>> positive, valid = jnp.array([True, False]), jnp.array([True, True])
      >>> parts = decoupled_scores(student, teacher, positive, valid=valid, object_temperature=4.0)
      >>> parts.object[0].round(4), parts.background[1]
      (Array([1.7751, 0.    ], dtype=float32), Array([0., 1.], dtype=float32))
    """
    return _decoupled(
        _yes_no_divergence,
        student,
        teacher,
        positive,
        valid,
        object_temperature,
        background_temperature,
    )


def _decoupled(
    divergence: Callable[[Array, Array, Array, float], Array],
    student: Array,
    teacher: Array,
    positive: Array,
    valid: Array,
    object_temperature: float,
    background_temperature: float,
) -> DecoupledLogits:
    shapes = student.shape, teacher.shape, positive.shape, valid.shape
    if student.ndim != 2 or shapes[0] != shapes[1] or not shapes[0][:1] == shapes[2] == shapes[3]:
        raise UserError(
            f"student has the shape {shapes[0]}, teacher {shapes[1]}, positive {shapes[2]} and "
            f"valid {shapes[3]}; expected [p, k] twice and [p] twice"
        )
    for name, value in (("object", object_temperature), ("background", background_temperature)):
        if not value > 0:
            raise UserError(f"{name}_temperature is {value}; expected a number above 0")

    def part(where: Array, temperature: float) -> tuple[Array, Array]:
        values = divergence(student, teacher, where, temperature)
        return values.astype(student.dtype), where.astype(student.dtype)

    return DecoupledLogits(
        object=part(positive & valid, object_temperature),
        background=part(~positive & valid, background_temperature),
    )


def _yes_no_divergence(student: Array, teacher: Array, where: Array, temperature: float) -> Array:
    """T^2 KL(teacher || student) of yes and no, summed over classes; elsewhere 0."""
    wide = jnp.promote_types(student.dtype, jnp.float32)
    ours, theirs = (
        jnp.where(where[:, None], logits.astype(wide), 0.0) / temperature
        for logits in (student, teacher)
    )

    def part(sign: float) -> Array:
        q = jax.nn.sigmoid(sign * theirs)
        difference = jax.nn.log_sigmoid(sign * theirs) - jax.nn.log_sigmoid(sign * ours)
        return jnp.where(q > 0, q * difference, 0.0)

    return temperature**2 * jnp.sum(part(1.0) + part(-1.0), axis=-1)


def _divergence(student: Array, teacher: Array, where: Array, temperature: float) -> Array:
    """T^2 KL(teacher || student) of the rows where it is asked for, elsewhere 0."""
    wide = jnp.promote_types(student.dtype, jnp.float32)
    # Rows that do not count are replaced first: what they hold is not to reach a gradient.
    log_p, log_q = (
        jax.nn.log_softmax(jnp.where(where[:, None], logits.astype(wide), 0.0) / temperature)
        for logits in (student, teacher)
    )
    q = jnp.exp(log_q)
    difference = jnp.where(q > 0, log_q - log_p, 0.0)
    return temperature**2 * jnp.sum(q * difference, axis=-1)
