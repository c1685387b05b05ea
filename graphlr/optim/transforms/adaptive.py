"""Gradients divided by the root of what their squares were."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from graphlr.optim.transforms.gradients import norm
from graphlr.optim.transforms.leaves import Number, per_leaf


class SumState(NamedTuple):
    """Sums of squared gradients, steps per parameter."""

    sum: Any
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

    def step(g: Any, _: Any, slots: Any, slower: Any) -> Any:
        total = slots[0] + g * g
        return g / (jnp.sqrt(total) + eps) / slower, (total,)

    def start(p: Any) -> Any:
        return (jnp.full_like(p, initial),)

    return per_leaf(SumState, start, step, lambda t: (1 + (t - 1) * lr_decay,))


class RMSState(NamedTuple):
    """Averages of squared gradients and of gradients."""

    square_avg: Any
    grad_avg: Any  # of Nones unless centered


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

    def start(p: Any) -> Any:
        return jnp.zeros_like(p), jnp.zeros_like(p) if centered else None

    def step(g: Any, _: Any, slots: Any) -> Any:
        variance = v = alpha * slots[0] + (1 - alpha) * g * g
        m = None
        if centered:
            m = slots[1] + (1 - alpha) * (g - slots[1])
            variance = jnp.maximum(v - m * m, 0.0)
        inside, outside = (eps, 0.0) if eps_inside_sqrt else (0.0, eps)
        return g / (jnp.sqrt(variance + inside) + outside), (v, m)

    return per_leaf(RMSState, start, step)


class AdafactorState(NamedTuple):
    """Second moments, factored into rows and columns or whole; steps per parameter."""

    row_var: Any  # None for vectors
    col_var: Any
    variance: Any  # None for matrices
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

    def start(p: Any) -> Any:
        if p.ndim < 2:
            return None, None, jnp.zeros_like(p)
        return jnp.zeros_like(p[..., :1]), jnp.zeros_like(p[..., :1, :]), None

    def step(g: Any, w: Any, slots: Any, newest: Any, slowest: Any) -> Any:
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

    def coefficients(t: jax.Array) -> Any:
        counts = t.astype(float)
        return counts**beta2_decay, jax.lax.rsqrt(counts)

    return per_leaf(AdafactorState, start, step, coefficients)


def _rms(x: jax.Array) -> jax.Array:
    return norm(x) / jnp.sqrt(x.size)
