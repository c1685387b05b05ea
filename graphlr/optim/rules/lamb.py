"""LAMB: Adam with a rate for each layer."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import optax

from graphlr.optim.optimizer import Optimizer
from graphlr.optim.transforms.gradients import ascend, norm
from graphlr.optim.transforms.leaves import (
    Number,
)
from graphlr.optim.transforms.moments import (
    scale_by_adam,
)


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

    def one(d: jax.Array, w: jax.Array) -> jax.Array:
        decayed = d + weight_decay * w
        size, slope = norm(w), norm(decayed if decay_in_ratio else d)
        zero = (size == 0) | (slope == 0)
        return jnp.where(zero, 1.0, size / slope) * decayed

    return optax.stateless(functools.partial(jax.tree.map, one))


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
        """Adam's direction, rescaled to the norm of each parameter."""
        coupled, decoupled = (0.0, weight_decay) if adam_w_mode else (weight_decay, 0.0)
        return optax.chain(
            ascend(maximize),
            optax.add_decayed_weights(coupled),
            scale_by_adam(*betas, eps, bias_correction=do_bias_correction),
            scale_by_trust_ratio(decoupled, decay_in_ratio=decay_in_ratio),
        )
