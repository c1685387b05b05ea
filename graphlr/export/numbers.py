"""The live numbers of an exported step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from graphlr import keys
from graphlr.messages import unknown_key
from graphlr.optim.group_keys import check_value
from graphlr.optim.traced import is_live
from graphlr.state.state_dict import Entries


class LiveNumbers(Mapping[str, Any]):
    """The live numbers of the groups, by `group.key`; the next call sees a change.

    Flags, and a momentum of zero, are constants of an exported step and not among them.

    Args:
        places: For each optimizer `[[group, [[key, length], ...]], ...]`.
        state: Has their values.

    Example:
        >>> numbers = LiveNumbers([[["head", [["lr", 0]]]]], {"groups.head.lr": 0.1})
        >>> numbers["head.lr"] = 0.2
        >>> numbers
        {'head.lr': 0.2}
        >>> numbers["head.lr"] = -1.0
        Traceback (most recent call last):
        ValueError: Invalid learning rate: -1.0. It must be finite, at least 0, for \
example {'lr': 0.1}
    """

    def __init__(self, places: Any, state: Mapping[str, Any]) -> None:
        self._keys = [
            [f"{group}.{key}" for group, live in groups for key, _ in live]
            for groups in places
        ]
        self._saved_as = {
            f"{group}.{key}": keys.field(group, key)
            for groups in places
            for group, live in groups
            for key, _ in live
        }
        self.read(state)

    def read(self, state: Mapping[str, Any]) -> None:
        """Take the values over that `state` has."""
        self._values = {
            name: as_python(state[key]) for name, key in self._saved_as.items()
        }

    def entries(self) -> Entries:
        """The numbers under the keys of a saved state."""
        return {key: self._values[name] for name, key in self._saved_as.items()}

    def vectors(self) -> list[np.ndarray[Any, Any]]:
        """The numbers of each optimizer in the order of the step's input."""
        values = [[np.ravel(self._values[key]) for key in keys] for keys in self._keys]
        return [np.concatenate([*some, np.zeros(0)]) for some in values]

    def __getitem__(self, name: str) -> Any:
        if name not in self._values:
            raise KeyError(unknown_key(name, self._values, "numbers"))
        return self._values[name]

    def __setitem__(self, name: str, value: Any) -> None:
        now = self[name]
        value = check_value(name.rpartition(".")[2], value, now)
        if not is_live(value) or np.shape(value) != np.shape(now):
            raise TypeError(f"{name} is {now} in the exported step, not {value!r}")
        self._values[name] = value

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return repr(self._values)


def as_python(value: object) -> Any:
    """A number, a flag, or a tuple of numbers."""
    number = np.asarray(value).tolist()
    return tuple(number) if isinstance(number, list) else number
