"""Calls of modules, changed in the traced copy: cast, or computed again.

The class of a module's copy is replaced by a subclass of the same name whose `__call__`
does something around the original's.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from flax import nnx
from flax.nnx.tracers import TraceState

Call = Callable[..., Any]


def current_trace() -> object:
    """What JAX is tracing; inside `jax.checkpoint` or a loop not equal to outside."""
    return TraceState()


def wrap(node: object, around: Callable[[Call], Call]) -> None:
    """Make calls of `node` go through `around(the original)`.

    Args:
        node: A module; one without `__call__` is left as it is.
        around: Makes one function of `(self, *args, **kwargs)` from another. Must be
            the same object each time, for the subclass to be.
    """
    if callable(node):
        node.__class__ = _subclass(type(node), around)


@functools.cache  # flax keeps every class of modules that there ever was
def _subclass(kind: type, around: Callable[[Call], Call]) -> type:
    named = {k: getattr(kind, k) for k in ("__module__", "__qualname__", "__doc__")}
    call = around(kind.__call__)
    return type(kind)(kind.__name__, (kind,), {**named, "__call__": call})


def recompute(node: object) -> None:
    """Make calls of `node` keep no activations: they are computed again for gradients.

    Arguments and results that are no arrays are constants.
    """
    wrap(node, _again)


def _again(call: Call) -> Call:
    @functools.wraps(call)
    def again(module: object, *args: Any, **kwargs: Any) -> Any:
        arrays, fill = _arrays((args, kwargs))
        fill_result: Any = None

        def run(module: object, arrays: list[Any]) -> Any:
            nonlocal fill_result
            args, kwargs = fill(arrays)
            results, fill_result = _arrays(call(module, *args, **kwargs))
            return results

        results = nnx.remat(run)(module, arrays)
        return fill_result(results)

    return again


def _arrays(tree: object) -> tuple[list[Any], Callable[[list[Any]], Any]]:
    """The arrays of `tree`, and what puts others in their places."""
    leaves, structure = jax.tree.flatten(tree)
    places = [
        i for i, leaf in enumerate(leaves) if isinstance(leaf, jax.Array | np.ndarray)
    ]

    def fill(arrays: list[Any]) -> Any:
        filled = dict(zip(places, arrays, strict=True))
        full = [filled.get(i, leaf) for i, leaf in enumerate(leaves)]
        return jax.tree.unflatten(structure, full)

    return [leaves[i] for i in places], fill
