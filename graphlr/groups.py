"""Parameter groups: which parameter belongs to which group, asked in one place.

`ParamGroup` pairs a selector with its numbers, and `label_params` puts every parameter
into exactly one group or says, by path and with the line to type, why it can't.
"""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from graphlr.selectors import Param as Param
from graphlr.selectors import Place as Place
from graphlr.selectors import Selector as Selector
from graphlr.selectors import dotted as dotted
from graphlr.selectors import listing as listing
from graphlr.selectors import select_modules as select_modules
from graphlr.selectors import unknown_key as unknown_key

# (every value, the keys that are new) -> every value, the new ones normalised
Check = Callable[[Mapping[str, Any], Collection[str]], dict[str, Any]]


def _select(params: Any, name: str) -> Selector:
    """The selector of the group `name`, which messages then name."""
    try:
        selector = Selector(params)
    except (TypeError, ValueError) as error:
        error.add_note(f"in group {name!r}")
        raise
    if selector.twice:
        warnings.warn(
            f"group {name!r} has a parameter twice: {listing(selector.twice)}. It is "
            "updated once: leave the second out",
            stacklevel=2,
        )
    return selector


class ParamGroup(Mapping[str, Any]):
    """A selector and its numbers, used like a dict: `group["lr"] = 0.1`.

    Every assignment is checked first; a bad one raises and changes nothing.

    Args:
        values: Every key of the group, `params` and `name` among them.
        check: Returns normalised values, or raises; it is told which keys are new.

    Attributes:
        on_change: Called after each assignment with the values before and after.

    Example:
        >>> values = {"params": "**.bias", "name": "biases", "lr": 0.1}
        >>> group = ParamGroup(values, lambda v, _: dict(v))
        >>> group.on_change = lambda old, new: print("was", old["lr"])
        >>> group["lr"] = 0.2
        was 0.1
        >>> group["lr"]
        0.2
    """

    def __init__(self, values: Mapping[str, Any], check: Check):
        """Check and keep `values`; see the class."""
        self.on_change: Callable[[Mapping[str, Any], Mapping[str, Any]], None]
        self.on_change = lambda old, new: None
        self._check = check
        self._values = check(values, values.keys())
        self.selector = _select(self._values["params"], self.name)
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
        old, checked = self._values, self._check({**self._values, **values}, values)
        if "params" in values:
            self.selector = _select(values["params"], self.name)
            checked["params"] = self.selector
        self._values = checked
        self.on_change(old, checked)

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"ParamGroup({self._values})"


class ParamGroups(Sequence[ParamGroup]):
    """The groups of an optimizer, by index or by name.

    Example:
        >>> values = {"params": ..., "name": "all"}
        >>> groups = ParamGroups([ParamGroup(values, lambda v, _: dict(v))])
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
        >>> biases = ParamGroup({"params": "b", "name": "biases"}, lambda v, _: v)
        >>> others = ParamGroup({"params": ..., "name": "others"}, lambda v, _: v)
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
                "nothing of it trains: leave the group out",
                stacklevel=2,
            )
            continue
        paths = [param.path for param in params]
        text = str(group.selector).strip("'")
        near = difflib.get_close_matches(text, paths, n=3, cutoff=0.0)
        deeper = f"{text.rstrip('.*')}.**" if text.strip(".*") else ""
        hint = deeper if deeper and any(map(Selector(deeper), params)) else ""
        raise ValueError(
            f"group {group.name!r}: {group.selector} matches no parameter. "
            + (f"For everything under it write {hint!r}. " if hint else "")
            + f"The paths nearest to it are {listing(near)} (`*` stays within a name, "
            "`**` crosses dots)."
        )
