"""Update rules: PyTorch's names, signatures and formulas, composed from optax.

A rule is a function of hyperparameters that returns the *direction* of a step as an
`optax.GradientTransformation`; `Optimizer` multiplies it by `-lr(t) * lr_scale`. The
hyperparameters arrive as traced numbers, so that changing one never recompiles.
"""

from __future__ import annotations

from typing import Any

import optax

from graphlr.optim.compiled import is_off
from graphlr.optim.optimizer import Optimizer
from graphlr.optim.transforms import Number, scale_by_adam, scale_by_momentum


def _sign(maximize: bool) -> optax.GradientTransformation:
    return optax.scale(-1.0) if maximize else optax.identity()


def sgd(
    *,
    momentum: Number,
    dampening: Number,
    weight_decay: Number,
    nesterov: bool,
    maximize: bool,
) -> optax.GradientTransformation:
    """Direction of `SGD`."""
    if nesterov and (is_off(momentum) or not is_off(dampening)):
        raise ValueError(
            "Nesterov momentum requires a momentum and zero dampening: "
            "SGD(..., momentum=0.9, dampening=0.0, nesterov=True)"
        )
    return optax.chain(
        _sign(maximize),
        optax.add_decayed_weights(weight_decay),
        optax.identity()
        if is_off(momentum)
        else scale_by_momentum(momentum, dampening, nesterov=nesterov),
    )


class SGD(Optimizer):
    """Stochastic gradient descent with momentum; PyTorch's formulas.

    `g += weight_decay * w`; `buf = momentum * buf + (1 - dampening) * g` (the first
    step is not dampened); `w -= lr * buf`. The learning rate is not in the buffer, so a
    new one acts at once. Weight decay is coupled (L2).

    Differs from OneFlow: OneFlow dampens the first step too, ignores `nesterov`,
    `dampening` and `maximize` without momentum (here `nesterov` without momentum is an
    error and `maximize` ascends), and under `maximize` its decay grows the weights.

    Args:
        params: Groups or a selector; see `Optimizer`.
        lr: Learning rate, or a schedule `step -> lr`.
        momentum: At zero no buffer is kept.
        dampening: Share of the gradient that momentum leaves out.
        weight_decay: L2 penalty.
        nesterov: Use Nesterov's look-ahead.
        maximize: Ascend instead of descend.
        keys: `lr_scale`, `frozen` and other group keys, for every group.

    Source: `torch.optim.SGD`.

    Example:
        >>> from flax import nnx
        >>> model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
        >>> optimizer = SGD(
        ...     [{"params": "kernel"}, {"params": "bias", "lr_scale": 2.0}],
        ...     lr=0.1, momentum=0.9,
        ... )
        >>> optimizer.lr()
        {'group0': 0.1, 'group1': 0.2}
    """

    rule = staticmethod(sgd)

    def __init__(
        self,
        params: Any,
        lr: Any = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        **keys: Any,
    ):
        super().__init__(
            params,
            lr=lr,
            momentum=momentum,
            dampening=dampening,
            weight_decay=weight_decay,
            nesterov=nesterov,
            maximize=maximize,
            **keys,
        )


def adam(
    *,
    betas: tuple[Number, Number],
    eps: Number,
    weight_decay: Number,
    amsgrad: bool,
    maximize: bool,
    decoupled_weight_decay: bool,
    do_bias_correction: bool,
) -> optax.GradientTransformation:
    """Direction of `Adam` and `AdamW`."""
    decay = optax.add_decayed_weights(weight_decay)
    return optax.chain(
        _sign(maximize),
        optax.identity() if decoupled_weight_decay else decay,
        scale_by_adam(*betas, eps, amsgrad=amsgrad, bias_correction=do_bias_correction),
        decay if decoupled_weight_decay else optax.identity(),
    )


class Adam(Optimizer):
    """Adam; PyTorch's formulas. Its weight decay is coupled (L2): see `AdamW`.

    `m += (1 - b1) (g - m)`; `v = b2 v + (1 - b2) g²`;
    `w -= lr * (m / c1) / (sqrt(v) / sqrt(c2) + eps)` with `c = 1 - bᵗ`, t the
    parameter's own step.

    Args:
        params: Groups or a selector; see `Optimizer`.
        lr: Learning rate, or a schedule `step -> lr`.
        betas: Decay of the two running means, each in [0, 1).
        eps: Added to the root of the second moment.
        weight_decay: L2 penalty, or decoupled decay with `decoupled_weight_decay`.
        amsgrad: Divide by the largest second moment seen.
        maximize: Ascend instead of descend.
        decoupled_weight_decay: What makes it `AdamW`.
        do_bias_correction: False leaves `c = 1` (OneFlow's option).
        keys: `lr_scale`, `frozen` and other group keys, for every group.

    Source: `torch.optim.Adam`; Kingma and Ba 2015.

    Example:
        >>> Adam("**", lr=1e-2).param_groups[0]["betas"]
        (0.9, 0.999)
    """

    rule = staticmethod(adam)

    def __init__(
        self,
        params: Any,
        lr: Any = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        decoupled_weight_decay: bool = False,
        do_bias_correction: bool = True,
        **keys: Any,
    ):
        super().__init__(
            params,
            lr=lr,
            betas=betas,
            eps=eps,
            weight_decay=weight_decay,
            amsgrad=amsgrad,
            maximize=maximize,
            decoupled_weight_decay=decoupled_weight_decay,
            do_bias_correction=do_bias_correction,
            **keys,
        )


class AdamW(Adam):
    """Adam with decoupled weight decay: also `w -= lr * weight_decay * w`.

    The decay is multiplied by the group's whole learning rate, schedule and `lr_scale`
    included. The default decay is PyTorch's 0.01 (OneFlow's is 0).

    Args:
        params: Groups or a selector; see `Optimizer`.
        lr: Learning rate, or a schedule `step -> lr`.
        betas: Decay of the two running means, each in [0, 1).
        eps: Added to the root of the second moment.
        weight_decay: Decoupled decay.
        amsgrad: Divide by the largest second moment seen.
        maximize: Ascend instead of descend; the decay still shrinks.
        do_bias_correction: False leaves `c = 1` (OneFlow's option).
        keys: `lr_scale`, `frozen` and other group keys, for every group.

    Source: `torch.optim.AdamW`; Loshchilov and Hutter 2019.

    Example:
        >>> AdamW([{"params": "**.bias", "weight_decay": 0.0}, {"params": ...}],
        ...       lr=1e-3).param_groups[1]["weight_decay"]
        0.01
    """

    def __init__(
        self,
        params: Any,
        lr: Any = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        do_bias_correction: bool = True,
        **keys: Any,
    ):
        super().__init__(
            params,
            lr,
            betas,
            eps,
            weight_decay,
            amsgrad,
            maximize=maximize,
            decoupled_weight_decay=True,
            do_bias_correction=do_bias_correction,
            **keys,
        )
