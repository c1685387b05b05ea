"""A graph's whole state as a flat dict by dotted name, given and taken back.

Variables by path (`model.head.kernel`, RNG keys as their data), optimizer slots by
parameter (`slots.model.head.kernel.exp_avg`), the groups' numbers and flags
(`groups.head.lr_scale`), and `step`.
"""

from __future__ import annotations

import contextlib
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from graphlr.groups import ParamGroup, listing
from graphlr.memory import Memory
from graphlr.modules import read, write
from graphlr.optim.compiled import is_live
from graphlr.optim.optimizer import Optimizer
from graphlr.plan import Plan


class StateError(ValueError, RuntimeError):
    """A state doesn't fit the graph; PyTorch's modules raise a RuntimeError then."""


class Loaded(NamedTuple):
    """What a load left out, by key.

    Attributes:
        missing: Entries of the graph that the state doesn't have.
        unexpected: Entries of the state that the graph doesn't have.
        memory: The step's memory as the state has it.
    """

    missing: list[str]
    unexpected: list[str]
    memory: Memory


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


def state_dict(
    plan: Plan, optimizers: Sequence[Optimizer], memory: Memory
) -> dict[str, Any]:
    """Everything that training changes; arrays that no later step touches."""
    modules = plan.modules
    arrays = zip(modules.paths, read(modules.variables), strict=True)
    state: dict[str, Any] = {path: plain(array) for path, array in arrays}
    for optimizer, layout in zip(optimizers, plan.layouts, strict=False):
        named = layout.named(optimizer.slots)
        state |= {f"slots.{key}": array for key, array in named.items()}
    state |= {key: group[field] for key, group, field in _fields(optimizers)}
    state |= _members(plan, optimizers)
    counts = [optimizer.step for optimizer in optimizers]
    return {**state, **memory, **dict(zip(step_keys(optimizers), counts, strict=True))}


@contextlib.contextmanager
def loading_groups(
    state: Mapping[str, Any], optimizers: Sequence[Optimizer]
) -> Iterator[None]:
    """Give the groups the numbers and flags of `state`; take them back on an error.

    They decide which slots there are, so they come before everything else.
    """
    old = [(group, dict(group)) for o in optimizers for group in o.param_groups]
    try:
        for names, optimizer in zip(group_names(optimizers), optimizers, strict=True):
            for name, group in zip(names, optimizer.param_groups, strict=True):
                group.update(_loaded(state, f"groups.{name}.", group))
        yield
    except BaseException:
        for group, values in old:
            fixed = ("params", "name")
            group.update({k: v for k, v in values.items() if k not in fixed})
        raise


def load_arrays(
    state: Mapping[str, Any],
    plan: Plan,
    optimizers: Sequence[Optimizer],
    memory: Memory,
    *,
    strict: bool,
) -> Loaded:
    """Take Variables, slots and step counts over: all of them or, on an error, none."""
    expected = {**_expected(plan, optimizers), **memory}
    missing, unexpected = check(state, expected, strict)
    slots = {key[6:]: x for key, x in state.items() if key.startswith("slots.")}
    flat = [
        layout.flat(slots, None if strict else optimizer.slots)
        for optimizer, layout in zip(optimizers, plan.layouts, strict=True)
    ]
    for path, variable in zip(plan.modules.paths, plan.modules.variables, strict=True):
        if path in state:
            (old,) = read([variable])
            write([variable], [_like(state[path], old)])
    for key, optimizer, arrays in zip(
        step_keys(optimizers), optimizers, flat, strict=True
    ):
        optimizer.slots = arrays
        optimizer.step = int(state.get(key, optimizer.step))
    memory = {key: copied(state.get(key, x), x.dtype) for key, x in memory.items()}
    return Loaded(missing, unexpected, memory)


def _loaded(state: Mapping[str, Any], prefix: str, group: ParamGroup) -> dict[str, Any]:
    """The fields of `group` that `state` has, as Python numbers, tuples and bools."""
    fields = {}
    for field, now in group.items():
        key = prefix + field
        if key in state and (now is None or isinstance(now, bool) or is_live(now)):
            if now is not None and _type(state[key]) != _type(now):
                raise StateError(
                    f"the state doesn't fit the graph: {key} is {_type(state[key])}, "
                    f"and the graph has {_type(now)}"
                )
            value = np.asarray(state[key]).tolist()
            fields[field] = tuple(value) if isinstance(value, list) else value
            if isinstance(now, bool):
                fields[field] = bool(value)
    return fields


def step_keys(optimizers: Sequence[Optimizer]) -> list[str]:
    """The key of each optimizer's step count: `step`, or `step.0` where several."""
    if len(optimizers) == 1:
        return ["step"]
    return [f"step.{k}" for k in range(len(optimizers))]


def _expected(plan: Plan, optimizers: Sequence[Optimizer]) -> dict[str, Any]:
    """What a state must hold: shapes and dtypes, without reading any array."""
    modules = plan.modules
    arrays = zip(modules.paths, read(modules.variables), strict=True)
    expected: dict[str, Any] = {
        path: jax.eval_shape(plain, array) for path, array in arrays
    }
    for layout in plan.layouts:
        expected |= {f"slots.{key}": kind for key, kind in layout.keys().items()}
    expected |= {key: group[field] for key, group, field in _fields(optimizers)}
    expected |= _members(plan, optimizers)
    return {**expected, **dict.fromkeys(step_keys(optimizers), 0)}


def _fields(
    optimizers: Sequence[Optimizer],
) -> Iterator[tuple[str, ParamGroup, str]]:
    """Every number and flag of every group, with its key."""
    for names, optimizer in zip(group_names(optimizers), optimizers, strict=True):
        for name, group in zip(names, optimizer.param_groups, strict=True):
            for field, value in group.items():
                if isinstance(value, bool) or is_live(value):
                    yield f"groups.{name}.{field}", group, field


def _members(plan: Plan, optimizers: Sequence[Optimizer]) -> dict[str, int]:
    """A checksum of the paths in each group that was given no name.

    `group0` of a program whose groups are in another order is another group.
    """
    checks = {}
    for names, optimizer in zip(group_names(optimizers), optimizers, strict=True):
        for name, group in zip(names, optimizer.param_groups, strict=True):
            if re.fullmatch(r"group\d+", group.name):
                held = sorted(p.path for p in plan.modules.params if group.selector(p))
                paths = ["..."] if group.selector.rest else held
                checks[f"groups.{name}.members"] = zlib.crc32("\n".join(paths).encode())
    return checks


def plain(array: Any) -> Any:
    """PRNG keys as the numbers they are made of."""
    if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        return jax.random.key_data(array)
    return array


def copied(value: Any, dtype: Any) -> jax.Array:
    """A copy of `value` as an array of `dtype`, to be donated.

    What is on the host is copied without a program: one for each shape takes seconds.
    """
    if isinstance(value, jax.Array):
        return jnp.array(value, dtype)
    return jax.device_put(np.asarray(value, dtype), may_alias=False)


def _like(value: Any, old: Any) -> jax.Array:
    """A copy of `value` of the kind that `old` is."""
    if jnp.issubdtype(old.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(value, impl=jax.random.key_impl(old))
    return copied(value, old.dtype)


def check(
    state: Mapping[str, Any], expected: Mapping[str, Any], strict: bool
) -> tuple[list[str], list[str]]:
    """Keys that are missing and unexpected; an error if strict or of other shapes.

    Raises:
        StateError: Entries of `state` aren't what is `expected`, by name.
    """
    faults, remedy = [], "strict=False takes what fits by name"
    missing = [key for key in expected if key not in state]
    unexpected = [key for key in state if key not in expected]
    if "step" not in expected and "step.0" not in expected:  # nothing trains here
        idle = ("slots.", "groups.", "step", "ema.", "scaler.", "skipped.")
        unexpected = [key for key in unexpected if not key.startswith(idle)]
    if strict and missing:
        faults.append(f"missing: {listing(missing)}")
    if strict and unexpected:
        faults.append(f"unexpected: {listing(unexpected)}")
    for key in expected:
        if key in state and (now := _type(state[key])) != (
            want := _type(expected[key])
        ):
            faults.append(f"{key} is {now}, and the graph has {want}")
            place = key.removeprefix("slots.").rpartition(".")[0]
            remedy = (
                "without it: load_state_dict({k: v for k, v in state.items() if "
                f"{place!r} not in k}}, strict=False)"
            )
    for key in expected if strict and not faults else ():
        if key.endswith(".members") and int(state[key]) != expected[key]:
            name = key.split(".")[-2]
            faults.append(f"{name!r} held other parameters when the state was saved")
            remedy = "groups are matched by name: name them, {'name': 'head'}"
    if faults:
        raise StateError(
            f"the state doesn't fit the graph ({remedy}): {'; '.join(faults)}"
        )
    return missing, unexpected


def _type(value: Any) -> str:
    """Shape and dtype; one for all plain numbers, `2 numbers` for a tuple of two."""
    shape = value.shape if hasattr(value, "shape") else np.shape(value)
    if not shape:
        return "a number"
    dtype = getattr(value, "dtype", np.dtype(float))  # a tuple of numbers
    return f"{dtype}{list(shape)}"
