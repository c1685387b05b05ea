"""The slots of an optimizer for what it is to train: those it has, moved, and new ones.

Planning says what is needed and changes nothing; `Optimizer.adopt` makes it so.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.extend.core import Literal

from graphlr.modules.variables import as_arrays
from graphlr.optim.slots import Layout, layout_of
from graphlr.optim.traced import GroupSpec, transform, unpack


class SlotPlan(NamedTuple):
    """The slots that training some parameters takes.

    Attributes:
        layout: Where each leaf of the optimizer's state belongs.
        variables: What is trained, by path.
        init: The first state, traced: `(numbers, params) -> state`.
    """

    layout: Layout
    variables: Mapping[str, nnx.Variable]
    init: jax.stages.Traced

    def same_as(self, other: SlotPlan | None) -> bool:
        """Whether slots for `other` are right for this plan too.

        What counts is the Variable, not its path alone: another model may have the
        same paths.
        """
        if other is None or self.layout != other.layout:
            return False
        mine, theirs = self.variables, other.variables
        return mine.keys() == theirs.keys() and all(
            mine[path] is theirs[path] for path in mine
        )


def plan_slots(
    specs: tuple[GroupSpec, ...],
    numbers: jax.Array,
    labels: Mapping[str, str],
    variables: Mapping[str, nnx.Variable],
) -> SlotPlan:
    """What an optimizer needs to train `variables`.

    Args:
        specs: The constants of its groups.
        numbers: Its live numbers.
        labels: `{path: group}` of what it trains.
        variables: The same parameters, by path.
    """

    def init(numbers: jax.Array, params: optax.Params) -> optax.OptState:
        step = jnp.zeros((), jnp.int32)  # of the schedules; slots don't depend on it
        return transform(specs, unpack(specs, numbers), labels, step).init(params)

    traced = jax.jit(init).trace(numbers, _params(variables))
    return SlotPlan(layout_of(traced.out_info, labels), variables, traced)


def moved_slots(
    held: Sequence[jax.Array], old: SlotPlan | None, plan: SlotPlan, numbers: jax.Array
) -> list[jax.Array]:
    """The slots for `plan`: those in `held` of Variables in both, new ones elsewhere.

    Args:
        held: The leaves that the optimizer has.
        old: What they were made for; None if there are none.
        plan: What is needed now.
        numbers: The optimizer's live numbers.

    Raises:
        ValueError: Parameters that are to share a slot bring different values of it.
    """
    fresh = _first_slots(plan.init, numbers, _params(plan.variables))
    # Matched by Variable: a parameter keeps its slots when its group, its place in the
    # list or its path changes, and one of another model at the same path gets new ones.
    paths = {id(variable): path for path, variable in plan.variables.items()}
    named: Mapping[str, jax.Array] = {}
    if old is not None:
        both = {p: paths[id(v)] for p, v in old.variables.items() if id(v) in paths}
        named = old.layout.named(held, both)
    return plan.layout.flat(named, fresh)


def _params(variables: Mapping[str, nnx.Variable]) -> dict[str, jax.Array]:
    return dict(zip(variables, as_arrays([*variables.values()]), strict=True))


def _first_slots(
    init: jax.stages.Traced, numbers: jax.Array, params: dict[str, jax.Array]
) -> list[jax.Array]:
    filled = _filled(init, params.values())
    if filled is not None:
        return filled
    return jax.tree.leaves(init.lower().compile()(numbers, params))


def _filled(
    init: jax.stages.Traced, params: Iterable[jax.Array]
) -> list[jax.Array] | None:
    """What `init` gives if each result is one number throughout, as most slots are.

    It saves a compilation, which would take longer than that of a small step. None if
    there is another result or the parameters aren't all on one device.
    """
    jaxpr = init.jaxpr.jaxpr
    devices = {device for array in params for device in array.devices()}
    numbers = {
        eqn.outvars[0]: eqn.invars[0].val
        for eqn in jaxpr.eqns
        if eqn.primitive.name == "broadcast_in_dim"
        and isinstance(eqn.invars[0], Literal)
    }
    fills = [
        out.val if isinstance(out, Literal) else numbers.get(out)
        for out in jaxpr.outvars
    ]
    if len(devices) != 1 or any(fill is None for fill in fills):
        return None
    (device,) = devices
    return [
        jax.device_put(np.full(leaf.shape, fill, leaf.dtype), device, may_alias=False)
        for leaf, fill in zip(jax.tree.leaves(init.out_info), fills, strict=True)
    ]
