"""Parameter groups: which parameter belongs to which group, asked in one place.

A *selector* says which parameters a group holds. `Selector` understands every kind
(module, Variable, glob, regex, nnx filter, predicate, `...`), `ParamGroup` pairs a
selector with its numbers, and `label_params` puts every parameter into exactly one
group or says, by path and with the line to type, why it can't.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx

PathParts = tuple[str | int, ...]


@dataclasses.dataclass(frozen=True)
class Param:
    """A parameter as selectors see it.

    Attributes:
        path: Dotted path with the graph's attribute in front,
            `model.features.0.kernel`.
        inner: The same path as a tuple, inside the module that the graph holds,
            `("features", 0, "kernel")`: what nnx filters and predicates are given.
        value: The `nnx.Variable`, or the array of a plain pytree.
    """

    path: str
    inner: PathParts
    value: Any

    @property
    def name(self) -> str:
        """Dotted path inside the module, `features.0.kernel`."""
        return dotted(self.inner)


def dotted(parts: Iterable[Any]) -> str:
    """Join path parts with dots.

    Example:
        >>> dotted(("features", 0, "kernel"))
        'features.0.kernel'
    """
    return ".".join(map(str, parts))


def listing(paths: Iterable[str], limit: int = 5) -> str:
    """At most `limit` paths, then how many more.

    Example:
        >>> listing(["a", "b", "c"], limit=2)
        'a, b and 1 more'
    """
    paths = list(paths)
    rest = f" and {len(paths) - limit} more" if len(paths) > limit else ""
    return ", ".join(paths[:limit]) + rest


def unknown_key(key: str, known: Iterable[str], what: str) -> str:
    """Message for a misspelt key: the key, the nearest known one, all of them."""
    known = sorted(known)
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"{what} has no {key!r}: {hint}It takes {', '.join(known)}."


# --- selectors ------------------------------------------------------------------------

Matcher = Callable[[Param], bool]


class Selector:
    """A test "is this parameter mine?", made once from whatever the user wrote.

    Iterables are consumed once and kept, so a generator may be given.

    Attributes:
        rest: True for `...`: every parameter that no other group names.
        may_be_empty: True where matching nothing is only worth a warning.

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

    def __init__(self, params: Any):
        """Understand `params`; see the class."""
        self.rest = params is ...
        self.may_be_empty = False
        self.variables: dict[int, tuple[str, Any]] = {}  # id -> (path, Variable)
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

    def _add(self, params: Any, prefix: str) -> None:
        if params is ...:
            return
        if isinstance(params, str):
            self._matchers.append(_glob(params))
        elif isinstance(params, re.Pattern):
            self._matchers.append(
                lambda p: bool(params.search(p.name) or params.search(p.path))
            )
        elif isinstance(params, nnx.Variable):
            if id(params) in self.variables:
                warnings.warn(
                    f"a parameter group names {prefix or 'a parameter'} twice; "
                    "it is updated once",
                    stacklevel=2,
                )
            self.variables[id(params)] = (prefix, params)
        elif isinstance(params, nnx.Module | nnx.State):
            self._add_module(params, prefix)
        elif isinstance(params, set | frozenset):
            raise TypeError(
                "params is a set, whose order changes between runs: "
                "give a list, {'params': [...]}"
            )
        elif isinstance(params, jax.Array | np.ndarray):
            raise TypeError(
                f"params is an array of shape {params.shape}, which does not say which "
                "parameter it belongs to: give the nnx.Variable or the module that "
                "holds it, {'params': model.head}"
            )
        elif _is_filter(params):
            self._matchers.append(_filter(params))
        elif isinstance(params, Iterable) and not isinstance(params, Mapping | bytes):
            self._add_all(params, prefix)
        else:
            raise TypeError(
                f"params is {params!r} ({type(params).__name__}), which selects no "
                "parameters: give a module, a Variable, a list of them, a glob such as "
                "'**.bias', a compiled regex, an nnx filter, a function "
                "(path, value) -> bool, or ..."
            )

    def _add_module(self, module: nnx.Module | nnx.State, prefix: str) -> None:
        state = module if isinstance(module, nnx.State) else nnx.state(module)
        found = [
            (path, variable)
            for path, variable in nnx.to_flat_state(state)
            if isinstance(variable, nnx.Param)
        ]
        self.may_be_empty |= not found
        for path, variable in found:
            self.variables[id(variable)] = (
                dotted((*filter(None, [prefix]), *path)),
                variable,
            )

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
            self._add(item, dotted((*filter(None, [prefix]), i)))


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


def _is_filter(params: Any) -> bool:
    return callable(params) and not isinstance(params, nnx.Module)


def _filter(params: Any) -> Matcher:
    """An nnx filter, or a function `(path, value) -> bool` with the path as a tuple."""
    predicate = nnx.filterlib.to_predicate(params)

    def matches(param: Param) -> bool:
        try:
            return bool(predicate(param.inner, param.value))
        except Exception as error:
            error.add_note(
                f"in the selector {_describe(params)}, called as (path, value) with "
                f"path={param.inner!r}; '.'.join(map(str, path)) is {param.name!r}"
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


# --- groups ---------------------------------------------------------------------------

Check = Callable[[Mapping[str, Any]], dict[str, Any]]


class ParamGroup(Mapping[str, Any]):
    """A selector and its numbers, used like a dict: `group["lr"] = 0.1`.

    Every assignment is checked first; a bad one raises and changes nothing.

    Args:
        values: Every key of the group, `params` and `name` among them.
        check: Returns normalised values, or raises.

    Attributes:
        on_change: Called after each assignment.

    Example:
        >>> group = ParamGroup({"params": "**.bias", "name": "biases", "lr": 0.1}, dict)
        >>> group.on_change = lambda: print("changed")
        >>> group["lr"] = 0.2
        changed
        >>> group["lr"]
        0.2
    """

    def __init__(self, values: Mapping[str, Any], check: Check):
        """Check and keep `values`; see the class."""
        self.on_change: Callable[[], None] = lambda: None
        self._check = check
        self._values = check(values)
        self.selector = Selector(self._values["params"])
        self._values["params"] = self.selector

    @property
    def name(self) -> str:
        """The group's name, the key of `graph.lr`."""
        return self._values["name"]

    def __getitem__(self, key: str) -> Any:
        if key not in self._values:
            raise KeyError(unknown_key(key, self._values, f"group {self.name!r}"))
        return self._values[key]

    def __setitem__(self, key: str, value: Any) -> None:
        self.update({key: value})

    def update(self, values: Mapping[str, Any]) -> None:
        """Set several keys at once: all of them or, if one is bad, none."""
        for key in values:
            if key not in self._values:
                raise KeyError(unknown_key(key, self._values, f"group {self.name!r}"))
            if key in ("name", "optimizer"):
                raise KeyError(f"group {self.name!r}: {key!r} is fixed once made")
        checked = self._check({**self._values, **values})
        if "params" in values:
            self.selector = Selector(values["params"])
            checked["params"] = self.selector
        self._values = checked
        self.on_change()

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"ParamGroup({self._values})"


class ParamGroups(Sequence[ParamGroup]):
    """The groups of an optimizer, by index or by name.

    Example:
        >>> groups = ParamGroups([ParamGroup({"params": ..., "name": "all"}, dict)])
        >>> groups["all"] is groups[0]
        True
    """

    def __init__(self, groups: Iterable[ParamGroup] = ()):
        """Keep `groups` in order."""
        self._groups = list(groups)

    def __getitem__(self, key: Any) -> Any:
        if not isinstance(key, str):
            return self._groups[key]
        for group in self._groups:
            if group.name == key:
                return group
        names = [group.name for group in self._groups]
        raise KeyError(unknown_key(key, names, "param_groups"))

    def __len__(self) -> int:
        return len(self._groups)

    def __repr__(self) -> str:
        return f"ParamGroups({self._groups})"

    def add(self, group: ParamGroup) -> None:
        """Append `group`; its name and its Variables must be new.

        Raises:
            ValueError: Another group has the name, names one of the Variables, or is
                `...` too.
        """
        for other in self._groups:
            if other.name == group.name:
                raise ValueError(
                    f"two groups are named {group.name!r}: give one another "
                    "{'name': ...}"
                )
            if other.selector.rest and group.selector.rest:
                raise ValueError(
                    f"groups {other.name!r} and {group.name!r} both select ... "
                    "(everything not named elsewhere): only one can"
                )
            mine, theirs = group.selector.variables, other.selector.variables
            shared = [
                max(mine[i][0], theirs[i][0], key=len) or "a parameter given by itself"
                for i in mine
                if i in theirs
            ]
            if shared:
                raise ValueError(in_two_groups(shared, other.name, group.name))
        self._groups.append(group)


# --- labels ---------------------------------------------------------------------------


def label_params(
    params: Sequence[Param], groups: Sequence[ParamGroup]
) -> dict[str, int]:
    """The index in `groups` of the one group that each parameter belongs to.

    Args:
        params: Every parameter, each once.
        groups: Groups of one or several optimizers; their names are for messages.

    Returns:
        `{dotted path: index of the group}`, in the order of `params`.

    Raises:
        ValueError: A parameter is in two groups or in none; a pattern matches nothing;
            a group names a Variable that is not among `params`.

    Example:
        >>> params = [Param("m.w", ("w",), None), Param("m.b", ("b",), None)]
        >>> biases = ParamGroup({"params": "b", "name": "biases"}, dict)
        >>> others = ParamGroup({"params": ..., "name": "others"}, dict)
        >>> label_params(params, [biases, others])
        {'m.w': 1, 'm.b': 0}
    """
    _check_known(params, groups)
    rest = [i for i, group in enumerate(groups) if group.selector.rest]
    if len(rest) > 1:
        names = " and ".join(repr(groups[i].name) for i in rest[:2])
        raise ValueError(
            f"groups {names} both select ... (everything not named elsewhere): "
            "only one group can"
        )
    chosen = {
        param.path: [i for i, group in enumerate(groups) if group.selector(param)]
        for param in params
    }
    _check_overlap(chosen, groups)
    uncovered = [path for path, indices in chosen.items() if not indices]
    used = {i for indices in chosen.values() for i in indices}
    _check_matched(used | {*rest} if uncovered else used, groups, params)
    if uncovered and not rest:
        _raise_uncovered(uncovered)
    return {path: (*indices, *rest)[0] for path, indices in chosen.items()}


def in_two_groups(paths: Sequence[str], first: str, second: str) -> str:
    """Message for parameters that two groups select."""
    return (
        f"some parameters appear in more than one parameter group: {listing(paths)} "
        f"in {first!r} and in {second!r}. Make the groups disjoint, for example "
        "with {'params': ...} (everything not named elsewhere) for one of them."
    )


def _check_known(params: Sequence[Param], groups: Sequence[ParamGroup]) -> None:
    known = {id(param.value) for param in params}
    for group in groups:
        strangers = [
            path or f"one of shape {variable.shape}"
            for i, (path, variable) in group.selector.variables.items()
            if i not in known
        ]
        if strangers:
            raise ValueError(
                f"group {group.name!r} ({group.selector}) holds parameters that no "
                f"module of the graph has: {listing(strangers)}. Was the module "
                "replaced after the optimizer was made? Make the optimizer last, or "
                "name its parameters by path, {'params': 'classifier.**'}."
            )


def _check_overlap(chosen: dict[str, list[int]], groups: Sequence[ParamGroup]) -> None:
    twice = {path: found for path, found in chosen.items() if len(found) > 1}
    if twice:
        first, second = next(iter(twice.values()))[:2]
        same = [path for path, found in twice.items() if found[:2] == [first, second]]
        raise ValueError(in_two_groups(same, groups[first].name, groups[second].name))


def _raise_uncovered(paths: Sequence[str]) -> None:
    common = paths[0].split(".")
    for path in paths:
        parts = path.split(".")
        same = [a == b for a, b in zip(common, parts, strict=False)]
        common = common[: (*same, False).index(False)]
    pattern = dotted(common) if len(paths) == 1 else dotted((*common, "**"))
    raise ValueError(
        f"{len(paths)} parameters are in no group and would never train: "
        f"{listing(paths)}. Add a group, {{'params': {pattern!r}}}, or freeze them, "
        f"{{'params': {pattern!r}, 'frozen': True}}, or take everything not named "
        "elsewhere, {'params': ...}."
    )


def _check_matched(
    used: set[int], groups: Sequence[ParamGroup], params: Sequence[Param]
) -> None:
    for i, group in enumerate(groups):
        if i in used:
            continue
        if group.selector.may_be_empty or group.selector.rest:
            warnings.warn(
                f"group {group.name!r} ({group.selector}) holds no parameters; "
                "nothing of it trains",
                stacklevel=2,
            )
            continue
        paths = [param.path for param in params]
        text = str(group.selector).strip("'")
        near = difflib.get_close_matches(text, paths, n=3, cutoff=0.0)
        deeper = _glob(text.rstrip(".*") + ".**") if text.strip(".*") else None
        hint = f"{text.rstrip('.*')}.**" if deeper and any(map(deeper, params)) else ""
        raise ValueError(
            f"group {group.name!r}: {group.selector} matches no parameter. "
            + (f"For everything under it write {hint!r}. " if hint else "")
            + f"The paths nearest to it are {listing(near)} (`*` stays within a name, "
            "`**` crosses dots)."
        )
