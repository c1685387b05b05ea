"""A graph's whole state as a flat dict by dotted name, given and taken back.

Variables by path (`model.head.kernel`, RNG keys as their data), optimizer slots by
parameter (`slots.model.head.kernel.exp_avg`), the groups' numbers and flags
(`groups.head.lr_scale`), and `step`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from graphlr.groups import ParamGroup, listing
from graphlr.modules import read, write
from graphlr.optim.optimizer import Optimizer
from graphlr.plan import Plan


def group_names(optimizers: Sequence[Optimizer]) -> list[list[str]]:
    """Names of the groups, with the optimizer's number where two share one.

    Example:
        >>> from graphlr.optim import SGD
        >>> group_names([SGD("a.**"), SGD([{"params": "b.**", "name": "head"}])])
        [['group0'], ['head']]
        >>> group_names([SGD("a.**"), SGD("b.**")])
        [['optimizer0.group0'], ['optimizer1.group0']]
    """
    names = [[group.name for group in o.param_groups] for o in optimizers]
    every = [name for some in names for name in some]
    return [
        [f"optimizer{k}.{name}" if every.count(name) > 1 else name for name in some]
        for k, some in enumerate(names)
    ]


def state_dict(plan: Plan, optimizers: Sequence[Optimizer]) -> dict[str, Any]:
    """Everything that training changes; arrays that no later step touches."""
    modules = plan.modules
    arrays = zip(modules.paths, read(modules.variables), strict=True)
    state: dict[str, Any] = {path: _plain(array) for path, array in arrays}
    for optimizer, layout in zip(optimizers, plan.layouts, strict=True):
        named = layout.named(optimizer.slots)
        state |= {f"slots.{key}": array for key, array in named.items()}
    state |= {key: group[field] for key, group, field in _fields(optimizers)}
    if optimizers:
        state["step"] = max(optimizer.step for optimizer in optimizers)
    return state


def load_flags(state: Mapping[str, Any], optimizers: Sequence[Optimizer]) -> None:
    """Set the groups' flags: they decide which slots there are, so they come first."""
    for key, group, field in _fields(optimizers):
        if key in state and isinstance(group[field], bool):
            group[field] = bool(state[key])


def load_state_dict(
    state: Mapping[str, Any],
    plan: Plan,
    optimizers: Sequence[Optimizer],
    *,
    strict: bool,
) -> None:
    """Take `state` over, all of it or, on an error, nothing."""
    _check(state, _expected(plan, optimizers), strict)
    slots = {key[6:]: x for key, x in state.items() if key.startswith("slots.")}
    flat = [
        layout.flat(slots, None if strict else optimizer.slots)
        for optimizer, layout in zip(optimizers, plan.layouts, strict=True)
    ]
    for path, variable in zip(plan.modules.paths, plan.modules.variables, strict=True):
        if path in state:
            (old,) = read([variable])
            write([variable], [_like(state[path], old)])
    for key, group, field in _fields(optimizers):
        if key in state and not isinstance(group[field], bool):
            value = state[key]
            group[field] = tuple(map(float, value)) if np.ndim(value) else value
    for optimizer, arrays in zip(optimizers, flat, strict=True):
        optimizer.slots = arrays
        optimizer.step = int(state.get("step", optimizer.step))


def _expected(plan: Plan, optimizers: Sequence[Optimizer]) -> dict[str, Any]:
    """What a state must hold: shapes and dtypes, without reading any array."""
    modules = plan.modules
    arrays = zip(modules.paths, read(modules.variables), strict=True)
    expected: dict[str, Any] = {
        path: jax.eval_shape(_plain, array) for path, array in arrays
    }
    for layout in plan.layouts:
        expected |= {f"slots.{key}": kind for key, kind in layout.keys().items()}
    expected |= {key: group[field] for key, group, field in _fields(optimizers)}
    return {**expected, **({"step": 0} if optimizers else {})}


def _fields(
    optimizers: Sequence[Optimizer],
) -> Iterator[tuple[str, ParamGroup, str]]:
    """Every number and flag of every group, with its key."""
    for names, optimizer in zip(group_names(optimizers), optimizers, strict=True):
        for name, group in zip(names, optimizer.param_groups, strict=True):
            for field, value in group.items():
                if isinstance(value, bool | float | tuple):
                    yield f"groups.{name}.{field}", group, field


def _plain(array: Any) -> Any:
    """PRNG keys as the numbers they are made of."""
    if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        return jax.random.key_data(array)
    return array


def _like(value: Any, old: Any) -> jax.Array:
    """A copy of `value` of the kind that `old` is."""
    if jnp.issubdtype(old.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(value, impl=jax.random.key_impl(old))
    return jnp.array(value, old.dtype)


def _check(state: Mapping[str, Any], expected: Mapping[str, Any], strict: bool) -> None:
    faults = []
    missing = [key for key in expected if key not in state]
    unexpected = [key for key in state if key not in expected]
    if strict and missing:
        faults.append(f"missing: {listing(missing)}")
    if strict and unexpected:
        faults.append(f"unexpected: {listing(unexpected)}")
    for key in expected:
        if key in state and (now := _type(state[key])) != (
            want := _type(expected[key])
        ):
            faults.append(f"{key} is {now}, and the graph has {want}")
    if faults:
        hint = " (strict=False takes what fits by name)" if strict else ""
        raise ValueError(f"the state doesn't fit the graph{hint}: {'; '.join(faults)}")


def _type(value: Any) -> str:
    """Shape and dtype; one for all plain numbers, `2 numbers` for a tuple of two."""
    shape = value.shape if hasattr(value, "shape") else np.shape(value)
    if not hasattr(value, "dtype") or shape == ():
        return "a number" if shape == () else f"{shape[0]} numbers"
    return f"{value.dtype}{list(shape)}"
