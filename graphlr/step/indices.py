"""Integer arguments that index something: labels and token ids out of range."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import numpy as np
from jax.core import ShapedArray
from jax.extend.core import Jaxpr, JaxprEqn, Var
from jax.typing import ArrayLike

_SAME_VALUES = {
    "broadcast_in_dim",
    "convert_element_type",
    "copy",
    "expand_dims",
    "reshape",
    "squeeze",
    "transpose",
}


def index_limits(jaxpr: Jaxpr, known: Mapping[Var, int]) -> dict[int, int]:
    """Sizes of the axes that integer inputs of a traced step index.

    A label out of range makes XLA read NaN without a word. Here every input that
    reaches a gather unchanged (through `take_along_axis`, `take`, `x[i]`, so through
    `optax.softmax_cross_entropy_with_integer_labels` and `nnx.Embed`) is found, so that
    its values can be checked on the host before the step.

    Args:
        jaxpr: Of the step.
        known: `{input variable: position}` of the inputs to follow.

    Returns:
        `{position: size}`: allowed values are 0 to size - 1. (JAX would count negative
        ones from the end; as labels or token ids they are mistakes.)

    Example:
        >>> import jax, jax.numpy as jnp
        >>> traced = jax.jit(lambda x, i: jnp.take(x, i)).trace(jnp.ones(5), 1)
        >>> jaxpr = traced.jaxpr.jaxpr
        >>> index_limits(jaxpr, {jaxpr.invars[1]: 0})
        {0: 5}
    """
    limits: dict[int, int] = {}
    # Where a variable comes from: an input, and whether its size was added to it.
    origin: dict[Any, tuple[int, bool]] = {v: (i, False) for v, i in known.items()}
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        sources = [origin.get(v) for v in equation.invars if not hasattr(v, "val")]
        inner = _inner(equation)
        if inner is not None:
            passed = zip(inner.invars, equation.invars, strict=True)
            follow = {
                a: origin[b][0]
                for a, b in passed
                if not hasattr(b, "val") and b in origin and not origin[b][1]
            }
            found = index_limits(inner, follow)
            limits = _smallest(limits, found)
        if not any(sources):
            continue
        source = next(filter(None, sources))
        if name in _SAME_VALUES:
            origin[equation.outvars[0]] = source
        elif name == "add":  # x + size, for indices counted from the end
            origin[equation.outvars[0]] = (source[0], True)
        elif name == "select_n" and _is_wrapped(sources):
            origin[equation.outvars[0]] = (source[0], False)
        elif inner is not None and inner.eqns and len(equation.outvars) == 1:
            wrapped = inner.eqns[-1].primitive.name == "select_n"
            if wrapped and _is_wrapped([None, *sources[1:]]):
                origin[equation.outvars[0]] = (source[0], False)
        elif name == "gather" and sources[-1] and not sources[-1][1]:
            dims = equation.params["dimension_numbers"].start_index_map
            if len(dims) == 1 and _reads_nan(equation):
                operand = cast(ShapedArray, equation.invars[0].aval)
                size = operand.shape[dims[0]]
                limits = _smallest(limits, {sources[-1][0]: size})
    return limits


def _is_wrapped(sources: Sequence[tuple[int, bool] | None]) -> bool:
    """`where(x < 0, x + size, x)`: both cases are one input, one of them moved."""
    cases = [source for source in sources[1:] if source]
    return len(cases) == 2 and cases[0][0] == cases[1][0] and cases[0][1] != cases[1][1]


def _reads_nan(gather: JaxprEqn) -> bool:
    """Whether an index out of range gives NaN, and not what the program asked for."""
    mode, fill = str(gather.params["mode"]), gather.params["fill_value"]
    return "CLIP" not in mode and (fill is None or bool(np.isnan(fill)))


def _inner(equation: JaxprEqn) -> Jaxpr | None:
    """The jaxpr of a call with the same inputs, if the equation is one."""
    inner = equation.params.get("jaxpr") or equation.params.get("call_jaxpr")
    inner = getattr(inner, "jaxpr", inner)
    same = inner is not None and len(inner.invars) == len(equation.invars)
    return inner if same else None


def _smallest(a: dict[int, int], b: dict[int, int]) -> dict[int, int]:
    return {i: min(a.get(i, b.get(i, 0)), b.get(i, a.get(i, 0))) for i in {**a, **b}}


def check_range(array: ArrayLike, size: int, name: Callable[[], str]) -> None:
    """Refuse indices that a host array visibly has out of range.

    Raises:
        ValueError: Names the argument, the value and the place.

    Example:
        >>> check_range(np.array([3, 99]), 10, lambda: "label")
        Traceback (most recent call last):
        ValueError: label[1] is 99, but it indexes 10 entries (0 to 9). Entries to be \
ignored need a valid index all the same: jnp.where(mask, index, 0)
    """
    values = np.asarray(array)
    if values.size == 0 or (values.max() < size and values.min() >= 0):
        return
    bad = np.argwhere((values >= size) | (values < 0))[0]
    place = f"[{', '.join(map(str, bad))}]" if values.ndim else ""
    raise ValueError(
        f"{name()}{place} is {values[tuple(bad)]}, but it indexes {size} entries "
        f"(0 to {size - 1}). Entries to be ignored need a valid index all the same: "
        "jnp.where(mask, index, 0)"
    )
