"""A graph's whole state as a flat dict by dotted name, given and taken back.

Variables by path (RNG keys as their data), optimizer slots by parameter, the groups'
numbers and flags, averages, the loss scale, and `step`; `keys` says under which names.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from graphlr import keys
from graphlr.engine.live import Live
from graphlr.engine.optimizers import Optimizers
from graphlr.modules.variables import as_arrays
from graphlr.optim.traced import is_live
from graphlr.step.carried import Averages, Carried, LossScale, Skips
from graphlr.step.plan import Plan

Entries = dict[str, Any]  # arrays, numbers, flags and tuples of numbers, by key


class Owned(NamedTuple):
    """A graph, as far as its state is concerned; nothing here changes it.

    Attributes:
        plan: What its Variables are for.
        live: The arrays at their owners.
        optimizers: For numbers and flags of their groups.
    """

    plan: Plan
    live: Live
    optimizers: Optimizers


# --- a state --------------------------------------------------------------------------


def state_dict(graph: Owned) -> Entries:
    """Everything that training changes; arrays that no later step touches."""
    return {
        **variables(graph.plan),
        **_slots(graph),
        **fields(graph.optimizers),
        **members(graph),
        **carried_entries(graph.live.carried),
        **_steps(graph),
    }


def variables(plan: Plan) -> Entries:
    """Every Variable of a graph."""
    modules = plan.modules
    pairs = zip(modules.paths, as_arrays(modules.variables), strict=True)
    return {keys.variable(path): key_data(array) for path, array in pairs}


def ema_state(graph: Owned) -> Entries:
    """The averages, and all that isn't averaged as it is now.

    Raises:
        RuntimeError: There are no averages.
    """
    averages = graph.live.carried.averages
    if averages is None:
        raise RuntimeError("graph.ema_state needs config.ema_decay = 0.999")
    copies = {keys.variable(path): jnp.copy(x) for path, x in averages.values.items()}
    return {**variables(graph.plan), **copies}


def _slots(graph: Owned) -> Entries:
    pairs = zip(graph.plan.slot_plans, graph.live.held, strict=True)
    named = [slots.layout.named(held.slots) for slots, held in pairs]
    return {key: array for entries in named for key, array in entries.items()}


def fields(optimizers: Optimizers) -> Entries:
    """Every number and flag of every group."""
    return {
        keys.field(name, field): value
        for name, group, _ in optimizers.groups
        for field, value in group.items()
        if isinstance(value, bool) or is_live(value)
    }


def members(graph: Owned) -> dict[str, int]:
    """A checksum of the paths in each group that was given no name.

    `group0` of a program whose groups are in another order is another group.
    """
    checks = {}
    for name, group, _ in graph.optimizers.groups:
        if re.fullmatch(r"group\d+", group.name):
            held = [p.path for p in graph.plan.modules.params if group.selector(p)]
            paths = ["..."] if group.selector.rest else sorted(held)
            checksum = zlib.crc32("\n".join(paths).encode())
            checks[keys.field(name, keys.MEMBERS)] = checksum
    return checks


def _steps(graph: Owned) -> dict[str, int]:
    counts = [held.step for held in graph.live.held]
    return dict(zip(keys.steps(len(counts)), counts, strict=True))


def key_data(array: jax.Array) -> jax.Array:
    """PRNG keys as the numbers they are made of; other arrays as they are."""
    if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        return jax.random.key_data(array)
    return array


# --- what is carried, under its keys --------------------------------------------------


def carried_entries(carried: Carried) -> dict[str, jax.Array]:
    """Averages, loss scale and counts by key."""
    entries: dict[str, jax.Array] = {}
    averages, scale, skips = carried
    if averages is not None:
        entries |= {keys.average(path): x for path, x in averages.values.items()}
        entries[keys.AVERAGES_TAKEN] = averages.taken
    if scale is not None:
        entries[keys.LOSS_SCALE] = scale.value
        entries[keys.GOOD_STEPS] = scale.good_steps
    if skips is not None:
        entries[keys.SKIPPED] = skips.total
        entries[keys.SKIPPED_IN_A_ROW] = skips.in_a_row
    return entries


def carried_from(entries: Mapping[str, jax.Array]) -> Carried:
    """The reverse of `carried_entries`.

    Example:
        >>> skips = Skips(jnp.int32(3), jnp.int32(0))
        >>> carried_from(carried_entries(Carried(skips=skips))).skips == skips
        True
    """
    averages = scale = skips = None
    if keys.AVERAGES_TAKEN in entries:
        paths = {keys.path_of_average(key): x for key, x in entries.items()}
        values = {path: x for path, x in paths.items() if path is not None}
        averages = Averages(values, entries[keys.AVERAGES_TAKEN])
    if keys.LOSS_SCALE in entries:
        scale = LossScale(entries[keys.LOSS_SCALE], entries[keys.GOOD_STEPS])
    if keys.SKIPPED in entries:
        skips = Skips(entries[keys.SKIPPED], entries[keys.SKIPPED_IN_A_ROW])
    return Carried(averages, scale, skips)
