"""Gradient descent: with momentum, averaged, with a rate for each layer."""

from __future__ import annotations

import functools
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


class SGD(Optimizer):
    """Stochastic gradient descent with momentum.

    `g += weight_decay * w`; `buf = momentum * buf + (1 - dampening) * g`, the first
    step not dampened; `w -= lr * buf`, or `lr * (g + momentum * buf)` with `nesterov`.
    The learning rate is not in the buffer, so a new one acts at once. The weight decay
    is coupled (L2). Without momentum there is no buffer.

    OneFlow dampens the first step too; ignores `nesterov`, `dampening` and `maximize`
    without momentum (here `nesterov` without momentum is an error and `maximize`
    ascends); and under `maximize` its decay grows the weights.

    Source: `torch.optim.SGD`.

    Example:
        >>> groups = [{"params": "kernel"}, {"params": "bias", "lr_scale": 2.0}]
        >>> SGD(groups, lr=0.1, momentum=0.9).lr()
        {'group0': 0.1, 'group1': 0.2}
    """

    @staticmethod
    def rule(
        momentum: Number = 0.0,
        dampening: Number = 0.0,
        weight_decay: Number = 0.0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
    ) -> optax.GradientTransformation:
        """Decayed gradients, through momentum if there is any."""
        if nesterov and (is_off(momentum) or not is_off(dampening)):
            raise ValueError(
                "Nesterov momentum requires a momentum and zero dampening: "
                "SGD(..., momentum=0.9, dampening=0.0, nesterov=True)"
            )
        return optax.chain(
            ascend(maximize),
            optax.add_decayed_weights(weight_decay),
            optax.identity()
            if is_off(momentum)
            else scale_by_momentum(momentum, dampening, nesterov=nesterov),
        )


class AverageState(NamedTuple):
    """Averaged SGD: the average, the rate of the next step, steps of each parameter."""

    ax: optax.Updates
    eta: optax.Updates
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

    def step(
        g: jax.Array, w: jax.Array, slots: Slots, t: jax.Array
    ) -> tuple[jax.Array, NewSlots]:
        ax, eta = slots
        eta = jnp.where(t == 1, lr, eta)
        update = -eta * (g + lambd * w)
        weight = jnp.where(t == 1, 1.0, 1 / jnp.maximum(1.0, t - 1 - t0))
        new = w + update
        average = jnp.where(weight == 1, new, ax + weight * (new - ax))
        return update, (average, lr / (1 + lambd * lr * t) ** alpha)

    def start(p: jax.Array) -> NewSlots:
        return jnp.zeros_like(p), jnp.zeros((), float)

    return per_leaf(AverageState, start, step, lambda t: (t,))


class ASGD(Optimizer, lr=1e-2):
    """Averaged stochastic gradient descent.

    `w -= eta * (g + (weight_decay + lambd) * w)`, and after each step
    `eta = lr / (1 + lambd * lr * t) ** alpha`. The average of the weights from step
    `t0 + 2` on is the slot `ax`; before, it is the weights: `state_dict()` has it under
    `slots.model.head.kernel.ax`. A new learning rate, a schedule's too, acts one step
    late, since `eta` is made a step ahead.

    Source: `torch.optim.ASGD`; Polyak and Juditsky 1992.

    Example:
        >>> ASGD("**", lr=0.1, t0=100).param_groups[0]["t0"]
        100.0
    """

    @staticmethod
    def rule(
        lambd: Number = 1e-4,
        alpha: Number = 0.75,
        t0: Number = 1e6,
        weight_decay: Number = 0.0,
        *,
        lr: Number,
        maximize: bool = False,
    ) -> optax.GradientTransformation:
        """The whole step: against the decayed gradient, `eta` far."""
        return optax.chain(
            ascend(maximize),
            optax.add_decayed_weights(weight_decay),
            averaged_sgd(lr, lambd, alpha, t0),
        )


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

    def one(g: jax.Array, w: jax.Array) -> jax.Array:
        size, slope = norm(w), norm(g)
        rate = trust_coefficient * size / (slope + weight_decay * size + eps)
        zero = (size == 0) | (slope == 0)
        return jnp.where(zero, g, rate * (g + weight_decay * w))

    return optax.stateless(functools.partial(jax.tree.map, one))


class LARS(Optimizer):
    """Momentum with a rate for each parameter in proportion to its norm.

    `r = trust_coefficient * |w| / (|g| + weight_decay * |w| + eps)`;
    `buf = momentum * buf + r * (g + weight_decay * w)`; `w -= lr * buf`. Where `|w|` or
    `|g|` is zero, `r = 1` without decay. Each parameter is a layer of the paper's.
    Biases and norms' scales, which have small norms, are better in a group of their
    own: `{"params": "**.bias", "optimizer": glr.optim.SGD, "momentum": 0.9}`.

    The learning rate is outside the buffer, as in NVIDIA's Apex (`LARC` without
    clipping around SGD); the paper and `optax.lars` have it inside, which is the same
    until it changes. `optax.lars` takes the norm of `g + weight_decay * w`.

    Source: You, Gitman and Ginsburg 2017, "Large batch training of convolutional
    networks", equation 6, with its `trust_coefficient` and `momentum` as defaults.

    Example:
        >>> groups = [{"params": "**.bias", "optimizer": SGD}, {"params": ...}]
        >>> LARS(groups, lr=2.0).param_groups[1]["trust_coefficient"]
        0.001
    """

    @staticmethod
    def rule(
        momentum: Number = 0.9,
        weight_decay: Number = 0.0,
        trust_coefficient: Number = 1e-3,
        eps: Number = 1e-8,
        nesterov: bool = False,
        *,
        maximize: bool = False,
    ) -> optax.GradientTransformation:
        """Gradients scaled layer by layer, through momentum if there is any."""
        return optax.chain(
            ascend(maximize),
            scale_by_layer_rate(trust_coefficient, weight_decay, eps),
            optax.identity()
            if is_off(momentum)
            else scale_by_momentum(momentum, nesterov=nesterov),
        )
