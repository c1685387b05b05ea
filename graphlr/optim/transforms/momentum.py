"""Momentum."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from graphlr.optim.transforms.leaves import NewSlots, Number, Slots, per_leaf


class MomentumState(NamedTuple):
    """The momentum buffers."""

    momentum: optax.Updates


class DampenedState(NamedTuple):
    """The momentum buffers, and how many steps each parameter has taken."""

    momentum: optax.Updates
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

    def start(p: jax.Array) -> NewSlots:
        return (jnp.zeros_like(p),)

    def step(g: jax.Array, _: object, slots: Slots) -> tuple[jax.Array, NewSlots]:
        new = momentum * slots[0] + g  # the first buffer is zero
        return (g + momentum * new if nesterov else new), (new,)

    def dampened(
        g: jax.Array, _: object, slots: Slots, first: jax.Array
    ) -> tuple[jax.Array, NewSlots]:
        new = jnp.where(first, g, momentum * slots[0] + (1 - dampening) * g)
        return (g + momentum * new if nesterov else new), (new,)

    if isinstance(dampening, float) and dampening == 0:
        return per_leaf(MomentumState, start, step)
    return per_leaf(DampenedState, start, dampened, lambda t: (t == 1,))
