"""What a parameter is called: dotted paths, and places inside modules."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

PathParts = tuple[Any, ...]  # of a module or Variable, from nnx.iter_graph


@dataclasses.dataclass(frozen=True)
class Param:
    """A parameter as selectors see it.

    Attributes:
        path: Dotted path with the graph's attribute in front,
            `model.features.0.kernel`.
        path_in_module: The same path inside the module that the graph holds, a tuple,
            `("features", 0, "kernel")`: what nnx filters and predicates are given.
        value: The `nnx.Variable`, or the array of a plain pytree.
    """

    path: str
    path_in_module: PathParts
    value: Any

    @property
    def name(self) -> str:
        """Dotted path inside the module, `features.0.kernel`."""
        return dotted(self.path_in_module)


def dotted(parts: Iterable[Any]) -> str:
    """Join path parts with dots.

    Example:
        >>> dotted(("features", 0, "kernel"))
        'features.0.kernel'
    """
    return ".".join(map(str, parts))
