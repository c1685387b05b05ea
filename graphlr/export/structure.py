"""Nested arguments and results in a form that JSON holds, and back.

An array is its number, `None` is null, and everything else is an object with one key:
`{"tuple": [...]}`, `{"list": [...]}`, `{"dict": [[key, node], ...]}`, `{"record":
[name, [[field, node], ...]]}` for named tuples and dataclasses, `{"value": x}` for
strings, booleans and numbers, `{"constant": text}` for what only a process has.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

Node = int | dict[str, Any] | None


class Array(NamedTuple):
    """Stands for an array.

    Attributes:
        number: Which one.
    """

    number: int


def describe(value: object) -> Node:
    """The node of `value`, which holds an `Array` in place of each array.

    Example:
        >>> describe({"image": Array(0), "mode": "fast"})
        {'dict': [['image', 0], ['mode', {'value': 'fast'}]]}
    """
    match value:
        case Array():
            return value.number
        case None:
            return None
        case bool() | int() | float() | str() if type(value) in (bool, int, float, str):
            return {"value": value}
        case list():
            return {"list": [describe(entry) for entry in value]}
        case dict() if all(isinstance(key, str | int) for key in value):
            return {"dict": [[key, describe(entry)] for key, entry in value.items()]}
    fields = _fields(type(value))
    if fields is not None:
        nodes = [[name, describe(getattr(value, name))] for name in fields]
        return {"record": [type(value).__name__, nodes]}
    if isinstance(value, tuple):
        return {"tuple": [describe(entry) for entry in value]}
    return {"constant": f"the {type(value).__name__} {value!r}"}


def nodes(node: Node) -> list[Node]:
    """`node` and every node inside it."""
    match node:
        case {"list": inside} | {"tuple": inside}:
            entries = inside
        case {"dict": pairs} | {"record": [_, pairs]}:
            entries = [entry for _, entry in pairs]
        case _:
            entries = []
    return [node, *(found for entry in entries for found in nodes(entry))]


def fill(node: Node, arrays: Sequence[Any]) -> Any:
    """What `describe` was given, with `arrays` in their places.

    Records are named tuples of the same name and fields: their classes may be unknown
    here.

    Example:
        >>> fill({"record": ["Scores", [["loss", 0], ["mode", None]]]}, [1.5])
        Scores(loss=1.5, mode=None)
    """
    match node:
        case int():
            return arrays[node]
        case {"value": value}:
            return value
        case {"list": entries}:
            return [fill(entry, arrays) for entry in entries]
        case {"tuple": entries}:
            return tuple(fill(entry, arrays) for entry in entries)
        case {"dict": pairs}:
            return {key: fill(entry, arrays) for key, entry in pairs}
        case {"record": [name, pairs]}:
            record = _record(name, tuple(field for field, _ in pairs))
            return record(*(fill(entry, arrays) for _, entry in pairs))
    return None


def take(node: Node, value: Any, where: str) -> dict[int, Any]:
    """The arrays in `value`, which is built like `node`, by their numbers.

    Args:
        node: From `describe`.
        value: What is in its place now; a record may be any object with its fields.
        where: What to call `value` in messages.

    Raises:
        TypeError: It is built otherwise, or a constant differs; says where.

    Example:
        >>> node = describe((Array(1), {"label": Array(0)}))
        >>> take(node, (0.5, {"label": 3}), "batch")
        {1: 0.5, 0: 3}
        >>> take(node, (0.5, {"lable": 3}), "batch")
        Traceback (most recent call last):
        TypeError: batch[1] must be a dict with the keys 'label', and it has 'lable'
    """
    match node:
        case int():
            return {node: value}
        case {"list": entries} | {"tuple": entries}:
            kind = next(iter(node))
            _expect(isinstance(value, list | tuple), where, f"a {kind}", value)
            if len(value) != len(entries):
                raise TypeError(
                    f"{where} must have {len(entries)} entries, and it has {len(value)}"
                )
            places = [(f"{where}[{i}]", *pair) for i, pair in _numbered(entries, value)]
        case {"dict": pairs}:
            _expect(isinstance(value, Mapping), where, "a dict", value)
            keys = [key for key, _ in pairs]
            if {*keys} != {*value}:
                raise TypeError(
                    f"{where} must be a dict with the keys {_quoted(keys)}, and it has "
                    f"{_quoted(value)}"
                )
            places = [(f"{where}[{k!r}]", entry, value[k]) for k, entry in pairs]
        case {"record": [name, pairs]}:
            fields = [field for field, _ in pairs]
            whole = all(hasattr(value, field) for field in fields)
            _expect(whole, where, f"a {name} with {_quoted(fields)}", value)
            places = [(f"{where}.{f}", entry, getattr(value, f)) for f, entry in pairs]
        case _:
            now = describe(value)
            if now != node:
                raise TypeError(
                    f"{where} is {_constant(now, value)}, and the exported program is "
                    f"made for {_constant(node, None)}: export it again with that"
                )
            places = []
    taken: dict[int, Any] = {}
    for place, entry, inside in places:
        taken |= take(entry, inside, place)
    return taken


def _fields(kind: type) -> list[str] | None:
    """The fields of a named tuple or a dataclass."""
    if dataclasses.is_dataclass(kind):
        return [field.name for field in dataclasses.fields(kind) if field.init]
    return list(kind._fields) if hasattr(kind, "_fields") else None


@functools.cache
def _record(name: str, fields: tuple[str, ...]) -> Callable[..., Any]:
    return collections.namedtuple(name, fields, rename=True)


def _numbered(entries: Sequence[Node], values: Sequence[Any]) -> Any:
    return enumerate(zip(entries, values, strict=True))


def _expect(holds: bool, where: str, what: str, value: object) -> None:
    if not holds:
        raise TypeError(f"{where} must be {what}, not a {type(value).__name__}")


def _quoted(names: Any) -> str:
    return ", ".join(map(repr, names)) or "none"


def _constant(node: Node, value: object) -> str:
    match node:
        case None:
            return "None"
        case {"value": constant}:
            return repr(constant)
        case {"constant": text}:
            return text
    return f"a {type(value).__name__}"
