"""Mixed precision: modules that compute in 16 bits, and the scale of the loss.

Parameters, statistics, slots and losses stay float32; what is computed in between is
not. flax's layers have a `dtype` to compute in, which is set on the traced copy of each
that has none; the parameters of other modules are cast. A call from `build` casts its
arguments down and its results up, so the loss is float32.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from graphlr.calls import Call, wrap
from graphlr.groups import Place
from graphlr.modules import Edit, is_module

# --- the scale of the loss ------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class GradScaler:
    """A loss scale that grows until gradients overflow: for float16.

    The loss is multiplied by the scale and the gradients divided by it. If one of them
    isn't finite, the update is skipped (parameters, slots, statistics, step count and
    schedules stay) and the scale multiplied by `backoff_factor`; after
    `growth_interval` good steps it is multiplied by `growth_factor`.
    Source: PyTorch `torch.amp.GradScaler`; OneFlow `GradScaler`.

    Raises:
        ValueError: A number is out of range.

    Example:
        >>> scaler = GradScaler(init_scale=4.0, growth_interval=2)
        >>> scale, good = jnp.float32(4.0), jnp.int32(1)
        >>> [float(x) for x in scaler.update(scale, good, jnp.bool_(True))]
        [8.0, 0.0]
        >>> [float(x) for x in scaler.update(scale, good, jnp.bool_(False))]
        [2.0, 0.0]
    """

    init_scale: float = 2.0**16
    growth_factor: float = 2.0
    backoff_factor: float = 0.5
    growth_interval: int = 2000

    def __post_init__(self) -> None:
        for name, ok, need in (
            ("init_scale", self.init_scale > 0, "above 0"),
            ("growth_factor", self.growth_factor > 1, "above 1"),
            ("backoff_factor", 0 < self.backoff_factor < 1, "between 0 and 1"),
            ("growth_interval", self.growth_interval >= 1, "at least 1"),
        ):
            if not ok:
                value = getattr(self, name)
                raise ValueError(f"GradScaler: {name} is {value!r}, and must be {need}")

    def update(
        self, scale: jax.Array, good: jax.Array, ok: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """The scale and the number of good steps after one more."""
        grown = scale * self.growth_factor
        full = good + 1 >= self.growth_interval
        larger = jnp.where(full & jnp.isfinite(grown), grown, scale)
        new_scale = jnp.where(ok, larger, scale * self.backoff_factor)
        return new_scale, jnp.where(ok & ~full, good + 1, 0)


@dataclasses.dataclass(frozen=True)
class StaticGradScaler:
    """A loss scale that stays; an update that overflows is skipped.

    Source: OneFlow `StaticGradScaler`.

    Example:
        >>> StaticGradScaler(128.0).init_scale
        128.0
    """

    scale_factor: float

    def __post_init__(self) -> None:
        if not self.scale_factor > 0:
            raise ValueError(
                f"StaticGradScaler: scale_factor is {self.scale_factor!r}, and must be "
                "above 0"
            )

    @property
    def init_scale(self) -> float:
        """The scale."""
        return self.scale_factor

    def update(
        self, scale: jax.Array, good: jax.Array, ok: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """The same scale, and the number of good steps after one more."""
        return scale, jnp.where(ok, good + 1, 0)


Scaler = GradScaler | StaticGradScaler

# --- modules that compute in 16 bits --------------------------------------------------

_inside = False  # whether a call that build made is under way, while tracing


@contextmanager
def _call() -> Iterator[bool]:
    """One call of a module; gives whether another one is around it."""
    global _inside
    around, _inside = _inside, True
    try:
        yield around
    finally:
        _inside = around


def cast(tree: Any, dtype: Any) -> Any:
    """Every float array of `tree` in `dtype`; modules in it are left alone.

    Example:
        >>> cast({"x": jnp.ones(1), "n": 3}, jnp.bfloat16)["x"].dtype
        dtype(bfloat16)
    """

    def one(leaf: Any) -> Any:
        is_array = isinstance(leaf, jax.Array | np.ndarray)
        if is_array and jnp.issubdtype(leaf.dtype, jnp.floating):
            return jnp.asarray(leaf, dtype)
        return leaf

    return jax.tree.map(one, tree, is_leaf=is_module)


@functools.cache
def _casting(dtype: Any) -> Callable[[Call], Call]:
    """Casts arguments to `dtype`, and what `build` itself gets to float32."""

    def around(call: Call) -> Call:
        @functools.wraps(call)
        def casting(module: Any, *args: Any, **kwargs: Any) -> Any:
            args, kwargs = cast((args, kwargs), dtype)
            with _call() as nested:
                result = call(module, *args, **kwargs)
            return result if nested else cast(result, jnp.float32)

        return casting

    return around


def edits(
    nodes: Mapping[Place, Any], amp: str | None, float32: Collection[Place]
) -> list[Edit]:
    """What makes the copies of `nodes` compute in `amp`.

    Args:
        nodes: Every module by its place.
        amp: "bfloat16", "float16" or None.
        float32: Places of modules that compute in float32, with all inside them.
    """
    if amp is None:
        return []
    found: list[Edit] = []
    islands = set(float32)
    for place, node in nodes.items():
        if any(place[:n] in islands for n in range(len(place))):
            continue
        if place in islands or _is_own_norm(node):
            islands.add(place)
            found.append((place, functools.partial(wrap, around=_casting("float32"))))
        else:
            found.append((place, functools.partial(_lower, amp=amp)))
    return found


def _is_own_norm(node: Any) -> bool:
    """A normalisation that isn't flax's, whose layers know what to keep in float32."""
    return "norm" in type(node).__name__.lower() and not hasattr(node, "dtype")


def _lower(node: Any, amp: str) -> None:
    if not hasattr(node, "dtype"):
        for value in vars(node).values():
            if isinstance(value, nnx.Param):
                value.set_value(cast(value.get_value(), amp))
    elif node.dtype is None:
        node.dtype = jnp.dtype(amp)
    wrap(node, _casting(amp))
