"""Rules that divide gradients by the root of what their squares were."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from graphlr.optim.optimizer import Optimizer
from graphlr.optim.transforms.gradients import ascend, norm
from graphlr.optim.transforms.leaves import (
    NewSlots,
    Number,
    Slots,
    is_off,
    per_leaf,
)
from graphlr.optim.transforms.momentum import scale_by_momentum


class SumState(NamedTuple):
    """Sums of squared gradients, steps per parameter."""

    sum: optax.Updates
    steps: jax.Array


def scale_by_sum(
    lr_decay: Number = 0.0, initial: Number = 0.0, eps: Number = 1e-10
) -> optax.GradientTransformation:
    """Adagrad: `g / (sqrt(s) + eps) / (1 + (t - 1) * lr_decay)`, `s += g²`.

    `optax.scale_by_rss` has eps inside the root, starts at 0.1 and has no `lr_decay`.

    Source: `torch.optim.Adagrad`; Duchi et al. 2011.

    Example:
        >>> tx = scale_by_sum()
        >>> update, state = tx.update(jnp.array([0.25]), tx.init(jnp.zeros(1)))
        >>> update.tolist(), state.sum.tolist()
        ([1.0], [0.0625])
    """

    def step(
        g: jax.Array, _: object, slots: Slots, slower: jax.Array
    ) -> tuple[jax.Array, NewSlots]:
        total = slots[0] + g * g
        return g / (jnp.sqrt(total) + eps) / slower, (total,)

    def start(p: jax.Array) -> NewSlots:
        return (jnp.full_like(p, initial),)

    return per_leaf(SumState, start, step, lambda t: (1 + (t - 1) * lr_decay,))


class Adagrad(Optimizer, lr=1e-2):
    """Gradients divided by the root of the sum of all their squares.

    `g += weight_decay * w`; `s += g²`, s from `initial_accumulator_value`;
    `w -= lr / (1 + (t - 1) * lr_decay) * g / (sqrt(s) + eps)`, t the parameter's own
    step.

    A group's own `initial_accumulator_value` counts (PyTorch reads the optimizer's
    only), when its slots are made. OneFlow's default learning rate is 1e-3.
    `optax.adagrad` has eps inside the root and starts at 0.1.

    Source: `torch.optim.Adagrad`; Duchi et al. 2011.

    Example:
        >>> Adagrad("**", lr_decay=0.1).param_groups[0]["eps"]
        1e-10
    """

    @staticmethod
    def rule(
        lr_decay: Number = 0.0,
        weight_decay: Number = 0.0,
        initial_accumulator_value: Number = 0.0,
        eps: Number = 1e-10,
        *,
        maximize: bool = False,
    ) -> optax.GradientTransformation:
        """Decayed gradients over the root of the sum of their squares."""
        return optax.chain(
            ascend(maximize),
            optax.add_decayed_weights(weight_decay),
            scale_by_sum(lr_decay, initial_accumulator_value, eps),
        )


class Adadelta(Optimizer, lr=1.0):
    """Gradients rescaled to the size of recent updates: needs no learning rate.

    `g += weight_decay * w`; `v = rho v + (1 - rho) g²`;
    `d = sqrt(u + eps) / sqrt(v + eps) * g`; `u = rho u + (1 - rho) d²`; `w -= lr * d`.
    OneFlow has no `maximize`.

    Source: `torch.optim.Adadelta`; Zeiler 2012.

    Example:
        >>> Adadelta("**").lr()
        {'group0': 1.0}
    """

    @staticmethod
    def rule(
        rho: Number = 0.9,
        eps: Number = 1e-6,
        weight_decay: Number = 0.0,
        *,
        maximize: bool = False,
    ) -> optax.GradientTransformation:
        """Decayed gradients, rescaled to the size of recent updates."""
        return optax.chain(
            ascend(maximize),
            optax.add_decayed_weights(weight_decay),
            optax.scale_by_adadelta(rho, eps),
        )


class RMSState(NamedTuple):
    """Averages of squared gradients and of gradients."""

    square_avg: optax.Updates
    grad_avg: optax.Updates  # of Nones unless centered


def scale_by_rms(
    alpha: Number = 0.99,
    eps: Number = 1e-8,
    *,
    centered: bool = False,
    eps_inside_sqrt: bool = False,
) -> optax.GradientTransformation:
    """RMSprop: `g / (sqrt(v) + eps)`, `v = alpha v + (1 - alpha) g²`.

    `centered` divides by the standard deviation, `sqrt(v - m²)`; a variance that
    rounding makes negative counts as zero (`optax.scale_by_stddev` makes NaN of a
    constant gradient in float32). `eps_inside_sqrt` is `g / sqrt(v + eps)`.

    Source: `torch.optim.RMSprop`; Tieleman and Hinton 2012, Graves 2013 (centered).

    Example:
        >>> tx = scale_by_rms(alpha=0.75)
        >>> update, state = tx.update(jnp.array([0.25]), tx.init(jnp.zeros(1)))
        >>> update.round(4).tolist()
        [2.0]
    """

    def start(p: jax.Array) -> NewSlots:
        return jnp.zeros_like(p), jnp.zeros_like(p) if centered else None

    def step(g: jax.Array, _: object, slots: Slots) -> tuple[jax.Array, NewSlots]:
        variance = v = alpha * slots[0] + (1 - alpha) * g * g
        m = None
        if centered:
            m = slots[1] + (1 - alpha) * (g - slots[1])
            variance = jnp.maximum(v - m * m, 0.0)
        inside, outside = (eps, 0.0) if eps_inside_sqrt else (0.0, eps)
        return g / (jnp.sqrt(variance + inside) + outside), (v, m)

    return per_leaf(RMSState, start, step)


class RMSprop(Optimizer, lr=1e-2):
    """Gradients divided by the root of a running mean of their squares.

    `g += weight_decay * w`; `v = alpha v + (1 - alpha) g²`;
    `buf = momentum * buf + g / (sqrt(v) + eps)`; `w -= lr * buf`. `centered` divides by
    the standard deviation, `sqrt(v - mean²)`; where rounding makes the variance
    negative it counts as zero (optax: NaN). Without momentum there is no buffer.

    OneFlow divides by `sqrt(v + eps)`: `eps_inside_sqrt=True`; its default learning
    rate is 1e-3 and it has no momentum. `optax.rmsprop` has eps inside too, a decay of
    0.9 and the learning rate inside the buffer.

    Source: `torch.optim.RMSprop`; Tieleman and Hinton 2012, Graves 2013 (centered).

    Example:
        >>> groups = [{"params": "**.bias", "alpha": 0.9}, {"params": ...}]
        >>> [group["alpha"] for group in RMSprop(groups).param_groups]
        [0.9, 0.99]
    """

    @staticmethod
    def rule(
        alpha: Number = 0.99,
        eps: Number = 1e-8,
        weight_decay: Number = 0.0,
        momentum: Number = 0.0,
        centered: bool = False,
        *,
        maximize: bool = False,
        eps_inside_sqrt: bool = False,
    ) -> optax.GradientTransformation:
        """Decayed gradients over the root of a running mean of their squares."""
        return optax.chain(
            ascend(maximize),
            optax.add_decayed_weights(weight_decay),
            scale_by_rms(
                alpha, eps, centered=centered, eps_inside_sqrt=eps_inside_sqrt
            ),
            optax.identity() if is_off(momentum) else scale_by_momentum(momentum),
        )


class AdafactorState(NamedTuple):
    """Second moments, factored into rows and columns or whole; steps per parameter."""

    row_var: optax.Updates  # None for vectors
    col_var: optax.Updates
    variance: optax.Updates  # None for matrices
    steps: jax.Array


def scale_by_adafactor(
    lr: Number,
    beta2_decay: Number,
    eps: tuple[Number | None, Number],
    d: Number,
    weight_decay: Number,
) -> optax.GradientTransformation:
    """The whole step of Adafactor: second moments kept as one row and one column.

    `rms(w)` is the root of the mean square. With `rho = min(lr, 1 / sqrt(t))` and
    `u = g / sqrt(v)`, v averaged with the weight `t^beta2_decay` of the newest,
    `w -= lr * weight_decay * w + max(eps[1], rms(w)) * rho * u / max(1, rms(u) / d)`.
    `optax.scale_by_factored_rms` factors axes from 128 on only, has other epsilons and
    no relative step.

    Source: `torch.optim.Adafactor`; Shazeer and Stern 2018.

    Example:
        >>> tx = scale_by_adafactor(0.1, -0.8, (None, 1e-3), 1.0, 0.0)
        >>> w = jnp.ones((2, 3))
        >>> update, state = tx.update(w, tx.init(w), w)
        >>> float(update[0, 0]).__round__(4), state.row_var.shape, state.col_var.shape
        (-0.1, (2, 1), (1, 3))
    """

    def start(p: jax.Array) -> NewSlots:
        if p.ndim < 2:
            return None, None, jnp.zeros_like(p)
        return jnp.zeros_like(p[..., :1]), jnp.zeros_like(p[..., :1, :]), None

    def step(
        g: jax.Array, w: jax.Array, slots: Slots, newest: jax.Array, slowest: jax.Array
    ) -> tuple[jax.Array, NewSlots]:
        eps1 = jnp.finfo(w.dtype).eps if eps[0] is None else eps[0]
        square = jnp.square(g.astype(jnp.promote_types(g.dtype, jnp.float32)))
        row, col, v = slots
        if v is not None:
            v = estimate = v + newest * (square - v)
        else:
            row = row + newest * (square.mean(-1, keepdims=True) - row)
            col = col + newest * (square.mean(-2, keepdims=True) - col)
            estimate = row * col / jnp.maximum(row.mean(-2, keepdims=True), eps1)
        u = g * jax.lax.rsqrt(jnp.maximum(estimate, eps1 * eps1))
        size = jnp.maximum(eps[1], _rms(w)) * jnp.minimum(lr, slowest)
        u = u * (size / jnp.maximum(1.0, _rms(u) / d))
        return -lr * weight_decay * w - u, (row, col, v)

    def coefficients(t: jax.Array) -> tuple[jax.Array, ...]:
        counts = t.astype(float)
        return counts**beta2_decay, jax.lax.rsqrt(counts)

    return per_leaf(AdafactorState, start, step, coefficients)


def _rms(x: jax.Array) -> jax.Array:
    return norm(x) / jnp.sqrt(x.size)


class Adafactor(Optimizer, lr=1e-2):
    """Second moments in the memory of one row and one column; steps relative to size.

    `v` is averaged with the weight `t^beta2_decay` of the newest square; of an array of
    two or more axes only its means over the last and over the second last axis are
    kept. `u = g / sqrt(v)`; `w -= lr * weight_decay * w`, then
    `w -= max(eps[1], rms(w)) * min(lr, 1 / sqrt(t)) * u / max(1, rms(u) / d)`. So `lr`
    bounds a relative step. `eps[0]` of None is the smallest step from 1 in the
    parameter's dtype.

    The last two axes of an nnx convolution are channels, of PyTorch's its height and
    width: the same formula on other axes. `optax.adafactor` factors axes from 128 on
    only and has no relative step.

    Source: `torch.optim.Adafactor`; Shazeer and Stern 2018.

    Example:
        >>> Adafactor("**", eps=(1e-30, 1e-3)).param_groups[0]["eps"]
        (1e-30, 0.001)
    """

    @staticmethod
    def rule(
        beta2_decay: Number = -0.8,
        eps: tuple[Number | None, Number] = (None, 1e-3),
        d: Number = 1.0,
        weight_decay: Number = 0.0,
        *,
        lr: Number,
        maximize: bool = False,
    ) -> optax.GradientTransformation:
        """The whole step: relative to each parameter's size, and clipped."""
        if isinstance(d, float) and d < 1.0:
            raise ValueError(
                f"Clipping threshold d should be >= 1 but is: {d}. Give d=1.0"
            )
        return optax.chain(
            ascend(maximize), scale_by_adafactor(lr, beta2_decay, eps, d, weight_decay)
        )
