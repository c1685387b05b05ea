"""First and second moments of gradients, and what Adam's family makes of them."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from graphlr.optim.transforms.gradients import ascend
from graphlr.optim.transforms.leaves import (
    NewSlots,
    Number,
    Slots,
    bias_correction,
    per_leaf,
)


def moments(
    g: jax.Array, slots: Slots, b1: Number, b2: Number
) -> tuple[jax.Array, jax.Array]:
    """First and second moment with one gradient more: `m += (1 - b1) (g - m)`, ..."""
    m, v, *_ = slots
    return m + (1 - b1) * (g - m), b2 * v + (1 - b2) * g * g


def corrections(b1: Number, b2: Number, t: jax.Array) -> tuple[jax.Array, jax.Array]:
    """`1 - b1**t` and `1 - b2**t`."""
    return bias_correction(b1, t), bias_correction(b2, t)


class MomentsState(NamedTuple):
    """First and second moments, steps per parameter."""

    exp_avg: optax.Updates
    exp_avg_sq: optax.Updates
    steps: jax.Array


class AdamState(NamedTuple):
    """First and second moments, the largest second moment, steps per parameter."""

    exp_avg: optax.Updates
    exp_avg_sq: optax.Updates
    max_exp_avg_sq: optax.Updates  # of Nones unless amsgrad
    steps: jax.Array


def scale_by_adam(
    b1: Number = 0.9,
    b2: Number = 0.999,
    eps: Number = 1e-8,
    *,
    amsgrad: bool = False,
    bias_correction: bool = True,
) -> optax.GradientTransformation:
    """Adam's direction as PyTorch computes it.

    `m += (1 - b1) (g - m)`, `v = b2 v + (1 - b2) g²`, and the update is
    `(m / c1) / (sqrt(v) / sqrt(c2) + eps)` with `c = 1 - bᵗ`, t the parameter's own
    step. Against `optax.scale_by_adam`: `c` is computed as `-expm1(t log b)`, which
    float32 does not cancel; t is per parameter; `amsgrad` takes the maximum of the raw
    `v`, not of the corrected one.

    Source: `torch.optim.Adam`; Kingma and Ba 2015, Reddi et al. 2018 (amsgrad).
    `bias_correction=False` is OneFlow's `do_bias_correction=False`.

    Example:
        >>> tx = scale_by_adam()
        >>> state = tx.init({"w": jnp.zeros(1)})
        >>> update, state = tx.update({"w": jnp.array([0.25])}, state)
        >>> float(update["w"][0]).__round__(5), state.steps.tolist()
        (1.0, [1])
    """

    def start(p: jax.Array) -> NewSlots:
        largest = jnp.zeros_like(p) if amsgrad else None
        return jnp.zeros_like(p), jnp.zeros_like(p), largest

    def step(
        g: jax.Array, _: object, slots: Slots, r1: jax.Array, r2: jax.Array
    ) -> tuple[jax.Array, NewSlots]:
        m, v = moments(g, slots, b1, b2)
        largest = jnp.maximum(slots[2], v) if amsgrad else v
        return (m * r1) / (jnp.sqrt(largest) * r2 + eps), (m, v, largest)

    def coefficients(t: jax.Array) -> tuple[jax.Array, ...]:
        if not bias_correction:
            return jnp.ones(t.shape), jnp.ones(t.shape)
        c1, c2 = corrections(b1, b2, t)
        return 1 / c1, jax.lax.rsqrt(c2)

    return per_leaf(AdamState, start, step, coefficients)


def with_decay(
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
