"""Optimisers, learning-rate schedules and moving averages of parameters."""

import dataclasses
import difflib
import math
import re
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from fgkd_jax.errors import UserError
from fgkd_jax.typing import PyTree

_TRAINABLE = "trainable"
_FROZEN = "frozen"


@dataclasses.dataclass(frozen=True)
class ParamRule:
    """What differs from the common settings for some of the parameters.

    Attributes:
      pattern: regular expression, searched for in the parameter's path, for example
        `backbone/stem/conv/kernel`; anchor it with `^` and `$` where that matters.
      learning_rate_scale: factor on the learning rate, at least 0.
      weight_decay_scale: factor on the weight decay, at least 0.
      frozen: never updated, not counted by `clip_norm`, and without any optimiser state.
    """

    pattern: str
    learning_rate_scale: float = 1.0
    weight_decay_scale: float = 1.0
    frozen: bool = False

    def __post_init__(self) -> None:
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise UserError(
                f"rules: pattern {self.pattern!r} is no regular expression: {error}"
            ) from error
        for name in ("learning_rate_scale", "weight_decay_scale"):
            _check_range(f"rules: {name} of {self.pattern!r}", getattr(self, name), low=0.0)


@dataclasses.dataclass(frozen=True)
class OptimOptions:
    """How parameters are updated.

    One update is, in this order: clip the gradients; add the coupled weight decay; precondition
    (momentum, moments); add the decoupled weight decay; multiply by the learning rate, which comes
    last, so that a change of the rate acts on the momentum gathered so far.

    Attributes:
      name: `sgd`, `adam` and `rmsprop` with coupled weight decay, that is `gradient +
        weight_decay * parameter` enters the momentum and the moments; `adamw` with decoupled weight
        decay, that is `learning_rate * weight_decay * parameter` is taken off beside the step.
      learning_rate: the rate at its peak, reached at the end of the warm-up.
      schedule: what follows the warm-up: `constant`; `cosine`, `linear` or `polynomial` (of power
        `polynomial_power`) down to `end_fraction * learning_rate` at the last step; or `step`.
      warmup_steps: steps over which the rate rises linearly from `warmup_init`; step 0 itself uses
        `warmup_init`, step `warmup_steps` the peak.
      warmup_init: the rate at step 0 where there is a warm-up.
      end_fraction: final rate as a fraction of `learning_rate`, in [0, 1].
      polynomial_power: the power of `polynomial`, above 0.
      step_boundaries: for `step`: fractions of all steps, the warm-up included, in (0, 1) and
        rising; from step `round(fraction * total_steps)` on the rate is lower by `decay_factor`.
      decay_factor: factor on the rate at each of `step_boundaries`, above 0.
      momentum: of `sgd` and `rmsprop`, in [0, 1); 0 keeps no momentum.
      nesterov: Nesterov's form of the momentum of `sgd`.
      betas: decay of the first and second moments of `adam` and `adamw`.
      rms_decay: decay of the mean of squares of `rmsprop`.
      epsilon: of `adam`, `adamw` and `rmsprop`, added to the root of the second moment.
      epsilon_in_sqrt: of `rmsprop`: adds `epsilon` under the root instead.
      weight_decay: coefficient of the weight decay, at least 0.
      decay_vectors: also decays parameters of rank below 2 (biases, scales of normalisations),
        which by default are left out.
      clip_norm: greatest norm of the gradients of all trainable parameters together; 0 never clips.
      ema_decay: decay of the moving average of the parameters; 0 keeps none.
      ema_warmup: lets the average follow faster at first, see `ema_update`.
      rules: exceptions for parameters by their path; of several that match, the first holds.
    """

    name: Literal["sgd", "adamw", "adam", "rmsprop"] = "sgd"
    learning_rate: float = 0.1
    schedule: Literal["constant", "cosine", "linear", "step", "polynomial"] = "cosine"
    warmup_steps: int = 0
    warmup_init: float = 0.0
    end_fraction: float = 0.0
    polynomial_power: float = 2.0
    step_boundaries: tuple[float, ...] = (0.5, 0.75)
    decay_factor: float = 0.1
    momentum: float = 0.9
    nesterov: bool = False
    betas: tuple[float, float] = (0.9, 0.999)
    rms_decay: float = 0.99
    epsilon: float = 1e-8
    epsilon_in_sqrt: bool = False
    weight_decay: float = 0.0
    decay_vectors: bool = False
    clip_norm: float = 0.0
    ema_decay: float = 0.0
    ema_warmup: bool = False
    rules: tuple[ParamRule, ...] = ()

    def __post_init__(self) -> None:
        at_least_zero = ("learning_rate", "warmup_steps", "warmup_init", "epsilon", "weight_decay")
        for name in (*at_least_zero, "clip_norm"):
            _check_range(name, getattr(self, name), low=0.0)
        for name in ("polynomial_power", "decay_factor"):
            _check_range(name, getattr(self, name), low=0.0, low_open=True)
        _check_range("end_fraction", self.end_fraction, low=0.0, high=1.0)
        for name in ("momentum", "rms_decay", "ema_decay"):
            _check_range(name, getattr(self, name), low=0.0, high=1.0, high_open=True)
        for beta in self.betas:
            _check_range("betas", beta, low=0.0, high=1.0, high_open=True)
        for fraction in self.step_boundaries:
            _check_range(
                "step_boundaries", fraction, low=0.0, high=1.0, low_open=True, high_open=True
            )
        if list(self.step_boundaries) != sorted(set(self.step_boundaries)):
            raise UserError(
                f"step_boundaries are {self.step_boundaries}; expected rising fractions"
            )


def learning_rate_schedule(options: OptimOptions, total_steps: int) -> optax.Schedule:
    """Returns the learning rate as a function of the number of updates made so far.

    Args:
      options: the peak, the warm-up and the schedule that follows.
      total_steps: number of updates of the whole run; the rate stays at its end value afterwards.

    Returns:
      A function of the step, an integer or an integer array, to the rate.

    Raises:
      UserError: where `total_steps` leaves no step after the warm-up.
    """
    if total_steps <= options.warmup_steps:
        raise UserError(
            f"train.steps is {total_steps} and optim.warmup_steps {options.warmup_steps}; expected "
            "more steps than the warm-up takes"
        )
    main = _SCHEDULES[options.schedule](options, total_steps)
    if options.warmup_steps == 0:
        return main
    warmup = optax.linear_schedule(options.warmup_init, options.learning_rate, options.warmup_steps)
    return optax.join_schedules([warmup, main], [options.warmup_steps])


def trainable_mask(options: OptimOptions, params: PyTree) -> PyTree:
    """Returns which parameters are updated.

    Args:
      options: the rules.
      params: the parameters, or their shapes.

    Returns:
      The structure of `params` with False where the first rule that matches says `frozen`.

    Raises:
      UserError: where a rule's pattern matches no parameter, or none that an earlier rule left.
    """
    rules = _rule_by_path(options.rules, params)
    return jax.tree_util.tree_map_with_path(lambda path, _: not rules[_name(path)].frozen, params)


def make_optimizer(
    options: OptimOptions, params: PyTree, *, total_steps: int
) -> optax.GradientTransformation:
    """Returns the optimiser of a set of parameters.

    Frozen parameters get updates that are exactly zero and have no entry in the optimiser's state;
    their gradients do not count in the norm that `clip_norm` limits.

    Args:
      options: the optimiser, its schedule, and the rules over parameters.
      params: the parameters, or their shapes: only paths and ranks are used.
      total_steps: number of updates of the whole run.

    Returns:
      A gradient transformation; its `update` needs the parameters.

    Raises:
      UserError: where a rule's pattern matches nothing, or every parameter is frozen.
    """
    mask = trainable_mask(options, params)
    if not any(jax.tree.leaves(mask)):
        raise UserError("rules freeze every parameter; expected at least one to train")
    rules = _rule_by_path(options.rules, params)
    ranks = {_name(path): len(leaf.shape) for path, leaf in _leaves(params)}
    rates = {name: rule.learning_rate_scale for name, rule in rules.items()}
    decays = {
        name: options.weight_decay * rule.weight_decay_scale
        if options.decay_vectors or ranks[name] >= 2
        else 0.0
        for name, rule in rules.items()
    }
    decoupled = options.name == "adamw"
    parts = [
        optax.identity() if decoupled else _add_decay(decays),
        _PRECONDITIONERS[options.name](options),
        _add_decay(decays) if decoupled else optax.identity(),
        _scale_each(rates),
        optax.scale_by_learning_rate(learning_rate_schedule(options, total_steps)),
    ]
    labels = jax.tree.map(lambda trainable: _TRAINABLE if trainable else _FROZEN, mask)
    update = optax.partition(
        {_TRAINABLE: optax.chain(*parts), _FROZEN: optax.set_to_zero()}, labels
    )
    if options.clip_norm == 0.0:
        return update
    return optax.chain(optax.masked(optax.clip_by_global_norm(options.clip_norm), mask), update)


def ema_update(
    ema: PyTree, params: PyTree, *, decay: float, step: Any, warmup: bool = False
) -> PyTree:
    """Returns the moving average of the parameters after an update.

    `ema + (1 - d) (params - ema)`, in float32, with `d = decay` or, with `warmup`,
    `d = min(decay, (1 + step) / (10 + step))`. What does not change stays the same bit for bit.

    Args:
      ema: the average so far; start from the parameters themselves.
      params: the parameters after the update, of the same structure.
      decay: the share of the average that is kept, in `[0, 1)`.
      step: number of updates made before this one, an integer or an integer array.
      warmup: follows the parameters faster during the first updates.

    Returns:
      The new average, each leaf in its own dtype; leaves that are not floating are those of
      `params`.
    """
    kept = jnp.asarray(decay, jnp.float32)
    if warmup:
        count = jnp.asarray(step, jnp.float32)
        kept = jnp.minimum(kept, (1.0 + count) / (10.0 + count))

    def move(average: Any, value: Any) -> Any:
        if not jnp.issubdtype(average.dtype, jnp.floating):
            return value
        wide = average.astype(jnp.float32)
        return (wide + (1.0 - kept) * (value.astype(jnp.float32) - wide)).astype(average.dtype)

    return jax.tree.map(move, ema, params)


def _name(path: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _leaves(params: PyTree) -> list[tuple[Any, Any]]:
    return jax.tree_util.tree_flatten_with_path(params)[0]


def _rule_by_path(rules: tuple[ParamRule, ...], params: PyTree) -> dict[str, ParamRule]:
    """The rule of every parameter; the neutral one where none matches."""
    names = [_name(path) for path, _ in _leaves(params)]
    chosen: dict[str, ParamRule] = {}
    for rule in rules:
        matches = [name for name in names if re.search(rule.pattern, name)]
        if not matches:
            close = difflib.get_close_matches(rule.pattern, names, n=3, cutoff=0.0)
            raise UserError(
                f"rules: pattern {rule.pattern!r} matches no parameter; nearest are"
                f" {', '.join(close)}"
            )
        fresh = [name for name in matches if name not in chosen]
        if not fresh:
            raise UserError(
                f"rules: pattern {rule.pattern!r} never applies: earlier rules hold for all"
                f" {len(matches)} parameters that it matches, such as {matches[0]}"
            )
        chosen.update(dict.fromkeys(fresh, rule))
    return {name: chosen.get(name, ParamRule(pattern="")) for name in names}


def _add_decay(decays: dict[str, float]) -> optax.GradientTransformation:
    """Adds to each update its own multiple of the parameter."""

    def update(updates: PyTree, params: PyTree | None) -> PyTree:
        if params is None:
            raise ValueError("weight decay needs the parameters: call update(grads, state, params)")

        def add(path: tuple[Any, ...], value: Any, param: Any) -> Any:
            decay = decays[_name(path)]
            return value + decay * param if decay else value

        return jax.tree_util.tree_map_with_path(add, updates, params)

    return optax.stateless(update) if any(decays.values()) else optax.identity()


def _scale_each(factors: dict[str, float]) -> optax.GradientTransformation:
    """Multiplies each update by its own factor."""

    def update(updates: PyTree, params: PyTree | None) -> PyTree:
        del params
        return jax.tree_util.tree_map_with_path(
            lambda path, value: factors[_name(path)] * value, updates
        )

    return optax.stateless(update) if set(factors.values()) != {1.0} else optax.identity()


def _momentum(options: OptimOptions, *, nesterov: bool) -> optax.GradientTransformation:
    if options.momentum == 0.0:
        return optax.identity()
    return optax.trace(decay=options.momentum, nesterov=nesterov)


def _adam(options: OptimOptions) -> optax.GradientTransformation:
    first, second = options.betas
    return optax.scale_by_adam(b1=first, b2=second, eps=options.epsilon)


def _rmsprop(options: OptimOptions) -> optax.GradientTransformation:
    squares = optax.scale_by_rms(
        decay=options.rms_decay, eps=options.epsilon, eps_in_sqrt=options.epsilon_in_sqrt
    )
    return optax.chain(squares, _momentum(options, nesterov=False))


_PRECONDITIONERS: dict[str, Callable[[OptimOptions], optax.GradientTransformation]] = {
    "sgd": lambda options: _momentum(options, nesterov=options.nesterov),
    "adam": _adam,
    "adamw": _adam,
    "rmsprop": _rmsprop,
}


def _polynomial(power: float, options: OptimOptions, total_steps: int) -> optax.Schedule:
    return optax.polynomial_schedule(
        init_value=options.learning_rate,
        end_value=options.end_fraction * options.learning_rate,
        power=power,
        transition_steps=total_steps - options.warmup_steps,
    )


def _steps(options: OptimOptions, total_steps: int) -> optax.Schedule:
    """Drops at fractions of the whole run; the count that comes in starts after the warm-up."""
    drops: dict[int, float] = {}
    for fraction in options.step_boundaries:
        boundary = round(fraction * total_steps) - options.warmup_steps
        drops[boundary] = drops.get(boundary, 1.0) * options.decay_factor
    return optax.piecewise_constant_schedule(options.learning_rate, drops)


_SCHEDULES: dict[str, Callable[[OptimOptions, int], optax.Schedule]] = {
    "constant": lambda options, _: optax.constant_schedule(options.learning_rate),
    "cosine": lambda options, total_steps: optax.cosine_decay_schedule(
        options.learning_rate, total_steps - options.warmup_steps, alpha=options.end_fraction
    ),
    "linear": lambda options, total_steps: _polynomial(1.0, options, total_steps),
    "polynomial": lambda options, total_steps: _polynomial(
        options.polynomial_power, options, total_steps
    ),
    "step": _steps,
}


def _check_range(
    name: str,
    value: float,
    *,
    low: float,
    high: float = math.inf,
    low_open: bool = False,
    high_open: bool = False,
) -> None:
    too_low = value <= low if low_open else value < low
    too_high = value >= high if high_open else value > high
    if too_low or too_high or not math.isfinite(value):
        above = f"above {low:g}" if low_open else f"at least {low:g}"
        below = "" if high == math.inf else f" and {'below' if high_open else 'at most'} {high:g}"
        raise UserError(f"{name} is {value}; expected a number {above}{below}")
