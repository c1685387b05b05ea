"""First and second moments, as each member of Adam's family combines them."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from graphlr.optim.transforms.leaves import Number, bias_correction, log, per_leaf


class AdamState(NamedTuple):
    """First and second moments, the largest second moment, steps per parameter."""

    exp_avg: Any
    exp_avg_sq: Any
    max_exp_avg_sq: Any  # of Nones unless amsgrad
    steps: jax.Array


def _moments(g: Any, slots: Any, b1: Number, b2: Number) -> tuple[Any, Any]:
    m, v, *_ = slots
    return m + (1 - b1) * (g - m), b2 * v + (1 - b2) * g * g


def scale_by_adam(
    b1: Number = 0.9,
    b2: Number = 0.999,
    eps: Number = 1e-8,
    *,
    amsgrad: bool = False,
    bias_correction: bool = True,
) -> optax.GradientTransformation:
    """Adam's direction as PyTorch computes it.

    `m += (1 - b1) (g - m)`, `v = b2 v + (1 - b2) g²`, and the update is
    `(m / c1) / (sqrt(v) / sqrt(c2) + eps)` with `c = 1 - bᵗ`, t the parameter's own
    step. Against `optax.scale_by_adam`: `c` is computed as `-expm1(t log b)`, which
    float32 does not cancel; t is per parameter; `amsgrad` takes the maximum of the raw
    `v`, not of the corrected one.

    Source: `torch.optim.Adam`; Kingma and Ba 2015, Reddi et al. 2018 (amsgrad).
    `bias_correction=False` is OneFlow's `do_bias_correction=False`.

    Example:
        >>> tx = scale_by_adam()
        >>> state = tx.init({"w": jnp.zeros(1)})
        >>> update, state = tx.update({"w": jnp.array([0.25])}, state)
        >>> float(update["w"][0]).__round__(5), state.steps.tolist()
        (1.0, [1])
    """

    def start(p: Any) -> Any:
        largest = jnp.zeros_like(p) if amsgrad else None
        return jnp.zeros_like(p), jnp.zeros_like(p), largest

    def step(g: Any, _: Any, slots: Any, r1: Any, r2: Any) -> Any:
        m, v = _moments(g, slots, b1, b2)
        largest = jnp.maximum(slots[2], v) if amsgrad else v
        return (m * r1) / (jnp.sqrt(largest) * r2 + eps), (m, v, largest)

    def coefficients(t: jax.Array) -> Any:
        if not bias_correction:
            return jnp.ones(t.shape), jnp.ones(t.shape)
        c1, c2 = _corrections(b1, b2, t)
        return 1 / c1, jax.lax.rsqrt(c2)

    return per_leaf(AdamState, start, step, coefficients)


def _corrections(b1: Number, b2: Number, t: jax.Array) -> tuple[jax.Array, jax.Array]:
    return bias_correction(b1, t), bias_correction(b2, t)


class AdamaxState(NamedTuple):
    """First moment, decaying maximum of sizes, steps per parameter."""

    exp_avg: Any
    exp_inf: Any
    steps: jax.Array


def scale_by_adamax(
    b1: Number = 0.9, b2: Number = 0.999, eps: Number = 1e-8
) -> optax.GradientTransformation:
    """`(m / c1) / u` with `u = max(b2 u, |g| + eps)`.

    `optax.scale_by_adamax` is the same with one count for a whole group and a
    correction that float32 cancels.

    Source: `torch.optim.Adamax`; Kingma and Ba 2015, section 7.1.

    Example:
        >>> tx = scale_by_adamax()
        >>> update, state = tx.update(jnp.array([0.25]), tx.init(jnp.zeros(1)))
        >>> float(update[0]).__round__(5)
        1.0
    """

    def start(p: Any) -> Any:
        return jnp.zeros_like(p), jnp.zeros_like(p)

    def step(g: Any, _: Any, slots: Any, c1: Any) -> Any:
        m = slots[0] + (1 - b1) * (g - slots[0])
        u = jnp.maximum(b2 * slots[1], jnp.abs(g) + eps)
        return m / c1 / u, (m, u)

    return per_leaf(AdamaxState, start, step, lambda t: (bias_correction(b1, t),))


class NAdamState(NamedTuple):
    """First and second moments, product of the momenta so far, steps per parameter."""

    exp_avg: Any
    exp_avg_sq: Any
    mu_product: Any
    steps: jax.Array


def scale_by_nadam(
    b1: Number, b2: Number, eps: Number, momentum_decay: Number
) -> optax.GradientTransformation:
    """Adam with Nesterov's look-ahead and a momentum that grows to `b1`.

    `mu(t) = b1 (1 - 0.5 * 0.96^(t * momentum_decay))`; the update is `(g (1 - mu(t)) /
    (1 - P) + m mu(t+1) / (1 - P mu(t+1))) / (sqrt(v / c2) + eps)`, P the product of
    `mu(1)` to `mu(t)`. `optax.nadam` has a constant momentum.

    Source: `torch.optim.NAdam`; Dozat 2016.

    Example:
        >>> tx = scale_by_nadam(0.9, 0.999, 1e-8, 4e-3)
        >>> update, state = tx.update(jnp.array([0.25]), tx.init(jnp.zeros(1)))
        >>> float(update[0]).__round__(4), float(state.mu_product).__round__(4)
        (1.0565, 0.4501)
    """

    def start(p: Any) -> Any:
        return jnp.zeros_like(p), jnp.zeros_like(p), jnp.ones((), float)

    def mu(t: jax.Array) -> jax.Array:
        return b1 * (1 - 0.5 * jnp.exp(t * momentum_decay * log(0.96)))

    def step(g: Any, _: Any, slots: Any, now: Any, after: Any, c2: Any) -> Any:
        m, v = _moments(g, slots, b1, b2)
        product = slots[2] * now
        ahead = g * ((1 - now) / (1 - product)) + m * (after / (1 - product * after))
        return ahead / (jnp.sqrt(v / c2) + eps), (m, v, product)

    def coefficients(t: jax.Array) -> Any:
        return mu(t), mu(t + 1), bias_correction(b2, t)

    return per_leaf(NAdamState, start, step, coefficients)


class MomentsState(NamedTuple):
    """First and second moments, steps per parameter."""

    exp_avg: Any
    exp_avg_sq: Any
    steps: jax.Array


def scale_by_radam(
    b1: Number = 0.9, b2: Number = 0.999, eps: Number = 1e-8
) -> optax.GradientTransformation:
    """Adam whose first steps, of too uncertain a second moment, are plain momentum.

    `m / c1`, times `r sqrt(c2) / (sqrt(v) + eps)` once `rho(t) > 5`. `optax` has
    `rho >= 5` and adds `eps` after the correction of `v`.

    Source: `torch.optim.RAdam`; Liu et al. 2020.

    Example:
        >>> tx = scale_by_radam()
        >>> update, state = tx.update(jnp.array([0.25]), tx.init(jnp.zeros(1)))
        >>> float(update[0]).__round__(5)
        0.25
    """

    def start(p: Any) -> Any:
        return jnp.zeros_like(p), jnp.zeros_like(p)

    def step(g: Any, _: Any, slots: Any, c1: Any, c2: Any, rect: Any) -> Any:
        m, v = _moments(g, slots, b1, b2)
        adapted = rect * jnp.sqrt(c2) / (jnp.sqrt(v) + eps)
        return (m / c1) * jnp.where(rect > 0, adapted, 1.0), (m, v)

    def coefficients(t: jax.Array) -> Any:
        return *_corrections(b1, b2, t), _rectification(b2, t)

    return per_leaf(MomentsState, start, step, coefficients)


# coth(y) - 1/y is the sum of these times y, y³, y⁵, ...
_LANGEVIN = (
    1 / 3,
    -1 / 45,
    2 / 945,
    -1 / 4725,
    2 / 93555,
    -1382 / 638512875,
    4 / 18243225,
    -3617 / 162820783125,
    87734 / 38979295480125,
)


def _rectification(b2: Number, t: jax.Array) -> jax.Array:
    """RAdam's r(t), or 0 where rho(t) is at most 5.

    `rho(t) = rho_inf - 2 t b2ᵗ / (1 - b2ᵗ)` is the difference of two large numbers at
    first: with `x = -log b2` and `L(y) = coth y - 1/y` it is
    `t + L(x / 2) - t L(t x / 2)`.
    """
    x = -log(b2)
    limit = 2 / (1 - b2) - 1

    def langevin(y: Any) -> Any:
        total = 0.0
        for coefficient in reversed(_LANGEVIN):
            total = total * y * y + coefficient
        return total * y

    early = t + langevin(x / 2) - t * langevin(t * x / 2)
    late = limit - 2 * t / jnp.expm1(t * x)
    rho = jnp.where(t * x <= 1, early, late)
    ratio = (rho - 4) * (rho - 2) * limit / ((limit - 4) * (limit - 2) * rho)
    return jnp.where(rho > 5, jnp.sqrt(jnp.maximum(ratio, 0.0)), 0.0)


def scale_by_lazy_adam(
    b1: Number = 0.9, b2: Number = 0.999, eps: Number = 1e-8
) -> optax.GradientTransformation:
    """Adam for tables of which a step touches few rows: the others stay as they are.

    A row (an entry of the first axis) whose gradient is exactly zero keeps its moments
    and gets no update; the step is counted for all. The update of the others is
    `sqrt(c2) / c1 * m / (sqrt(v) + eps)`.

    Source: `torch.optim.SparseAdam`, for the dense gradients that JAX gives.

    Example:
        >>> tx = scale_by_lazy_adam()
        >>> g = jnp.array([[0.25], [0.0]])
        >>> update, state = tx.update(g, tx.init(jnp.zeros((2, 1))))
        >>> update.round(4).tolist()
        [[1.0], [0.0]]
    """

    def start(p: Any) -> Any:
        return jnp.zeros_like(p), jnp.zeros_like(p)

    def step(g: Any, _: Any, slots: Any, c1: Any, c2: Any) -> Any:
        touched = jnp.any(g != 0, axis=tuple(range(1, g.ndim)), keepdims=True)
        m, v = _moments(g, slots, b1, b2)
        direction = jnp.sqrt(c2) / c1 * m / (jnp.sqrt(v) + eps)
        kept = jnp.where(touched, m, slots[0]), jnp.where(touched, v, slots[1])
        return jnp.where(touched, direction, 0.0), kept

    return per_leaf(MomentsState, start, step, lambda t: _corrections(b1, b2, t))
