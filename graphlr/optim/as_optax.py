"""Groups without a graph: a plain optax transformation for any pytree with paths.

The paths of a tree are its keys and attributes joined by dots: `features.0.kernel` of
an nnx state, `params.Dense_0.kernel` of Linen, `layers.0.weight` of Equinox,
`mlp/~/linear_0.w` of Haiku, whose module names have no dots and so are one name.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from graphlr.groups.group import ParamGroup
from graphlr.groups.labels import label_params
from graphlr.groups.paths import Param, dotted
from graphlr.messages import listing, unknown_key
from graphlr.optim.traced import GroupSpec, Values, group_lr, transform


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
    inner: Any


def as_optax(
    params: Any,
    groups: Sequence[ParamGroup],
    specs: tuple[GroupSpec, ...],
    values: Mapping[str, Values],
    step: int,
) -> optax.GradientTransformation:
    """Groups as an optax transformation; `Optimizer.as_optax` for users.

    Args:
        params: The pytree to be trained, for its paths.
        groups: The groups, for their selectors.
        specs: The constants of each group.
        values: Live numbers of each group, from `unpack`.
        step: Updates already applied.

    Raises:
        ValueError: A parameter is in two groups or in none, or two have one path.

    Example:
        >>> from graphlr.optim import SGD
        >>> SGD("a").as_optax({"a": 1.0, "b": 1.0})
        Traceback (most recent call last):
        ValueError: 1 parameters are in no group and would never train: b. Add a \
group, {'params': 'b'}, or freeze them, {'params': 'b', 'frozen': True}, or take \
everything not named elsewhere, {'params': ...}.
    """
    found = _params_of(params)
    count = Counter(param.path for param in found)
    if len(count) < len(found):
        twice = listing(path for path, times in count.items() if times > 1)
        raise ValueError(
            f"two parameters have the path {twice}: rename one, so that groups can "
            "tell them apart"
        )
    indices = label_params(found, groups)
    labels = {path: specs[i].name for path, i in indices.items()}
    planned = _Groups(specs, values, labels, step)
    return optax.GradientTransformation(planned.init, planned.update)


def lr_of(
    state: Any, tx: optax.GradientTransformation | None = None
) -> dict[str, float]:
    """Every group's learning rate for the next update, from a state of `as_optax`.

    Args:
        state: The state, or anything that holds it: of `optax.chain`, an
            `nnx.Optimizer`.
        tx: What `as_optax` returned, to see numbers that were edited after the last
            update too: the state holds no schedules. Without it, the rates are those
            of the numbers that the last update (or `init`) saw.

    Raises:
        TypeError: `state` holds no state of `as_optax`, or several; `tx` is another
            transformation.
        KeyError: With `tx`, an unknown key among the numbers.

    Example:
        >>> from graphlr.optim import SGD
        >>> tx = SGD("**", lr=0.5).as_optax({"w": 1.0})
        >>> state = tx.init({"w": 1.0})
        >>> state.values["group0"]["lr"] = jnp.float32(0.25)
        >>> lr_of(state), lr_of(state, tx)
        ({'group0': 0.5}, {'group0': 0.25})
    """
    found = nnx.as_pure(_groups_state(state))
    rates = found.lr if tx is None else _groups_of(tx).rates(found)
    return {name: float(lr) for name, lr in rates.items()}


def _groups_state(state: Any) -> GroupsState:
    """The one state of `as_optax` inside `state`."""
    nodes = jax.tree_util.tree_leaves_with_path(
        state, is_leaf=lambda node: isinstance(node, GroupsState)
    )
    found = {
        jax.tree_util.keystr(path): node
        for path, node in nodes
        if isinstance(node, GroupsState)
    }
    if not found:
        raise TypeError(_no_state("lr_of", state))
    if len(found) > 1:
        raise TypeError(
            f"lr_of found {len(found)} states of as_optax, at {listing(found)}: give "
            f"one of them, lr_of(state{next(iter(found))})"
        )
    return next(iter(found.values()))


def _no_state(what: str, given: Any) -> str:
    return (
        f"{what} found no state of optimizer.as_optax(params) in a "
        f"{type(given).__name__}: give what tx.init(params) or tx.update returned. A "
        "checkpoint read without a template is no such state: restore it into "
        "tx.init(params)"
    )


def _groups_of(tx: Any) -> _Groups:
    """The groups of a transformation that `as_optax` returned."""
    groups = getattr(getattr(tx, "update", None), "__self__", None)
    if not isinstance(groups, _Groups):
        raise TypeError(
            "tx is not what optimizer.as_optax(params) returned: give that, not an "
            "optax.chain around it"
        )
    return groups


# --- the transformation ---------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)
class _Groups:
    """What a transformation knows of its groups; its methods are pure functions."""

    specs: tuple[GroupSpec, ...]
    values: Mapping[str, Values]
    labels: Mapping[str, str]  # {path: group name}
    start: int

    def init(self, params: Any) -> GroupsState:
        step = jnp.asarray(self.start, jnp.int32)
        values = dict(jax.tree.map(jnp.copy, self.values))  # a state may be donated
        tx = transform(self.specs, values, self.labels, step)
        inner = tx.init(_by_path(params, self.labels))
        return GroupsState(step, values, self._rates(values, step), inner)

    def update(self, updates: Any, state: Any, params: Any = None) -> Any:
        if not isinstance(state, GroupsState):
            raise TypeError(_no_state("update", state))
        values = _checked_values(state.values, self.values)
        tx = transform(self.specs, values, self.labels, state.step)
        gradients = _by_path(updates, self.labels)
        weights = None if params is None else _by_path(params, self.labels)
        planned = jax.eval_shape(tx.init, gradients if weights is None else weights)
        _check_slots(state.inner, planned)
        directions: Any
        directions, inner = tx.update(gradients, state.inner, weights)
        inner = jax.tree.map(_in_dtype_of, inner, state.inner)
        step = state.step + 1
        new = GroupsState(step, values, self._rates(values, step), inner)
        tree = jax.tree.structure(updates)
        return jax.tree.unflatten(tree, [directions[path] for path in gradients]), new

    def rates(self, state: GroupsState) -> dict[str, Any]:
        return self._rates(_checked_values(state.values, self.values), state.step)

    def _rates(self, values: Mapping[str, Values], step: Any) -> dict[str, Any]:
        return {s.name: group_lr(s, values[s.name], step) for s in self.specs}


def _in_dtype_of(new: jax.Array, old: jax.Array) -> jax.Array:
    """Live numbers are wider than some parameters, and slots keep their dtype."""
    return new if new.dtype == old.dtype else new.astype(old.dtype)


# --- paths ----------------------------------------------------------------------------


def _params_of(tree: Any) -> list[Param]:
    leaves = jax.tree_util.tree_leaves_with_path(
        tree, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable)
    )
    named = [(tuple(map(_part, path)), leaf) for path, leaf in leaves]
    return [Param(dotted(parts), parts, leaf) for parts, leaf in named]


def _part(key: Any) -> Any:
    """The name or index that a pytree key stands for."""
    for attribute in ("key", "name", "idx"):
        if hasattr(key, attribute):
            return getattr(key, attribute)
    return str(key)


def _by_path(tree: Any, paths: Iterable[str]) -> dict[str, Any]:
    """The leaves of `tree` by path, in its own order; they must be those of `paths`."""
    now = [param.path for param in _params_of(tree)]
    other = {*now} ^ {*paths}
    if other:
        raise ValueError(
            f"as_optax was given another tree: {listing(sorted(other))} is in one of "
            "them only. Call as_optax(params) with the tree that is trained"
        )
    return dict(zip(now, jax.tree.leaves(tree), strict=True))


# --- what a state may hold ------------------------------------------------------------


def _checked_values(
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


def _check_slots(inner: Any, planned: Any) -> None:
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


def _kinds(tree: Any) -> Any:
    """Structure and shapes, for comparison."""
    return jax.tree.structure(tree), [np.shape(leaf) for leaf in jax.tree.leaves(tree)]
