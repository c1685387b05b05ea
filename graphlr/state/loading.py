"""A saved state checked against a graph, and stored: everything or nothing."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from graphlr import keys
from graphlr.engine.guards import hold_interrupts
from graphlr.engine.live import Live
from graphlr.engine.optimizers import Optimizers
from graphlr.engine.runner import Runner
from graphlr.groups.group import ParamGroup
from graphlr.messages import listing
from graphlr.modules.variables import as_arrays, write
from graphlr.optim.traced import is_live
from graphlr.state.state_dict import (
    Entries,
    Owned,
    carried_entries,
    carried_from,
    fields,
    key_data,
    members,
)
from graphlr.step.carried import Carried
from graphlr.step.definition import Definition
from graphlr.step.plan import Plan


class StateError(ValueError, RuntimeError):
    """A state doesn't fit the graph; PyTorch's modules raise a RuntimeError then."""


class Loaded(NamedTuple):
    """What a load left out, by key.

    Attributes:
        missing: Entries of the graph that the state doesn't have.
        unexpected: Entries of the state that the graph doesn't have.
    """

    missing: list[str]
    unexpected: list[str]


def load_state(
    runner: Runner, definition: Definition, state: Mapping[str, Any], *, strict: bool
) -> Loaded:
    """Take a state over; see `Graph.load_state_dict`.

    Everything is converted and checked before anything is stored.
    """
    if not isinstance(state, Mapping):
        raise TypeError(
            f"load_state_dict takes what state_dict gave, not {state!r}: "
            "np.load('state.npz') for a file"
        )
    # Groups first, because the plan is made for their flags. The plan is looked at
    # without being adopted until every entry has been checked against it.
    with loading_groups(state, runner.optimizers):
        owned = Owned(*runner.peek(definition), runner.optimizers)
        checked = check_state(state, owned, strict=strict)
        with hold_interrupts():
            if owned.plan is not runner.plan:
                runner.adopt(owned.plan)
            store_state(checked, owned.plan, runner.live)
    return checked.loaded


class Checked(NamedTuple):
    """A state that fits the graph, ready to be stored.

    Attributes:
        variables: An array for each Variable of the graph that the state has, by path.
        slots: The leaves of each optimizer.
        steps: Updates that each has applied.
        carried: Averages, loss scale, counts.
        loaded: What was left out.
    """

    variables: dict[str, jax.Array]
    slots: list[list[jax.Array]]
    steps: list[int]
    carried: Carried
    loaded: Loaded


def check_state(state: Mapping[str, Any], graph: Owned, *, strict: bool) -> Checked:
    """`state` as arrays for this graph, which is not changed yet.

    Args:
        state: From `state_dict`, of this version or an earlier one.
        graph: To load it into; its groups have the numbers and flags of `state`.
        strict: Whether a missing or an unexpected entry is an error.

    Raises:
        StateError: Entries are missing, unexpected or of another shape or dtype.
    """
    plan, live, optimizers = graph
    expected = _expected(graph)
    state, lost = _renamed(state, plan, expected)
    for key in lost:
        del expected[key]
    missing, unexpected = compare(
        state, expected, strict=strict, training=bool(optimizers)
    )
    slots = [
        planned.layout.flat(state, None if strict else held.slots)
        for planned, held in zip(plan.slot_plans, live.held, strict=True)
    ]
    modules = plan.modules
    arrays = {
        path: _like(state[keys.variable(path)], array)
        for path, array in zip(modules.paths, as_arrays(modules.variables), strict=True)
        if keys.variable(path) in state
    }
    entries = {
        key: copied(state.get(key, array), array.dtype)
        for key, array in carried_entries(live.carried).items()
    }
    counts = zip(keys.steps(len(optimizers)), live.held, strict=True)
    return Checked(
        arrays,
        slots,
        [int(state.get(key, held.step)) for key, held in counts],
        carried_from(entries),
        Loaded(missing, unexpected),
    )


def store_state(checked: Checked, plan: Plan, live: Live) -> None:
    """Write a checked state to the owners of a graph's arrays."""
    modules = plan.modules
    for path, variable in zip(modules.paths, modules.variables, strict=True):
        if path in checked.variables:
            write([variable], [checked.variables[path]])
    for held, slots, step in zip(live.held, checked.slots, checked.steps, strict=True):
        held.slots, held.step = slots, step
    live.carried = checked.carried


@contextlib.contextmanager
def loading_groups(state: Mapping[str, Any], optimizers: Optimizers) -> Iterator[None]:
    """Give the groups the numbers and flags of `state`; take them back on an error.

    They decide which slots there are, so they come before everything else.
    """
    groups = optimizers.groups
    old = [dict(group) for _, group, _ in groups]
    try:
        for name, group, _ in groups:
            group.update(_loaded_fields(state, name, group))
        yield
    except BaseException:
        fixed = ("params", "name")
        for (_, group, _), values in zip(groups, old, strict=True):
            group.update({k: v for k, v in values.items() if k not in fixed})
        raise


def _loaded_fields(state: Mapping[str, Any], name: str, group: ParamGroup) -> Entries:
    """The fields of `group` that `state` has, as Python numbers, tuples and bools."""
    fields = {}
    for field, now in group.items():
        key = keys.field(name, field)
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


def _expected(graph: Owned) -> Entries:
    """What a state must hold: shapes and dtypes, without reading any array."""
    modules = graph.plan.modules
    pairs = zip(modules.paths, as_arrays(modules.variables), strict=True)
    expected: Entries = {
        keys.variable(path): jax.eval_shape(key_data, array) for path, array in pairs
    }
    for planned in graph.plan.slot_plans:
        expected |= planned.layout.keys()
    expected |= fields(graph.optimizers)
    expected |= members(graph)
    expected |= dict.fromkeys(keys.steps(len(graph.optimizers)), 0)
    return {**expected, **carried_entries(graph.live.carried)}


def _renamed(
    state: Mapping[str, Any], plan: Plan, expected: Mapping[str, Any]
) -> tuple[Entries, list[str]]:
    """A state of 0.1.0 with today's keys, and the keys of what it could not hold.

    It saved paths that begin with a word of ours without `self.` in front, so that a
    parameter and, say, the loss scale could be one entry.
    """
    renamed, lost = dict(state), []
    names = {keys.variable(path): path for path in plan.modules.paths}
    names |= {keys.average(path): f"ema.{path}" for path in plan.names}
    for key, old in names.items():
        if key == old or key not in expected or key in state or old not in state:
            continue
        if old in expected:
            lost.append(key)
        else:
            renamed[key] = renamed.pop(old)
    if lost:
        warnings.warn(
            f"the state has no {listing(lost)}, because graphlr 0.1.0 kept something "
            "else under that name: they stay as they are",
            stacklevel=4,
        )
    return renamed, lost


def compare(
    state: Mapping[str, Any],
    expected: Mapping[str, Any],
    *,
    strict: bool,
    training: bool,
) -> tuple[list[str], list[str]]:
    """Keys that are missing and unexpected; an error if strict or of other shapes.

    Args:
        state: By key.
        expected: Arrays, shapes or numbers like those that are wanted.
        strict: Whether a missing or an unexpected entry is an error.
        training: Whether there are optimizers; without, what only they need is no
            unexpected entry.

    Raises:
        StateError: Entries of `state` aren't what is `expected`, by name.
    """
    faults, remedy = [], "strict=False takes what fits by name"
    missing = [key for key in expected if key not in state]
    unexpected = [key for key in state if key not in expected]
    if not training:
        unexpected = [key for key in unexpected if not keys.is_own(key)]
    if strict and missing:
        faults.append(f"missing: {listing(missing)}")
    if strict and unexpected:
        faults.append(f"unexpected: {listing(unexpected)}")
    for key in expected:
        if key in state and _type(state[key]) != _type(expected[key]):
            now, want = _type(state[key]), _type(expected[key])
            faults.append(f"{key} is {now}, and the graph has {want}")
            remedy = (
                "without it: load_state_dict({k: v for k, v in state.items() if "
                f"{keys.owner(key)!r} not in k}}, strict=False)"
            )
    for key in expected if strict and not faults else ():
        group, field = keys.split_field(key) or ("", "")
        if field == keys.MEMBERS and int(state[key]) != expected[key]:
            faults.append(f"{group!r} held other parameters when the state was saved")
            remedy = "groups are matched by name: name them, {'name': 'head'}"
    if faults:
        raise StateError(
            f"the state doesn't fit the graph ({remedy}): {'; '.join(faults)}"
        )
    return missing, unexpected


def copied(value: Any, dtype: Any) -> jax.Array:
    """A copy of `value` as an array of `dtype`, to be donated.

    What is on the host is copied without a program: one for each shape takes seconds.
    """
    if isinstance(value, jax.Array):
        return jnp.array(value, dtype)
    return jax.device_put(np.asarray(value, dtype), may_alias=False)


def _like(value: Any, old: jax.Array) -> jax.Array:
    """A copy of `value` of the kind that `old` is."""
    if jnp.issubdtype(old.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(value, impl=jax.random.key_impl(old))
    return copied(value, old.dtype)


def _type(value: Any) -> str:
    """Shape and dtype; one for all plain numbers, `2 numbers` for a tuple of two."""
    shape = value.shape if hasattr(value, "shape") else np.shape(value)
    if not shape:
        return "a number"
    dtype = getattr(value, "dtype", np.dtype(float))  # a tuple of numbers
    return f"{dtype}{list(shape)}"
