"""The modules of a graph as a tree of Variables, found once and put together again.

`Modules` finds every Variable once and names it by dotted path; from then on a step
costs two passes over a list (see `variables`).
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx

from graphlr.groups.paths import Param, PathParts, dotted
from graphlr.modules.variables import as_arrays, read, write

Edit = tuple[PathParts, Callable[[Any], None]]  # what to do with the copy of a module


def is_module(value: object) -> bool:
    """Whether `value` holds Variables: a module, Rngs, a metric, a Variable."""
    return isinstance(value, nnx.Pytree | nnx.Variable)


class Modules:
    """Every module among the attributes of a graph, also inside lists, tuples, dicts.

    Attributes:
        variables: Every Variable that holds an array, once, in a fixed order.
        paths: Its dotted path, the attribute's name in front.
        path_of: The same by the Variable's id.
        params: The `nnx.Param`s among them, as selectors see them.

    Raises:
        ValueError: Two Variables would have the same path.

    Example:
        >>> modules = Modules({"model": nnx.Linear(2, 3, rngs=nnx.Rngs(0)), "n": 5})
        >>> modules.paths
        ['model.bias', 'model.kernel']
    """

    def __init__(self, attributes: Mapping[str, Any]):
        """Find the Variables of `attributes`; see the class."""
        self._attributes = {
            name: value for name, value in attributes.items() if _modules(value)
        }
        held = [
            (dotted((name, *keys)), module)
            for name, value in self._attributes.items()
            for keys, module in _modules(value)
        ]
        self._names = [name for name, _ in held]
        self._roots = [module for _, module in held]
        self._graphdef, state = nnx.split(self._roots)
        self._flat: list[tuple[Any, Any]] = list(nnx.to_flat_state(state))
        tracked = [(path, leaf) for path, leaf in self._flat if _is_tracked(leaf)]
        self.variables: list[nnx.Variable] = [leaf for _, leaf in tracked]
        self.paths = [self._name(path) for path, _ in tracked]
        for path, times in Counter(self.paths).items():
            if times > 1:
                raise ValueError(
                    f"two Variables are both called {path}: rename an attribute or key "
                    "with a dot in its name"
                )
        self.path_of = dict(zip(map(id, self.variables), self.paths, strict=True))
        self.params = [
            Param(name, path[1:], leaf)
            for name, (path, leaf) in zip(self.paths, tracked, strict=True)
            if isinstance(leaf, nnx.Param)
        ]
        self._watch()

    def store_arrays(self) -> None:
        """Put arrays in the place of Python numbers: `nnx.Param(1.0)` trains too."""
        write(self.variables, as_arrays(self.variables))

    def nodes(self) -> dict[PathParts, Param]:
        """Every module by its path, as selectors see it."""
        nodes: Any = nnx.iter_graph(self._roots)
        return {
            parts: Param(self._name(parts), parts[1:], node)
            for parts, node in nodes
            if isinstance(node, nnx.Module)
        }

    def merge(
        self, arrays: Mapping[int, Any], training: bool, edits: Iterable[Edit] = ()
    ) -> dict[str, Any]:
        """The attributes again, with fresh copies of the modules that hold `arrays`.

        Args:
            arrays: `{id of the Variable: array or tracer}`.
            training: Whether modules are put in train or in eval mode.
            edits: What to do with the copies of which modules, in order.
        """
        state = nnx.from_flat_state(
            [
                (path, leaf.replace(arrays[id(leaf)]) if id(leaf) in arrays else leaf)
                for path, leaf in self._flat
            ]
        )
        # Copies: what `build` assigns to, or sows, never reaches the user's own modules
        # while it is traced. An array comes back as a result of the step or not at all.
        roots = nnx.merge(self._graphdef, state)
        for root in roots:
            if isinstance(root, nnx.Module):
                root.train() if training else root.eval()
        # After train() and eval(), which would set `use_running_average` once more.
        edits = list(edits)
        modules = dict(nnx.iter_graph(roots)) if edits else {}
        for path, edit in edits:
            edit(modules[path])
        fresh = iter(roots)
        return {
            name: _replace(value, fresh) for name, value in self._attributes.items()
        }

    def now(self, attributes: Mapping[str, Any]) -> dict[int, Any]:
        """What the modules in `attributes`, from `merge`, hold now.

        Returns:
            `{id of our Variable: array or tracer}`.
        """
        values = attributes.values()
        roots = [module for value in values for _, module in _modules(value)]
        held = dict(nnx.to_flat_state(nnx.state(roots)))
        pairs = [(held[path], ours) for path, ours in self._flat if _is_tracked(ours)]
        arrays = read([theirs for theirs, _ in pairs])
        return {id(ours): x for (_, ours), x in zip(pairs, arrays, strict=True)}

    def edits_of_frozen_norms(self, frozen: set[int]) -> list[Edit]:
        """Edits that keep the statistics of norms whose parameters are all frozen.

        One without parameters goes with the module around it.

        Args:
            frozen: Ids of the frozen Variables.
        """
        edits, around = list[Edit](), dict(nnx.iter_graph(self._roots))
        for path, node in around.items():
            if not hasattr(node, "use_running_average"):
                continue
            # Outwards from the norm itself, until there is a module with parameters.
            inside: set[int] = set()
            for length in range(len(path), 0, -1):
                state = nnx.state(around[path[:length]], nnx.Param)
                inside = {id(leaf) for _, leaf in nnx.to_flat_state(state)}
                if inside:
                    break
            if inside and inside <= frozen:
                edits.append((path, _use_running_average))
        return edits

    def first_change(self) -> str | None:
        """Path of a module or Variable that was replaced, added or removed, if any."""
        # Before every call, so without a loop in Python: is every attribute that held a
        # module or an array the same object still, has no holder more or fewer, and
        # do lists and dicts hold the same modules? Only then is it looked at closely.
        holders, keys, held = self._edges
        if (
            all(map(operator.is_, map(dict.get, holders, keys), held))
            and list(map(len, self._holders)) == self._sizes
            and all(
                [id(module) for _, module in _modules(value)] == ids
                for value, ids in self._containers
            )
        ):
            return None
        return self._find_change()

    def _name(self, path: Any) -> str:
        return dotted((self._names[path[0]], *path[1:]))

    def _watch(self) -> None:
        """Remember who holds whom: (holder's dict, attribute, held object)."""
        edges = [
            (vars(node), key, value)
            for _, node in nnx.iter_graph(self._roots)
            if isinstance(node, nnx.Pytree)
            for key, value in vars(node).items()
            if is_module(value) or isinstance(value, jax.Array | np.ndarray)
        ]
        self._edges = tuple(zip(*edges, strict=True)) or ((), (), ())
        self._holders = list({id(holder): holder for holder in self._edges[0]}.values())
        self._sizes = list(map(len, self._holders))
        self._containers = [
            (value, [id(module) for _, module in _modules(value)])
            for value in self._attributes.values()
            if not is_module(value)
        ]

    def _find_change(self) -> str | None:
        now = Modules(self._attributes)
        old, new = (
            {m._name(path): leaf for path, leaf in m._flat} for m in (self, now)
        )
        changed = [
            path for path in {**old, **new} if old.get(path) is not new.get(path)
        ]
        if changed:
            return changed[0]
        self._watch()  # an attribute that holds no Variable came or went
        return None


def _use_running_average(norm: Any) -> None:
    norm.use_running_average = True


def _is_tracked(leaf: object) -> bool:
    """Whether a leaf of a module's state is a Variable with an array in it.

    Others (an array that is a plain attribute, what `sow` collected) are constants. A
    Python number counts: it is an array after the next step.
    """
    return isinstance(leaf, nnx.Variable) and isinstance(
        read([leaf])[0], jax.Array | np.ndarray | int | float
    )


def _modules(value: object) -> list[tuple[tuple[Any, ...], Any]]:
    """Every module in `value`, with the keys that lead to it."""
    if is_module(value):
        return [((), value)]
    items: Iterable[tuple[Any, Any]] = ()
    if isinstance(value, list | tuple):
        items = enumerate(value)
    elif isinstance(value, dict):
        items = value.items()
    return [
        ((key, *keys), module) for key, item in items for keys, module in _modules(item)
    ]


def _replace(value: object, modules: Iterator[Any]) -> Any:
    """`value` with its modules replaced by `modules`, in the order of `_modules`."""
    if is_module(value):
        return next(modules)
    if isinstance(value, dict):
        return {key: _replace(item, modules) for key, item in value.items()}
    if isinstance(value, list | tuple):
        items = [_replace(item, modules) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value
