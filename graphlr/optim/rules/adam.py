"""Adam, with its weight decay outside (AdamW), or for tables of few touched rows."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from graphlr.optim.optimizer import Optimizer
from graphlr.optim.transforms.gradients import ascend
from graphlr.optim.transforms.leaves import (
    NewSlots,
    Number,
    Slots,
    per_leaf,
)
from graphlr.optim.transforms.moments import (
    MomentsState,
    corrections,
    moments,
    scale_by_adam,
    with_decay,
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
        """Adam's direction of decayed gradients, or with the decay added to it."""
        return with_decay(
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
        """Adam's direction, with the decay added to it."""
        return Adam.rule(
            betas,
            eps,
            weight_decay,
            amsgrad,
            maximize=maximize,
            decoupled_weight_decay=True,
            do_bias_correction=do_bias_correction,
        )


def scale_by_lazy_adam(
    b1: Number = 0.9, b2: Number = 0.999, eps: Number = 1e-8
) -> optax.GradientTransformation:
    """Adam for tables of which a step touches few rows: the others stay as they are.

    A row (an entry of the first axis) whose gradient is exactly zero keeps its moments
    and gets no update; the step is counted for all. The update of the others is
    `sqrt(c2) / c1 * m / (sqrt(v) + eps)`.

    Source: `torch.optim.SparseAdam`, for the dense gradients that JAX gives.

    Example:
        >>> tx = scale_by_lazy_adam()
        >>> g = jnp.array([[0.25], [0.0]])
        >>> update, state = tx.update(g, tx.init(jnp.zeros((2, 1))))
        >>> update.round(4).tolist()
        [[1.0], [0.0]]
    """

    def start(p: jax.Array) -> NewSlots:
        return jnp.zeros_like(p), jnp.zeros_like(p)

    def step(
        g: jax.Array, _: object, slots: Slots, c1: jax.Array, c2: jax.Array
    ) -> tuple[jax.Array, NewSlots]:
        touched = jnp.any(g != 0, axis=tuple(range(1, g.ndim)), keepdims=True)
        m, v = moments(g, slots, b1, b2)
        direction = jnp.sqrt(c2) / c1 * m / (jnp.sqrt(v) + eps)
        kept = jnp.where(touched, m, slots[0]), jnp.where(touched, v, slots[1])
        return jnp.where(touched, direction, 0.0), kept

    return per_leaf(MomentsState, start, step, lambda t: corrections(b1, b2, t))


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
        """Adam's direction where a row has a gradient, zero elsewhere."""
        return optax.chain(ascend(maximize), scale_by_lazy_adam(*betas, eps))
