"""What own transformations are made of: one parameter at a time, counted on its own."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer

Number = float | jax.Array
# Of one parameter. One that it doesn't have is None, and its step doesn't read it.
NewSlots = tuple[jax.Array | None, ...]
Slots = tuple[jax.Array, ...]
# (gradient, parameter or None, its slots, its coefficients) -> (direction, new slots)
Step = Callable[..., tuple[jax.Array, NewSlots]]


def is_off(number: Number) -> bool:
    """Whether a momentum-like number is the constant zero, so that it needs no slot.

    Example:
        >>> is_off(0.0), is_off(0.9)
        (True, False)
    """
    return isinstance(number, float) and number == 0.0


def per_leaf(
    record: Any,
    start: Callable[[jax.Array], NewSlots],
    step: Step,
    coefficients: Callable[[jax.Array], tuple[jax.Array, ...]] | None = None,
) -> optax.GradientTransformation:
    """A transformation from what it does to one parameter.

    Slots keep the dtype that they start with, whatever the numbers' dtype.

    Args:
        record: A NamedTuple of one field for each slot, each a tree like the
            parameters, and with `coefficients` a last one, `steps`, int32[n].
        start: From a parameter to its slots; None for a slot that it doesn't have.
        step: From a gradient, the parameter (None if none were given), its slots and
            its own entry of each coefficient to a direction and the new slots.
        coefficients: From the counts int32[n], 1 at a parameter's first step, to
            vectors [n]; without it nothing is counted.

    Example:
        >>> from typing import NamedTuple
        >>> class Sum(NamedTuple):
        ...     sum: Any
        >>> tx = per_leaf(
        ...     Sum, lambda p: (jnp.zeros_like(p),), lambda g, p, s: (g, (s[0] + g,))
        ... )
        >>> state = tx.init({"w": jnp.ones(1)})
        >>> tx.update({"w": jnp.array([2.0])}, state)[1].sum["w"].tolist()
        [2.0]
    """
    width = len(record._fields) - (coefficients is not None)

    def fields_of(tree: Any, slots: list[tuple[Any, ...]]) -> list[Any]:
        return [tree.unflatten([mine[i] for mine in slots]) for i in range(width)]

    def init(params: optax.Params) -> optax.OptState:
        leaves, tree = jax.tree.flatten(params)
        fields = fields_of(tree, [start(leaf) for leaf in leaves])
        if coefficients is None:
            return record(*fields)
        return record(*fields, jnp.zeros(len(leaves), jnp.int32))

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
    ) -> tuple[optax.Updates, optax.OptState]:
        grads, tree = jax.tree.flatten(updates)
        weights = [None] * len(grads) if params is None else tree.flatten_up_to(params)
        slots = zip(*map(tree.flatten_up_to, state[:width]), strict=True)
        own, counts = itertools.repeat(()), ()
        if coefficients is not None:
            # Without the barrier XLA for CPU computes them from the old counts, and has
            # to copy these for that, because it writes the new ones over them.
            counts = (jax.lax.optimization_barrier(state.steps + 1),)
            own = _entries(coefficients(*counts))
        directions, made = [], []
        for g, p, mine, numbers in zip(grads, weights, slots, own, strict=False):
            direction, new = step(g, p, mine, *numbers)
            directions.append(direction)
            made.append(tuple(map(_like, new, mine)))
        return tree.unflatten(directions), record(*fields_of(tree, made), *counts)

    return optax.GradientTransformation(init, update)


def pieces(
    vector: jax.Array | np.ndarray | Sequence[float], sizes: Sequence[int]
) -> list[Any]:
    """`vector` cut into consecutive pieces.

    While tracing, the vector is computed once and the places of the cuts are hidden
    from the compiler: it makes one kernel for all parameters of a shape, which differ
    in their place only, and it takes a third to two thirds less time.

    Args:
        vector: Numbers, at least as many as the sizes ask for.
        sizes: How many numbers each piece has.

    Example:
        >>> pieces([0.1, 0.2, 0.3], [1, 2])
        [[0.1], [0.2, 0.3]]
    """
    if not isinstance(vector, jax.Array) or not isinstance(vector, Tracer):
        entries = iter(vector)
        return [list(itertools.islice(entries, size)) for size in sizes]
    if len(sizes) == 1:
        return [jax.lax.optimization_barrier(vector)]
    starts = list(itertools.accumulate(sizes, initial=0))[:-1]
    whole, *hidden = jax.lax.optimization_barrier([vector, *map(np.int32, starts)])
    return [
        jax.lax.dynamic_slice(whole, (i,), (size,), allow_negative_indices=False)
        for i, size in zip(hidden, sizes, strict=True)
    ]


def _entries(vectors: tuple[jax.Array, ...]) -> list[list[jax.Array]]:
    """The entries of all vectors at each place; they are computed in one kernel."""
    width, length = len(vectors), len(vectors[0])
    joined = jnp.stack(vectors, 1).reshape(-1)
    return [
        [piece[i] for i in range(width)] for piece in pieces(joined, [width] * length)
    ]


def _like(new: jax.Array | None, old: jax.Array | None) -> jax.Array | None:
    return None if old is None or new is None else new.astype(old.dtype)


def bias_correction(b: Number, steps: jax.Array) -> jax.Array:
    """`1 - b**steps`, of which float32 loses no digit.

    Example:
        >>> float(bias_correction(0.999, jnp.array(1))).__round__(8)
        0.001
    """
    return -jnp.expm1(steps * log(b))


def log(b: Number) -> Number:
    """`log(b)`, in double precision where `b` is a constant; `-inf` of zero."""
    return math.log(b) if isinstance(b, float) and b > 0 else jnp.log(b)
