"""The modules of a graph as flat lists of Variables, read and written at slot speed.

`Modules` finds every Variable once, names it by dotted path, and from then on a step
costs two passes over a list. The Variables stay the owners of their arrays: a value
written by hand between two steps is read by the next one.
"""

from __future__ import annotations

import operator
import sys
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from graphlr.groups import Param, dotted

# A Variable keeps its array in a slot; its descriptor reads and writes in 50 ns what
# the public methods, which also run hooks, do in 300.
_RAW = nnx.Variable.__dict__.get("_raw_value")
_get = getattr(_RAW, "__get__", nnx.Variable.get_raw_value)
_set = getattr(_RAW, "__set__", nnx.Variable.set_raw_value)

Variables = Sequence[nnx.Variable]


def read(variables: Variables) -> list[jax.Array]:
    """The arrays of `variables`.

    Example:
        >>> read([nnx.Param(jnp.zeros(2))])[0].tolist()
        [0.0, 0.0]
    """
    return list(map(_get, variables))


def write(variables: Variables, arrays: Iterable[jax.Array]) -> None:
    """Store `arrays` in `variables`, one each.

    Example:
        >>> variable = nnx.Param(jnp.zeros(2))
        >>> write([variable], [jnp.ones(2)])
        >>> variable.get_value().tolist()
        [1.0, 1.0]
    """
    deque(map(_set, variables, arrays), 0)


def _references() -> int:
    """What `sys.getrefcount` says of an array that a Variable and one list hold."""
    variable = nnx.Param(jnp.zeros(()))
    return next(map(sys.getrefcount, read([variable])))


_OWN = _references()


def own(arrays: list[jax.Array]) -> list[jax.Array]:
    """`arrays` with a copy for each that anybody else holds too, so it may be donated.

    A step donates its buffers. Without this, an array kept from before the step
    (`before = model.head.kernel.get_value()`) would be deleted under its owner.
    """
    if arrays and max(map(sys.getrefcount, arrays)) > _OWN:
        counts = list(map(sys.getrefcount, arrays))
        return [
            jnp.copy(array) if count > _OWN else array
            for array, count in zip(arrays, counts, strict=True)
        ]
    return arrays


def is_module(value: Any) -> bool:
    """Whether `value` holds Variables: a module, Rngs, a metric, a Variable."""
    return isinstance(value, nnx.Pytree | nnx.Variable)


class Modules:
    """Every module among the attributes of a graph, also inside lists, tuples, dicts.

    Attributes:
        variables: Every Variable, once, in a fixed order.
        paths: Its dotted path, the attribute's name in front.
        params: The `nnx.Param`s, as selectors see them.

    Example:
        >>> modules = Modules({"model": nnx.Linear(2, 3, rngs=nnx.Rngs(0)), "n": 5})
        >>> modules.paths
        ['model.bias', 'model.kernel']
    """

    def __init__(self, attributes: Mapping[str, Any]):
        """Find the Variables of `attributes`; see the class."""
        self._attributes = {
            name: value
            for name, value in attributes.items()
            if any(map(is_module, _leaves(value)))
        }
        self._roots: list[Any] = []
        self._names: list[str] = []
        for name, value in self._attributes.items():
            for keys, leaf in _leaves_with_path(value):
                if is_module(leaf):
                    self._roots.append(leaf)
                    self._names.append(dotted((name, *keys)))
        self._graphdef, state = nnx.split(self._roots)
        self._flat: list[tuple[Any, nnx.Variable]] = list(nnx.to_flat_state(state))
        self.variables = [variable for _, variable in self._flat]
        self.paths = [dotted((self._names[p[0]], *p[1:])) for p, _ in self._flat]
        self.params = [
            Param(path, parts[1:], variable)
            for path, (parts, variable) in zip(self.paths, self._flat, strict=True)
            if isinstance(variable, nnx.Param)
        ]
        self._watch()

    def merge(self, arrays: Mapping[int, Any], training: bool) -> dict[str, Any]:
        """The attributes again, with fresh copies of the modules that hold `arrays`.

        Args:
            arrays: `{id of the Variable: array or tracer}`.
            training: Whether modules are put in train or in eval mode.
        """
        state = nnx.from_flat_state(
            [(path, old.replace(arrays[id(old)])) for path, old in self._flat]
        )
        roots = nnx.merge(self._graphdef, state)
        for root in roots:
            if isinstance(root, nnx.Module):
                root.train() if training else root.eval()
        fresh = iter(roots)
        return {
            name: _map(lambda leaf: next(fresh) if is_module(leaf) else leaf, value)
            for name, value in self._attributes.items()
        }

    def now(self, attributes: Mapping[str, Any]) -> dict[int, Any]:
        """What the modules in `attributes`, from `merge`, hold now.

        Returns:
            `{id of our Variable: array or tracer}`.
        """
        roots = [
            leaf
            for value in attributes.values()
            for leaf in _leaves(value)
            if is_module(leaf)
        ]
        held = dict(nnx.to_flat_state(nnx.state(roots)))
        return {id(ours): _get(held[path]) for path, ours in self._flat}

    def freeze_statistics(
        self, attributes: Mapping[str, Any], frozen: set[str]
    ) -> None:
        """Make every normalisation whose parameters are all frozen use its statistics.

        Args:
            attributes: From `merge`; changed in place.
            frozen: Dotted paths of frozen parameters.
        """
        params = [param.path for param in self.params]
        for name, value in attributes.items():
            for parts, node in nnx.iter_graph(value):
                if not hasattr(node, "use_running_average"):
                    continue
                inside = _inside(params, dotted((name, *parts)))
                if inside and frozen.issuperset(inside):
                    node.use_running_average = True

    def replaced(self) -> str | None:
        """Path of a module or Variable that is no longer the one first seen, if any."""
        same = map(operator.is_, map(dict.get, *self._edges[:2]), self._edges[2])
        if all(same) and list(map(len, self._dicts)) == self._sizes:
            return None
        return self._find_replaced()

    def _watch(self) -> None:
        """Remember who holds whom: (holder's dict, attribute, held object)."""
        edges: list[tuple[dict[str, Any], str, Any]] = []
        self._dicts: list[dict[str, Any]] = []
        for _, node in nnx.iter_graph(self._roots):
            if isinstance(node, nnx.Pytree):
                self._dicts.append(vars(node))
                held = [(k, v) for k, v in vars(node).items() if is_module(v)]
                edges += [(vars(node), key, value) for key, value in held]
        self._edges = tuple(zip(*edges, strict=True)) or ((), (), ())
        self._sizes = list(map(len, self._dicts))

    def _find_replaced(self) -> str | None:
        now = Modules(self._attributes)
        old = dict(zip(self.paths, self.variables, strict=True))
        new = dict(zip(now.paths, now.variables, strict=True))
        changed = [
            path for path in {**old, **new} if old.get(path) is not new.get(path)
        ]
        if changed:
            return changed[0]
        self._watch()  # an attribute that holds no Variable came or went
        return None


def _inside(params: Sequence[str], path: str) -> list[str]:
    """Parameters under `path`, or under the nearest module around it that has some."""
    while path:
        found = [param for param in params if param.startswith(path + ".")]
        if found:
            return found
        path = path.rpartition(".")[0]
    return []


def _leaves(value: Any) -> list[Any]:
    return jax.tree.leaves(value, is_leaf=is_module)


def _leaves_with_path(value: Any) -> list[tuple[tuple[Any, ...], Any]]:
    leaves = jax.tree_util.tree_leaves_with_path(value, is_leaf=is_module)
    return [
        (tuple(getattr(k, "key", getattr(k, "idx", k)) for k in keys), leaf)
        for keys, leaf in leaves
    ]


def _map(function: Any, value: Any) -> Any:
    return jax.tree.map(function, value, is_leaf=is_module)
