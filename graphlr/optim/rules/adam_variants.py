"""What was made of Adam: Adamax, NAdam, RAdam."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from graphlr.optim.optimizer import Optimizer
from graphlr.optim.transforms.leaves import (
    NewSlots,
    Number,
    Slots,
    bias_correction,
    log,
    per_leaf,
)
from graphlr.optim.transforms.moments import (
    MomentsState,
    corrections,
    moments,
    with_decay,
)


class AdamaxState(NamedTuple):
    """First moment, decaying maximum of sizes, steps per parameter."""

    exp_avg: optax.Updates
    exp_inf: optax.Updates
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

    def start(p: jax.Array) -> NewSlots:
        return jnp.zeros_like(p), jnp.zeros_like(p)

    def step(
        g: jax.Array, _: object, slots: Slots, c1: jax.Array
    ) -> tuple[jax.Array, NewSlots]:
        m = slots[0] + (1 - b1) * (g - slots[0])
        u = jnp.maximum(b2 * slots[1], jnp.abs(g) + eps)
        return m / c1 / u, (m, u)

    return per_leaf(AdamaxState, start, step, lambda t: (bias_correction(b1, t),))


class Adamax(Optimizer, lr=2e-3):
    """Adam with the largest recent gradient in place of the root of a mean square.

    `m += (1 - b1) (g - m)`; `u = max(b2 u, |g| + eps)`; `w -= lr / (1 - b1ᵗ) * m / u`.
    The weight decay is coupled (L2).

    Source: `torch.optim.Adamax`; Kingma and Ba 2015, section 7.1.

    Example:
        >>> Adamax("**").lr()
        {'group0': 0.002}
    """

    @staticmethod
    def rule(
        betas: tuple[Number, Number] = (0.9, 0.999),
        eps: Number = 1e-8,
        weight_decay: Number = 0.0,
        *,
        maximize: bool = False,
    ) -> optax.GradientTransformation:
        """The corrected first moment over the largest recent gradient."""
        direction = scale_by_adamax(*betas, eps)
        return with_decay(direction, weight_decay, decoupled=False, maximize=maximize)


class NAdamState(NamedTuple):
    """First and second moments, product of the momenta so far, steps per parameter."""

    exp_avg: optax.Updates
    exp_avg_sq: optax.Updates
    mu_product: optax.Updates
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

    def start(p: jax.Array) -> NewSlots:
        return jnp.zeros_like(p), jnp.zeros_like(p), jnp.ones((), float)

    def mu(t: jax.Array) -> jax.Array:
        return b1 * (1 - 0.5 * jnp.exp(t * momentum_decay * log(0.96)))

    def step(
        g: jax.Array,
        _: object,
        slots: Slots,
        now: jax.Array,
        after: jax.Array,
        c2: jax.Array,
    ) -> tuple[jax.Array, NewSlots]:
        m, v = moments(g, slots, b1, b2)
        product = slots[2] * now
        ahead = g * ((1 - now) / (1 - product)) + m * (after / (1 - product * after))
        return ahead / (jnp.sqrt(v / c2) + eps), (m, v, product)

    def coefficients(t: jax.Array) -> tuple[jax.Array, ...]:
        return mu(t), mu(t + 1), bias_correction(b2, t)

    return per_leaf(NAdamState, start, step, coefficients)


class NAdam(Optimizer, lr=2e-3):
    """Adam with Nesterov's look-ahead.

    `mu(t) = b1 (1 - 0.5 * 0.96^(t * momentum_decay))`, P the product of `mu(1)` to
    `mu(t)`; `w -= lr * (g (1 - mu(t)) / (1 - P) + m mu(t+1) / (1 - P mu(t+1))) /
    (sqrt(v / c2) + eps)`. The weight decay is coupled (L2), unless
    `decoupled_weight_decay`. `optax.nadam` has a constant momentum. PyTorch keeps P in
    float32 whatever the parameters' dtype; here it is float64 under x64.

    Source: `torch.optim.NAdam`; Dozat 2016.

    Example:
        >>> NAdam("**", momentum_decay=0.01).param_groups[0]["momentum_decay"]
        0.01
    """

    @staticmethod
    def rule(
        betas: tuple[Number, Number] = (0.9, 0.999),
        eps: Number = 1e-8,
        weight_decay: Number = 0.0,
        momentum_decay: Number = 4e-3,
        decoupled_weight_decay: bool = False,
        *,
        maximize: bool = False,
    ) -> optax.GradientTransformation:
        """The moment that the next step would have, over the root of the second."""
        return with_decay(
            scale_by_nadam(*betas, eps, momentum_decay),
            weight_decay,
            decoupled=decoupled_weight_decay,
            maximize=maximize,
        )


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

    def start(p: jax.Array) -> NewSlots:
        return jnp.zeros_like(p), jnp.zeros_like(p)

    def step(
        g: jax.Array,
        _: object,
        slots: Slots,
        c1: jax.Array,
        c2: jax.Array,
        rect: jax.Array,
    ) -> tuple[jax.Array, NewSlots]:
        m, v = moments(g, slots, b1, b2)
        adapted = rect * jnp.sqrt(c2) / (jnp.sqrt(v) + eps)
        return (m / c1) * jnp.where(rect > 0, adapted, 1.0), (m, v)

    def coefficients(t: jax.Array) -> tuple[jax.Array, ...]:
        return *corrections(b1, b2, t), _rectification(b2, t)

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

    def langevin(y: Number) -> Number:
        total = 0.0
        for coefficient in reversed(_LANGEVIN):
            total = total * y * y + coefficient
        return total * y

    early = t + langevin(x / 2) - t * langevin(t * x / 2)
    late = limit - 2 * t / jnp.expm1(t * x)
    rho = jnp.where(t * x <= 1, early, late)
    ratio = (rho - 4) * (rho - 2) * limit / ((limit - 4) * (limit - 2) * rho)
    return jnp.where(rho > 5, jnp.sqrt(jnp.maximum(ratio, 0.0)), 0.0)


class RAdam(Optimizer):
    """Adam that rectifies its first steps: plain momentum until `rho(t) > 5`.

    `rho(t) = rho_inf - 2 t b2ᵗ / (1 - b2ᵗ)`, `rho_inf = 2 / (1 - b2) - 1`; then
    `w -= lr * m / c1 * r * sqrt(c2) / (sqrt(v) + eps)` with `r² = (rho - 4) (rho - 2)
    rho_inf / ((rho_inf - 4) (rho_inf - 2) rho)`. The weight decay is coupled (L2),
    unless `decoupled_weight_decay`. `optax.radam` starts at `rho(t) >= 5` and adds eps
    after the correction.

    Source: `torch.optim.RAdam`; Liu et al. 2020.

    Example:
        >>> RAdam("**", decoupled_weight_decay=True).lr()
        {'group0': 0.001}
    """

    @staticmethod
    def rule(
        betas: tuple[Number, Number] = (0.9, 0.999),
        eps: Number = 1e-8,
        weight_decay: Number = 0.0,
        decoupled_weight_decay: bool = False,
        *,
        maximize: bool = False,
    ) -> optax.GradientTransformation:
        """The corrected first moment, rectified once the second can be trusted."""
        return with_decay(
            scale_by_radam(*betas, eps),
            weight_decay,
            decoupled=decoupled_weight_decay,
            maximize=maximize,
        )
