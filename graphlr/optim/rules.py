"""Update rules: PyTorch's names, signatures and formulas, composed from optax.

A rule is a function of hyperparameters that returns the *direction* of a step as an
`optax.GradientTransformation`; `Optimizer` multiplies it by `-lr(t) * lr_scale`. Its
signature is the optimizer's: PyTorch's order and defaults. Numbers arrive traced, so
changing one never recompiles.
"""

from __future__ import annotations

import optax

from graphlr.optim.compiled import is_off
from graphlr.optim.optimizer import Optimizer
from graphlr.optim.transforms import Number, scale_by_adam, scale_by_momentum


def _sign(maximize: bool) -> optax.GradientTransformation:
    return optax.scale(-1.0) if maximize else optax.identity()


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
            _sign(maximize),
            optax.add_decayed_weights(weight_decay),
            optax.identity()
            if is_off(momentum)
            else scale_by_momentum(momentum, dampening, nesterov=nesterov),
        )


class Adam(Optimizer):
    """Adam. Its weight decay is coupled (L2): see `AdamW`.

    `m += (1 - b1) (g - m)`; `v = b2 v + (1 - b2) g²`;
    `w -= lr * (m / c1) / (sqrt(v) / sqrt(c2) + eps)` with `c = 1 - bᵗ`, t the
    parameter's own step. `amsgrad` divides by the largest v seen;
    `do_bias_correction=False` leaves `c = 1` (OneFlow's option).

    Source: `torch.optim.Adam`; Kingma and Ba 2015.

    Example:
        >>> Adam("**", lr=1e-2).param_groups[0]["betas"]
        (0.9, 0.999)
    """

    @staticmethod
    def rule(
        betas: tuple[Number, Number] = (0.9, 0.999),
        eps: Number = 1e-8,
        weight_decay: Number = 0.0,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        decoupled_weight_decay: bool = False,
        do_bias_correction: bool = True,
    ) -> optax.GradientTransformation:
        """The direction of a step."""
        decay = optax.add_decayed_weights(weight_decay)
        return optax.chain(
            _sign(maximize),
            optax.identity() if decoupled_weight_decay else decay,
            scale_by_adam(
                *betas, eps, amsgrad=amsgrad, bias_correction=do_bias_correction
            ),
            decay if decoupled_weight_decay else optax.identity(),
        )


class AdamW(Optimizer):
    """Adam with decoupled weight decay: also `w -= lr * weight_decay * w`.

    The decay is multiplied by the group's whole learning rate, schedule and `lr_scale`
    included, and shrinks the weights under `maximize` too. Its default is PyTorch's
    0.01; OneFlow's is 0.

    Source: `torch.optim.AdamW`; Loshchilov and Hutter 2019.

    Example:
        >>> groups = [{"params": "**.bias", "weight_decay": 0.0}, {"params": ...}]
        >>> [group["weight_decay"] for group in AdamW(groups, lr=1e-3).param_groups]
        [0.0, 0.01]
    """

    @staticmethod
    def rule(
        betas: tuple[Number, Number] = (0.9, 0.999),
        eps: Number = 1e-8,
        weight_decay: Number = 0.01,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        do_bias_correction: bool = True,
    ) -> optax.GradientTransformation:
        """The direction of a step."""
        return Adam.rule(
            betas,
            eps,
            weight_decay,
            amsgrad,
            maximize=maximize,
            decoupled_weight_decay=True,
            do_bias_correction=do_bias_correction,
        )
