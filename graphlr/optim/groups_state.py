"""The state of groups without a graph: arrays only, for any checkpointer."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from graphlr.messages import listing, unknown_key
from graphlr.optim.traced import Values


class GroupsState(NamedTuple):
    """State of `Optimizer.as_optax`: arrays only, for any checkpointer.

    Numbers are edited between two updates, with an array so that nothing compiles (a
    Python float compiles once more): in place, `state.values["head"]["lr_scale"] =
    jnp.float32(0.1)`, or a new state as in the example. Names are checked by the next
    update, ranges are not. `lr` follows with that update, `lr_of(state, tx)` at once.

    A new `as_optax` (a group froze or thawed) takes a new state, `tx.init(params)`.
    The step count and the slots of groups that are as they were can be carried over::

        new = tx.init(params)
        kept = {"head": state.inner.inner_states["head"]}
        inner = new.inner._replace(inner_states={**new.inner.inner_states, **kept})
        state = new._replace(step=state.step, inner=inner)

    Attributes:
        step: Updates already applied, int32[].
        values: Live numbers, `{group: {key: number}}`.
        lr: Learning rate of the next update with the numbers of the last one (of
            `init`, before the first), `{group: float}`.
        inner: State of the `optax.multi_transform`; slots by group.

    Example:
        >>> from graphlr.optim import SGD
        >>> tx = SGD([{"params": "w", "name": "head"}], lr=0.5).as_optax({"w": 1.0})
        >>> state = tx.init({"w": 1.0})
        >>> head = {**state.values["head"], "lr_scale": jnp.float32(0.5)}
        >>> state = state._replace(values={**state.values, "head": head})
        >>> updates, state = tx.update({"w": 1.0}, state, {"w": 1.0})
        >>> float(updates["w"])
        -0.25
    """

    step: jax.Array
    values: dict[str, Values]
    lr: dict[str, jax.Array]
    inner: optax.OptState


def no_state(what: str, given: object) -> str:
    """Message of `what`, which was given no state of groups."""
    return (
        f"{what} found no state of optimizer.as_optax(params) in a "
        f"{type(given).__name__}: give what tx.init(params) or tx.update returned. A "
        "checkpoint read without a template is no such state: restore it into "
        "tx.init(params)"
    )


# --- what a state may hold ------------------------------------------------------------


def checked_values(
    values: Mapping[str, Values], usual: Mapping[str, Values]
) -> dict[str, Values]:
    """`values` as arrays, if their names and lengths are those of `usual`."""
    _check_names("state.values", values, usual)
    for name, group in values.items():
        _check_names(f"state.values[{name!r}]", group, usual[name])
    return {
        name: {
            key: _checked_number(f"state.values[{name!r}][{key!r}]", group[key], like)
            for key, like in usual[name].items()
        }
        for name, group in values.items()
    }


def _check_names(what: str, given: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    remade = "If the groups have changed since, call tx.init(params) again"
    for name in given:
        if name not in known:
            raise KeyError(f"{unknown_key(str(name), known, what)} {remade}")
    missing = sorted(known.keys() - given.keys())
    if missing:
        raise KeyError(
            f"{what} has lost {listing(missing)}: an edit keeps the others, "
            f"{{**{what}, ...}}. {remade}"
        )


def _checked_number(what: str, value: Any, like: Any) -> Any:
    """A number, or as many of them as `like` has, never weakly typed."""
    if isinstance(like, tuple):
        if not isinstance(value, tuple | list) or len(value) != len(like):
            raise ValueError(f"{what} must be {len(like)} numbers, not {value!r}")
        return tuple(map(_checked_number, [what] * len(like), value, like))
    if np.shape(value) != ():
        raise ValueError(
            f"{what} must be one number, not of shape {np.shape(value)}: "
            "give jnp.float32(0.1)"
        )
    number = jnp.asarray(value)
    exact = not jnp.issubdtype(number.dtype, jnp.floating)
    return number.astype(jnp.result_type(float) if exact else number.dtype)


def check_slots(inner: Any, planned: Any) -> None:
    """Groups must have the slots that `planned` has for them."""
    now, then = planned.inner_states, getattr(inner, "inner_states", {})
    names = {*now} | {*then}
    other = sorted(n for n in names if _kinds(now.get(n)) != _kinds(then.get(n)))
    if other:
        raise ValueError(
            f"the state is not of these groups: the slots of {listing(other)} are "
            "others. Did a group freeze, thaw or get other parameters? Call "
            "tx.init(params) again; tx.init(params)._replace(step=state.step) goes on "
            "in the schedule, and GroupsState says how to keep slots"
        )


def _kinds(tree: optax.OptState | None) -> tuple[Hashable, list[tuple[int, ...]]]:
    """Structure and shapes, for comparison."""
    return jax.tree.structure(tree), [np.shape(leaf) for leaf in jax.tree.leaves(tree)]
