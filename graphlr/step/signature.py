"""The arguments of `build`: what is traced, what is a constant, what is wrong.

A signature is the tree structure of the arguments with the type of every array and the
value of every constant: a graph compiles once for each. Messages use the names of
`build`'s own parameters (`image: float32[64,32,32,3]`).
"""

from __future__ import annotations

import dataclasses
import enum
import inspect
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.core import ShapedArray

from graphlr.runtime import wide

Build = Callable[..., Any]

_ARRAYS = (
    jax.Array,
    jax.ShapeDtypeStruct,
    np.ndarray,
    np.generic,
    int,
    float,
    complex,
)
_PLAIN = (jax.Array, np.ndarray)  # what nearly every argument is
_OBJECT = np.dtype(object)
_CONSTANTS = (str, bytes, bool, enum.Enum, type, np.dtype)


class Constant(NamedTuple):
    """An argument that is part of the signature, not an input of the step."""

    type: type
    value: Any

    def __str__(self) -> str:
        return f"the {self.type.__name__} {self.value!r}"


Kind = ShapedArray | Constant


class Signature(NamedTuple):
    """A tree's structure, types and constants; hashable.

    Of a call's arguments, which say what a step is compiled for; and of what `build`
    returned, so that it can be put together again from a list of arrays.

    Attributes:
        tree: Tree structure, of `(args, kwargs)` or of what `build` returned.
        kinds: For each leaf the type of the array (`float32[8,3]`) or a `Constant`.
        wide: Whether 64-bit types are enabled.
    """

    tree: Hashable
    kinds: tuple[Kind, ...]
    wide: bool = False

    def fill(self, arrays: Sequence[Any]) -> Any:
        """The tree, `(args, kwargs)` for one, with `arrays` as its traced leaves."""
        values = iter(arrays)
        leaves = [
            kind.value if isinstance(kind, Constant) else next(values)
            for kind in self.kinds
        ]
        return jax.tree.unflatten(self.tree, leaves)

    def names(self, build: Build) -> list[str]:
        """What each leaf is called in the user's own words, `batch['image']`."""
        positions = _positions(build)
        paths = jax.tree_util.tree_leaves_with_path(self.fill(self.kinds_as_leaves()))
        return [_name(path, positions) for path, _ in paths]

    def kinds_as_leaves(self) -> list[ShapedArray]:
        """A stand-in for each traced leaf."""
        return [kind for kind in self.kinds if not isinstance(kind, Constant)]

    def describe(self, build: Build) -> dict[str, str]:
        """`{name: type or constant}`.

        Example:
            >>> def build(image, mode): ...
            >>> args = np.zeros((2, 3), "f4"), "fast"
            >>> signature, _ = read_arguments(build, args, {})
            >>> signature.describe(build)
            {'image': 'float32[2,3]', 'mode': "the str 'fast'"}
        """
        kinds = (_short(kind) for kind in self.kinds)
        return dict(zip(self.names(build), kinds, strict=True))

    def check_parts(self, parts: int, build: Build) -> None:
        """Refuse arrays that can't be divided into so many parts, all alike.

        Raises:
            ValueError: Names the argument.
        """
        if parts == 1:
            return
        sizes = self._leading(build)
        for name, size in sizes.items():
            if size % parts:
                less = size - size % parts
                fits = f"{less} or {less + parts}" if less else f"{parts}"
                raise ValueError(
                    f"argument {name} has {size} entries, which don't divide into "
                    f"config.gradient_accumulation_steps = {parts} parts: give a batch "
                    f"of {fits}"
                )
        if len(set(sizes.values())) > 1:
            raise ValueError(
                "arguments to be divided into parts have different sizes, "
                f"{sizes}: hold what isn't a batch as an attribute of the graph"
            )

    def of_one_step(self, build: Build) -> tuple[Signature, int]:
        """The signature without the leading axis, and the size of that axis.

        Raises:
            ValueError: The arrays don't have one, or not of one size.
        """
        sizes = self._leading(build)
        if len(set(sizes.values())) != 1 or 0 in sizes.values():
            raise ValueError(
                "graph.scan takes arrays with a leading axis, the same for all: one "
                f"entry a step; here it is {sizes or 'missing'}"
            )
        kinds = [
            kind if isinstance(kind, Constant) else kind.update(shape=kind.shape[1:])
            for kind in self.kinds
        ]
        return self._replace(kinds=tuple(kinds)), next(iter(sizes.values()))

    def _leading(self, build: Build) -> dict[str, int]:
        """The first axis of every array that has one."""
        return {
            name: kind.shape[0]
            for name, kind in zip(self.names(build), self.kinds, strict=True)
            if not isinstance(kind, Constant) and kind.shape
        }

    def difference(self, other: Signature, build: Build) -> str:
        """What of `self` differs from `other`, `image float32[5,3] (was ...)`."""
        now, before = self.describe(build), other.describe(build)
        changed = [
            f"{name} {now.get(name, 'absent')} (was {before.get(name, 'absent')})"
            for name in {**before, **now}
            if now.get(name) != before.get(name)
        ]
        if self.wide != other.wide:
            changed.append("64-bit types " + ("on" if self.wide else "off"))
        weak = [getattr(kind, "weak_type", False) for kind in self.kinds]
        if not changed and weak != [
            getattr(k, "weak_type", False) for k in other.kinds
        ]:
            changed.append("a Python number in place of an array, or the reverse")
        return ", ".join(changed) or "the structure of the arguments"


def read_arguments(
    build: Build, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[Signature, list[Any]]:
    """The signature of a call, and its arrays.

    Arrays are everything with a dtype, and Python numbers; strings, booleans, enums and
    callables are constants. A dataclass that JAX doesn't know is registered with it.

    Raises:
        TypeError: A leaf is neither; names the argument.

    Example:
        >>> def build(image, mode): ...
        >>> signature, arrays = read_arguments(build, (np.zeros((2, 3)), "fast"), {})
        >>> len(arrays), signature.kinds[1].value
        (1, 'fast')
    """
    leaves, tree = jax.tree.flatten((args, kwargs))
    kinds: list[Kind] = []
    arrays: list[Any] = []
    for i, leaf in enumerate(leaves):
        if isinstance(leaf, _PLAIN) and leaf.dtype is not _OBJECT:
            kinds.append(jax.typeof(leaf))
            arrays.append(leaf)
            continue
        if isinstance(leaf, _CONSTANTS) or callable(leaf):
            kinds.append(Constant(type(leaf), leaf))
            if not isinstance(leaf, Hashable):
                paths = jax.tree_util.tree_leaves_with_path((args, kwargs))
                raise TypeError(
                    f"argument {_name(paths[i][0], _positions(build))} is "
                    f"{_object(leaf)} without a hash, so it can't be a constant of the "
                    "trace: give it __hash__, or hold it as an attribute of the graph"
                )
            continue
        if _register(leaf):  # and so no leaf any more: begin again
            return read_arguments(build, args, kwargs)
        if not isinstance(leaf, _ARRAYS) and hasattr(leaf, "__array__"):
            leaf = np.asarray(leaf)
        if not isinstance(leaf, _ARRAYS) or getattr(leaf, "dtype", None) is _OBJECT:
            paths = jax.tree_util.tree_leaves_with_path((args, kwargs))
            name = _name(paths[i][0], _positions(build))
            raise TypeError(
                f"argument {name} is {_object(leaf)}, which can't be traced: give a "
                "JAX or NumPy array or a number (strings, booleans and callables are "
                "constants of the trace)"
            )
        kinds.append(jax.typeof(leaf))
        arrays.append(leaf)
    return Signature(tree, tuple(kinds), wide()), arrays


def check_against(new: Signature, known: Signature, build: Build) -> None:
    """Refuse a constant where the graph has always been given an array.

    Raises:
        TypeError: Names the argument, what it was and what it is.
    """
    if new.tree != known.tree:
        return
    for i, (now, before) in enumerate(zip(new.kinds, known.kinds, strict=True)):
        if isinstance(now, Constant) and not isinstance(before, Constant):
            raise TypeError(
                f"argument {new.names(build)[i]} is {now}; "
                f"this graph is compiled for {_short(before)} there"
            )


def registered(tree: object) -> Any:
    """`tree`, once JAX knows every dataclass in it.

    Example:
        >>> @dataclasses.dataclass
        ... class Batch:
        ...     image: int
        >>> jax.tree.leaves(registered([Batch(image=3)]))
        [3]
    """
    for leaf in jax.tree.leaves(tree):
        if _register(leaf):
            return registered(tree)
    return tree


def _register(leaf: object) -> bool:
    """Register the dataclass that `leaf` is an instance of, if it is one."""
    if not dataclasses.is_dataclass(leaf) or isinstance(leaf, type):
        return False
    names = [field.name for field in dataclasses.fields(leaf) if field.init]
    jax.tree_util.register_dataclass(type(leaf), data_fields=names, meta_fields=[])
    return True


def _name(path: Any, positions: list[str]) -> str:
    """`(0, 1, 'x')` is the second positional argument's `['x']`."""
    which, first, *rest = path
    if which.idx:
        name = first.key
    elif first.idx < len(positions) and not positions[first.idx].startswith("*"):
        name = positions[first.idx]
    elif positions and positions[-1].startswith("*"):
        name = f"{positions[-1][1:]}[{first.idx - len(positions) + 1}]"
    else:  # one too many, which Python's own message will say
        name = f"args[{first.idx}]"
    return name + jax.tree_util.keystr(tuple(rest))


def _positions(build: Build) -> list[str]:
    """Names of the positional parameters, the last one `*name` if there is one."""
    parameters = inspect.signature(build).parameters.values()
    rest = [f"*{p.name}" for p in parameters if p.kind is p.VAR_POSITIONAL]
    return [
        p.name
        for p in parameters
        if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ] + rest


def _short(kind: Kind) -> str:
    return str(kind) if isinstance(kind, Constant) else kind.str_short()


def _object(leaf: object) -> str:
    if isinstance(leaf, np.ndarray):
        return f"an array of Python objects, shape {leaf.shape}"
    return f"a {type(leaf).__name__}"
