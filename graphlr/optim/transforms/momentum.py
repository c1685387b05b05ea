"""Momentum, and rates for each layer from the ratio of two norms."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from graphlr.optim.transforms.gradients import norm
from graphlr.optim.transforms.leaves import Number, per_leaf


class MomentumState(NamedTuple):
    """The momentum buffers."""

    momentum: Any


class DampenedState(NamedTuple):
    """The momentum buffers, and how many steps each parameter has taken."""

    momentum: Any
    steps: jax.Array


def scale_by_momentum(
    momentum: Number, dampening: Number = 0.0, *, nesterov: bool = False
) -> optax.GradientTransformation:
    """Momentum as PyTorch's SGD computes it: the first step is not dampened.

    `buf = g` at a parameter's first step, then `buf = momentum * buf + (1 - dampening)
    * g`; the update is `buf`, or `g + momentum * buf` with `nesterov`. `optax.trace`
    has no dampening; OneFlow dampens the first step too.

    Source: `torch.optim.SGD`.

    Example:
        >>> tx = scale_by_momentum(0.9, dampening=0.5)
        >>> state = tx.init({"w": jnp.zeros(1)})
        >>> for g in (1.0, 1.0):
        ...     update, state = tx.update({"w": jnp.array([g])}, state)
        ...     print(float(update["w"][0]).__round__(3))
        1.0
        1.4
    """

    def start(p: Any) -> Any:
        return (jnp.zeros_like(p),)

    def step(g: Any, _: Any, slots: Any) -> Any:
        new = momentum * slots[0] + g  # the first buffer is zero
        return (g + momentum * new if nesterov else new), (new,)

    def dampened(g: Any, _: Any, slots: Any, first: Any) -> Any:
        new = jnp.where(first, g, momentum * slots[0] + (1 - dampening) * g)
        return (g + momentum * new if nesterov else new), (new,)

    if isinstance(dampening, float) and dampening == 0:
        return per_leaf(MomentumState, start, step)
    return per_leaf(DampenedState, start, dampened, lambda t: (t == 1,))


def scale_by_layer_rate(
    trust_coefficient: Number, weight_decay: Number, eps: Number
) -> optax.GradientTransformation:
    """LARS: `r * (g + weight_decay * w)` with a rate r for each parameter.

    `r = trust_coefficient * |w| / (|g| + weight_decay * |w| + eps)`. Where `|w|` or
    `|g|` is zero the gradient stays as it is, without decay. `optax.lars` takes the
    norm of `g + weight_decay * w` instead.

    Source: You, Gitman and Ginsburg 2017, equation 6.

    Example:
        >>> tx, w = scale_by_layer_rate(0.1, 0.0, 0.0), {"w": jnp.array([3.0, 4.0])}
        >>> update, _ = tx.update({"w": jnp.array([2.0, 0.0])}, tx.init(w), w)
        >>> update["w"].tolist()
        [0.5, 0.0]
    """

    def one(g: Any, w: Any) -> Any:
        size, slope = norm(w), norm(g)
        rate = trust_coefficient * size / (slope + weight_decay * size + eps)
        zero = (size == 0) | (slope == 0)
        return jnp.where(zero, g, rate * (g + weight_decay * w))

    return optax.stateless_with_tree_map(one)


def scale_by_trust_ratio(
    weight_decay: Number, *, decay_in_ratio: bool = False
) -> optax.GradientTransformation:
    """LAMB: `|w| / |d| * (d + weight_decay * w)`; a ratio with a zero norm is 1.

    The norm is of `d` alone, as in OneFlow; `decay_in_ratio` takes that of
    `d + weight_decay * w`, as the paper and `optax.scale_by_trust_ratio` do. Norms are
    accumulated in float32 or wider (optax: in the parameters' dtype).

    Source: `oneflow.optim.LAMB`; You et al. 2020.

    Example:
        >>> tx, w = scale_by_trust_ratio(0.0), {"w": jnp.array([3.0, 4.0])}
        >>> update, _ = tx.update({"w": jnp.array([2.0, 0.0])}, tx.init(w), w)
        >>> update["w"].tolist()
        [5.0, 0.0]
    """

    def one(d: Any, w: Any) -> Any:
        decayed = d + weight_decay * w
        size, slope = norm(w), norm(decayed if decay_in_ratio else d)
        zero = (size == 0) | (slope == 0)
        return jnp.where(zero, 1.0, size / slope) * decayed

    return optax.stateless_with_tree_map(one)


class AverageState(NamedTuple):
    """Averaged SGD: the average, the rate of the next step, steps of each parameter."""

    ax: Any
    eta: Any
    steps: jax.Array


def averaged_sgd(
    lr: Number, lambd: Number, alpha: Number, t0: Number
) -> optax.GradientTransformation:
    """The whole step of averaged SGD, and the average of the weights in slot `ax`.

    `w -= eta * (g + lambd * w)` with `eta = lr / (1 + lambd * lr * t) ** alpha`, t the
    steps taken before; the learning rate is read when `eta` is made, a step ahead, but
    for the first. `ax` is `w` itself until step `t0 + 2`, then the mean since then.

    Source: `torch.optim.ASGD`; Polyak and Juditsky 1992.

    Example:
        >>> tx, w = averaged_sgd(0.5, 0.0, 0.75, 1e6), {"w": jnp.array([3.0])}
        >>> update, state = tx.update({"w": jnp.array([2.0])}, tx.init(w), w)
        >>> update["w"].tolist(), state.ax["w"].tolist()
        ([-1.0], [2.0])
    """

    def step(g: Any, w: Any, slots: Any, t: Any) -> Any:
        ax, eta = slots
        eta = jnp.where(t == 1, lr, eta)
        update = -eta * (g + lambd * w)
        weight = jnp.where(t == 1, 1.0, 1 / jnp.maximum(1.0, t - 1 - t0))
        new = w + update
        average = jnp.where(weight == 1, new, ax + weight * (new - ax))
        return update, (average, lr / (1 + lambd * lr * t) ** alpha)

    def start(p: Any) -> Any:
        return jnp.zeros_like(p), jnp.zeros((), float)

    return per_leaf(AverageState, start, step, lambda t: (t,))
