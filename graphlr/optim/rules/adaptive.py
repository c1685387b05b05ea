"""Rules that divide gradients by the root of what their squares were."""

from __future__ import annotations

import optax

from graphlr.optim.optimizer import Optimizer
from graphlr.optim.transforms.adaptive import (
    scale_by_adafactor,
    scale_by_rms,
    scale_by_sum,
)
from graphlr.optim.transforms.gradients import ascend
from graphlr.optim.transforms.leaves import Number, is_off
from graphlr.optim.transforms.momentum import scale_by_momentum


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
        """The direction of a step."""
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
        """The direction of a step."""
        return optax.chain(
            ascend(maximize),
            optax.add_decayed_weights(weight_decay),
            optax.scale_by_adadelta(rho, eps),
        )


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
        """The direction of a step."""
        return optax.chain(
            ascend(maximize),
            optax.add_decayed_weights(weight_decay),
            scale_by_rms(
                alpha, eps, centered=centered, eps_inside_sqrt=eps_inside_sqrt
            ),
            optax.identity() if is_off(momentum) else scale_by_momentum(momentum),
        )


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
        """The whole step."""
        if isinstance(d, float) and d < 1.0:
            raise ValueError(
                f"Clipping threshold d should be >= 1 but is: {d}. Give d=1.0"
            )
        return optax.chain(
            ascend(maximize), scale_by_adafactor(lr, beta2_decay, eps, d, weight_decay)
        )
