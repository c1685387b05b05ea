"""Adam and its family."""

from __future__ import annotations

import optax

from graphlr.optim.optimizer import Optimizer
from graphlr.optim.transforms.adam import (
    scale_by_adam,
    scale_by_adamax,
    scale_by_lazy_adam,
    scale_by_nadam,
    scale_by_radam,
)
from graphlr.optim.transforms.gradients import ascend
from graphlr.optim.transforms.leaves import Number
from graphlr.optim.transforms.momentum import scale_by_trust_ratio


def _decayed(
    direction: optax.GradientTransformation,
    weight_decay: Number,
    *,
    decoupled: bool,
    maximize: bool,
) -> optax.GradientTransformation:
    """`direction` of gradients with L2 decay, or with decay of the weights after it."""
    decay = optax.add_decayed_weights(weight_decay)
    parts = [direction, decay] if decoupled else [decay, direction]
    return optax.chain(ascend(maximize), *parts)


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
        return _decayed(
            scale_by_adam(
                *betas, eps, amsgrad=amsgrad, bias_correction=do_bias_correction
            ),
            weight_decay,
            decoupled=decoupled_weight_decay,
            maximize=maximize,
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
        """The direction of a step."""
        direction = scale_by_adamax(*betas, eps)
        return _decayed(direction, weight_decay, decoupled=False, maximize=maximize)


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
        """The direction of a step."""
        return _decayed(
            scale_by_nadam(*betas, eps, momentum_decay),
            weight_decay,
            decoupled=decoupled_weight_decay,
            maximize=maximize,
        )


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
        """The direction of a step."""
        return _decayed(
            scale_by_radam(*betas, eps),
            weight_decay,
            decoupled=decoupled_weight_decay,
            maximize=maximize,
        )


class LAMB(Optimizer):
    """Adam with a rate for each parameter in proportion to its norm.

    `d` as Adam's direction; `w -= lr * |w| / |d| * (d + weight_decay * w)`, the ratio 1
    where a norm is zero and without bounds. `adam_w_mode=False` puts the decay into
    the gradient instead (L2); `do_bias_correction=False` leaves `c = 1` in `d`.

    OneFlow's `|d|` is without the decay; the paper, Apex and `optax.lamb` take
    `|d + weight_decay * w|`, which is `decay_in_ratio=True`.

    Source: `oneflow.optim.LAMB`; You et al. 2020, "Large batch optimization for deep
    learning".

    Example:
        >>> LAMB("**", lr=0.02, weight_decay=0.01).param_groups[0]["adam_w_mode"]
        True
    """

    @staticmethod
    def rule(
        betas: tuple[Number, Number] = (0.9, 0.999),
        eps: Number = 1e-8,
        weight_decay: Number = 0.0,
        adam_w_mode: bool = True,
        do_bias_correction: bool = True,
        *,
        maximize: bool = False,
        decay_in_ratio: bool = False,
    ) -> optax.GradientTransformation:
        """The direction of a step."""
        coupled, decoupled = (0.0, weight_decay) if adam_w_mode else (weight_decay, 0.0)
        return optax.chain(
            ascend(maximize),
            optax.add_decayed_weights(coupled),
            scale_by_adam(*betas, eps, bias_correction=do_bias_correction),
            scale_by_trust_ratio(decoupled, decay_in_ratio=decay_in_ratio),
        )


class SparseAdam(Optimizer):
    """Adam for embedding tables: rows without a gradient stay exactly as they are.

    A row is an entry of the first axis. One whose gradient is all zero keeps its
    values and its moments; the step is counted for the whole table. The others:
    `w -= lr * sqrt(c2) / c1 * m / (sqrt(v) + eps)`. There is no weight decay.

    PyTorch takes sparse gradients only, and a row that was looked up counts even if
    its gradient is zero; JAX's gradients are dense, so here zero means untouched.

    Source: `torch.optim.SparseAdam`.

    Example:
        >>> SparseAdam(
        ...     [{"params": "embed.**"}, {"params": ..., "optimizer": AdamW}]
        ... ).lr()
        {'group0': 0.001, 'group1': 0.001}
    """

    @staticmethod
    def rule(
        betas: tuple[Number, Number] = (0.9, 0.999),
        eps: Number = 1e-8,
        maximize: bool = False,
    ) -> optax.GradientTransformation:
        """The direction of a step."""
        return optax.chain(ascend(maximize), scale_by_lazy_adam(*betas, eps))
