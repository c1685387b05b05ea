"""Gradient descent: with momentum, averaged, with a rate for each layer."""

from __future__ import annotations

import optax

from graphlr.optim.optimizer import Optimizer
from graphlr.optim.transforms.gradients import ascend
from graphlr.optim.transforms.leaves import Number, is_off
from graphlr.optim.transforms.momentum import (
    averaged_sgd,
    scale_by_layer_rate,
    scale_by_momentum,
)


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
        """The direction of a step."""
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
        """The whole step."""
        return optax.chain(
            ascend(maximize),
            optax.add_decayed_weights(weight_decay),
            averaged_sgd(lr, lambd, alpha, t0),
        )


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
        """The direction of a step."""
        return optax.chain(
            ascend(maximize),
            scale_by_layer_rate(trust_coefficient, weight_decay, eps),
            optax.identity()
            if is_off(momentum)
            else scale_by_momentum(momentum, nesterov=nesterov),
        )
