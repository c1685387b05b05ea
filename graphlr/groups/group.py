"""Parameter groups: a selector and its numbers, used like a dict."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from graphlr.groups.selectors import Selector
from graphlr.messages import listing, unknown_key

# (every value, the keys that are new) -> every value, the new ones normalised
Check = Callable[[Mapping[str, Any], Collection[str]], dict[str, Any]]


def _select(params: object, name: str) -> Selector:
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

    def __setitem__(self, key: str, value: object) -> None:
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


def in_two_groups(paths: Sequence[str], first: str, second: str) -> str:
    """Message for parameters that two groups select."""
    return (
        f"some parameters appear in more than one parameter group: {listing(paths)} "
        f"in {first!r} and in {second!r}. Make the groups disjoint, for example "
        "with {'params': ...} (everything not named elsewhere) for one of them."
    )
