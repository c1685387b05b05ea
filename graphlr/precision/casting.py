"""Mixed precision: modules that compute in 16 bits.

Parameters, statistics, slots and losses stay float32; what is computed in between is
not. flax's layers have a `dtype` to compute in, which is set on the traced copy of each
that has none; the parameters of other modules are cast. A call from `build` casts its
arguments down and its results up, so the loss is float32.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from graphlr.groups.paths import PathParts
from graphlr.modules.calls import Call, wrap
from graphlr.modules.tree import Edit, is_module

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


def cast(tree: Any, dtype: DTypeLike) -> Any:
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
def _casting(dtype: DTypeLike) -> Callable[[Call], Call]:
    """Casts arguments to `dtype`, and what `build` itself gets to float32."""

    def around(call: Call) -> Call:
        @functools.wraps(call)
        def casting(module: object, *args: Any, **kwargs: Any) -> Any:
            args, kwargs = cast((args, kwargs), dtype)
            with _call() as nested:
                result = call(module, *args, **kwargs)
            return result if nested else cast(result, jnp.float32)

        return casting

    return around


def edits(
    nodes: Mapping[PathParts, Any], amp: str | None, float32: Collection[PathParts]
) -> list[Edit]:
    """What makes the copies of `nodes` compute in `amp`.

    Args:
        nodes: Every module by its path.
        amp: "bfloat16", "float16" or None.
        float32: Paths of modules that compute in float32, with all inside them.
    """
    if amp is None:
        return []
    made: list[Edit] = []
    islands = set(float32)
    for path, node in nodes.items():
        if any(path[:n] in islands for n in range(len(path))):
            continue
        if path in islands or _is_own_norm(node):
            islands.add(path)
            made.append((path, functools.partial(wrap, around=_casting("float32"))))
        else:
            made.append((path, functools.partial(_lower, amp=amp)))
    return made


def _is_own_norm(node: object) -> bool:
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
