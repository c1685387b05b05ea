"""Selectors: which parameters are meant, whatever way the user says it.

`Selector` understands every way: module, Variable, glob, regex, nnx filter, predicate,
`...`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx

from graphlr.groups.paths import Param, PathParts, dotted
from graphlr.messages import listing

Matcher = Callable[[Param], bool]


class Selector:
    """A test "is this parameter mine?", made once from whatever the user wrote.

    Iterables are consumed once and kept, so a generator may be given; their items may
    be pairs (name, Variable) too, as `nnx.to_flat_state` gives them.

    Attributes:
        rest: True for `...`: every parameter that no other group names.
        may_be_empty: True where matching nothing is only worth a warning.
        twice: Variables that were given before, `"params.0.bias is params.1"`.

    Raises:
        TypeError: `params` is nothing that can select parameters.
        ValueError: `params` is an exhausted iterator.

    Example:
        >>> from flax import nnx
        >>> layer = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
        >>> params = [Param("model.bias", ("bias",), layer.bias)]
        >>> [p.path for p in params if Selector("*.bias")(p)]
        ['model.bias']
        >>> Selector(layer)
        Selector(Linear)
    """

    def __init__(self, params: object):
        """Understand `params`; see the class."""
        self.rest = params is ...
        self.may_be_empty = False
        self.twice: list[str] = []
        self.variables: dict[int, tuple[str, Any]] = {}  # id -> (path, Variable)
        self.modules: dict[int, Any] = {}  # id -> module, for `select_modules`
        self._matchers: list[Matcher] = []
        self._text = _describe(params)
        self._add(params, "")
        if self.variables:
            self._matchers.append(lambda param: id(param.value) in self.variables)

    def __call__(self, param: Param) -> bool:
        """Whether `param` is selected (`...` selects nothing by itself)."""
        return any(matches(param) for matches in self._matchers)

    def __repr__(self) -> str:
        return f"Selector({self._text})"

    def __str__(self) -> str:
        return self._text

    def _add(self, params: object, prefix: str) -> None:
        if params is ...:
            return
        if isinstance(params, str):
            self._matchers.append(_glob(params))
        elif isinstance(params, re.Pattern):
            self._matchers.append(
                lambda p: bool(params.search(p.name) or params.search(p.path))
            )
        elif isinstance(params, nnx.Variable):
            self._hold(params, prefix)
        elif isinstance(params, nnx.Module | nnx.State):
            self._add_module(params, prefix)
        elif isinstance(params, set | frozenset):
            raise TypeError(
                f"{_place(prefix)} is a set, whose order changes between runs: "
                "give a list, {'params': [...]}"
            )
        elif isinstance(params, jax.Array | np.ndarray):
            raise TypeError(
                f"{_place(prefix)} is an array of shape {params.shape}, which does not "
                "say which parameter it belongs to: give the nnx.Variable or the "
                "module that holds it, {'params': model.head}"
            )
        elif _is_filter(params):
            self._matchers.append(_filter(params))
        elif isinstance(params, Iterable) and not isinstance(params, Mapping | bytes):
            self._add_all(params, prefix)
        else:
            raise TypeError(
                f"{_place(prefix)} is {params!r} ({type(params).__name__}), which "
                "selects no parameters: give a module, a Variable, a list of them, a "
                "glob such as '**.bias', a compiled regex, an nnx filter, a function "
                "(path, value) -> bool, or ..."
            )

    def _add_module(self, module: nnx.Module | nnx.State, prefix: str) -> None:
        self.modules[id(module)] = module
        state = module if isinstance(module, nnx.State) else nnx.state(module)
        params = [
            (path, variable)
            for path, variable in nnx.to_flat_state(state)
            if isinstance(variable, nnx.Param)
        ]
        self.may_be_empty |= not params
        for path, variable in params:
            self._hold(variable, dotted((*filter(None, [prefix]), *path)))

    def _hold(self, variable: nnx.Variable, path: str) -> None:
        if id(variable) in self.variables:
            first, _ = self.variables[id(variable)]
            self.twice.append(f"params.{first} is params.{path}")
        else:
            self.variables[id(variable)] = (path, variable)

    def _add_all(self, items: Iterable[Any], prefix: str) -> None:
        one_shot = isinstance(items, Iterator)
        items = list(items)
        if not items and one_shot:
            raise ValueError(
                "params is an iterator that is already exhausted, so its group would "
                "train nothing: give a list, {'params': list(...)}, made before "
                "anything reads the iterator"
            )
        self.may_be_empty |= not items
        for i, item in enumerate(items):
            if isinstance(item, Mapping):
                raise TypeError(
                    f"params[{i}] is a dict among parameters: groups go into a list of "
                    "their own, [{'params': ...}, {'params': ...}]"
                )
            if item is ...:
                raise TypeError("... stands alone: {'params': ...}")
            if _is_named(item):
                name, variable = item
                self._hold(variable, name if isinstance(name, str) else dotted(name))
            else:
                self._add(item, dotted((*filter(None, [prefix]), i)))


def _place(prefix: str) -> str:
    """Where an item of `params` is: `params[3]`."""
    return "".join(["params", *(f"[{i}]" for i in prefix.split(".") if i)])


def _is_named(item: Any) -> bool:
    """Whether `item` is a Variable with its name or path before it."""
    pair = isinstance(item, tuple) and len(item) == 2
    return (
        pair and isinstance(item[0], str | tuple) and isinstance(item[1], nnx.Variable)
    )


def select_modules(
    nodes: Mapping[PathParts, Param], modules: object, what: str
) -> list[PathParts]:
    """The places of the modules that a selector selects, themselves and not inside.

    Args:
        nodes: Every module by its place.
        modules: Selector: a module, a list of modules, a glob over dotted paths, a
            compiled regex, a class of modules, `(path, module) -> bool`; None for none.
        what: What it is for, in the message.

    Raises:
        ValueError: It selects none of them.

    Example:
        >>> nodes = {(0, "a"): Param("model.a", ("a",), None)}
        >>> select_modules(nodes, "model.a", "remat")
        [(0, 'a')]
    """
    if modules is None:
        return []
    selector = Selector(modules)
    selected = [
        path
        for path, node in nodes.items()
        if id(node.value) in selector.modules or selector(node)
    ]
    if not selected:
        paths = [node.path for node in nodes.values()]
        near = difflib.get_close_matches(str(modules), paths, n=3, cutoff=0.0)
        raise ValueError(
            f"{what}: {selector} selects no module. The paths nearest to it are "
            f"{listing(near)} (`*` stays within a name, `**` crosses dots)."
        )
    return selected


def _glob(pattern: str) -> Matcher:
    """Glob over dotted names: `*` stays within a name, `**` crosses dots."""
    if not pattern:
        raise ValueError("params is the empty string; '**' selects every parameter")
    pieces = re.split(r"(\*\*|\*|\?)", pattern)
    regex = "".join(
        {"**": ".*", "*": "[^.]*", "?": "[^.]"}.get(piece, re.escape(piece))
        for piece in pieces
    )
    fullmatch = re.compile(regex).fullmatch
    return lambda param: bool(fullmatch(param.name) or fullmatch(param.path))


def _is_filter(params: object) -> bool:
    return callable(params) and not isinstance(params, nnx.Module)


def _filter(params: Any) -> Matcher:
    """An nnx filter, or a function `(path, value) -> bool` with the path as a tuple."""
    predicate = nnx.filterlib.to_predicate(params)

    def matches(param: Param) -> bool:
        try:
            return bool(predicate(param.path_in_module, param.value))
        except Exception as error:
            path, name = param.path_in_module, param.name
            error.add_note(
                f"in the selector {_describe(params)}, called as (path, value) with "
                f"path={path!r}; '.'.join(map(str, path)) is {name!r}"
            )
            raise

    return matches


def _describe(params: Any) -> str:
    if params is ...:
        return "..."
    if isinstance(params, str):
        return repr(params)
    if isinstance(params, re.Pattern):
        return f"re.compile({params.pattern!r})"
    if isinstance(params, list | tuple):
        return f"[{listing(map(_describe, params), 3)}]"
    if isinstance(params, type) or hasattr(params, "__name__"):
        return params.__name__
    return type(params).__name__
