"""Groups without a graph: a plain optax transformation for any pytree with paths.

The paths of a tree are its keys and attributes joined by dots: `features.0.kernel` of
an nnx state, `params.Dense_0.kernel` of Linen, `layers.0.weight` of Equinox,
`mlp/~/linear_0.w` of Haiku, whose module names have no dots and so are one name.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from graphlr.groups.group import ParamGroup
from graphlr.groups.labels import label_params
from graphlr.groups.paths import Param, dotted
from graphlr.messages import listing
from graphlr.optim.groups_state import (
    GroupsState,
    check_slots,
    checked_values,
    no_state,
)
from graphlr.optim.traced import GroupSpec, Values, group_lr, transform


def as_optax(
    params: optax.Params,
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
    leaves = _params_of(params)
    count = Counter(param.path for param in leaves)
    if len(count) < len(leaves):
        twice = listing(path for path, times in count.items() if times > 1)
        raise ValueError(
            f"two parameters have the path {twice}: rename one, so that groups can "
            "tell them apart"
        )
    indices = label_params(leaves, groups)
    labels = {path: specs[i].name for path, i in indices.items()}
    planned = _Groups(specs, values, labels, step)
    return optax.GradientTransformation(planned.init, planned.update)


def lr_of(
    state: optax.OptState, tx: optax.GradientTransformation | None = None
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
    groups = nnx.as_pure(_groups_state(state))
    rates = groups.lr if tx is None else _groups_of(tx).rates(groups)
    return {name: float(lr) for name, lr in rates.items()}


def _groups_state(state: optax.OptState) -> GroupsState:
    """The one state of `as_optax` inside `state`."""
    nodes = jax.tree_util.tree_leaves_with_path(
        state, is_leaf=lambda node: isinstance(node, GroupsState)
    )
    states = {
        jax.tree_util.keystr(path): node
        for path, node in nodes
        if isinstance(node, GroupsState)
    }
    if not states:
        raise TypeError(no_state("lr_of", state))
    if len(states) > 1:
        raise TypeError(
            f"lr_of found {len(states)} states of as_optax, at {listing(states)}: give "
            f"one of them, lr_of(state{next(iter(states))})"
        )
    return next(iter(states.values()))


def _groups_of(tx: object) -> _Groups:
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

    def init(self, params: optax.Params) -> GroupsState:
        step = jnp.asarray(self.start, jnp.int32)
        values = dict(jax.tree.map(jnp.copy, self.values))  # a state may be donated
        tx = transform(self.specs, values, self.labels, step)
        inner = tx.init(_by_path(params, self.labels))
        return GroupsState(step, values, self._rates(values, step), inner)

    def update(
        self,
        updates: optax.Updates,
        state: optax.OptState,
        params: optax.Params | None = None,
    ) -> tuple[optax.Updates, GroupsState]:
        if not isinstance(state, GroupsState):
            raise TypeError(no_state("update", state))
        values = checked_values(state.values, self.values)
        tx = transform(self.specs, values, self.labels, state.step)
        gradients = _by_path(updates, self.labels)
        weights = None if params is None else _by_path(params, self.labels)
        planned = jax.eval_shape(tx.init, gradients if weights is None else weights)
        check_slots(state.inner, planned)
        directions: Any
        directions, inner = tx.update(gradients, state.inner, weights)
        inner = jax.tree.map(_in_dtype_of, inner, state.inner)
        step = state.step + 1
        new = GroupsState(step, values, self._rates(values, step), inner)
        tree = jax.tree.structure(updates)
        return jax.tree.unflatten(tree, [directions[path] for path in gradients]), new

    def rates(self, state: GroupsState) -> dict[str, Any]:
        return self._rates(checked_values(state.values, self.values), state.step)

    def _rates(self, values: Mapping[str, Values], step: jax.Array) -> dict[str, Any]:
        return {s.name: group_lr(s, values[s.name], step) for s in self.specs}


def _in_dtype_of(new: jax.Array, old: jax.Array) -> jax.Array:
    """Live numbers are wider than some parameters, and slots keep their dtype."""
    return new if new.dtype == old.dtype else new.astype(old.dtype)


# --- paths ----------------------------------------------------------------------------


def _params_of(tree: optax.Params) -> list[Param]:
    leaves = jax.tree_util.tree_leaves_with_path(
        tree, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable)
    )
    named = [(tuple(map(_part, path)), leaf) for path, leaf in leaves]
    return [Param(dotted(parts), parts, leaf) for parts, leaf in named]


def _part(key: object) -> str | int:
    """The name or index that a pytree key stands for."""
    for attribute in ("key", "name", "idx"):
        if hasattr(key, attribute):
            return getattr(key, attribute)
    return str(key)


def _by_path(tree: optax.Params, paths: Iterable[str]) -> dict[str, jax.Array]:
    """The leaves of `tree` by path, in its own order; they must be those of `paths`."""
    now = [param.path for param in _params_of(tree)]
    other = {*now} ^ {*paths}
    if other:
        raise ValueError(
            f"as_optax was given another tree: {listing(sorted(other))} is in one of "
            "them only. Call as_optax(params) with the tree that is trained"
        )
    return dict(zip(now, jax.tree.leaves(tree), strict=True))
