"""The arguments of an exported step: what the graph took, and an error for the rest."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

LEFT_OUT: Any = ...  # default of a parameter that was not given when exporting


def call_signature(parameters: Sequence[Any]) -> inspect.Signature:
    """The parameters of `build`, from what the manifest has of them."""
    made = []
    for name, kind, may_be_left_out, _ in parameters:
        plain = may_be_left_out and not kind.startswith("VAR")
        default = LEFT_OUT if plain else inspect.Parameter.empty
        place = getattr(inspect.Parameter, kind)
        made.append(inspect.Parameter(name, place, default=default))
    return inspect.Signature(made)


def check_array(
    name: str, value: Any, kind: Any, sizes: dict[str, tuple[int, str]]
) -> None:
    """Refuse an array that isn't of `kind`; notes what each symbol stands for."""
    wanted = f"the exported program takes {kind.str_short()}"
    numbers = jax.Array | np.ndarray | np.generic | int | float | complex
    if not isinstance(value, numbers) or isinstance(value, bool):
        raise TypeError(f"argument {name} is a {type(value).__name__}, and {wanted}")
    now = jax.typeof(value)
    if now.dtype != kind.dtype:
        raise TypeError(
            f"argument {name} is {now.str_short()}, and {wanted}: convert it, "
            f"{name}.astype({str(kind.dtype)!r}), or export the graph with such a one"
        )
    fits = len(now.shape) == len(kind.shape)
    for size, expected in zip(now.shape, kind.shape, strict=False):
        if isinstance(expected, int):
            fits = fits and size == expected
        elif str(expected).isidentifier():
            known, where = sizes.setdefault(str(expected), (size, name))
            if known != size:
                raise ValueError(
                    f"argument {name} is {now.str_short()}, and {wanted}, where "
                    f"{expected} is {known} as in {where}: give both the same size"
                )
    if not fits:
        raise ValueError(
            f"argument {name} is {now.str_short()}, and {wanted}: give one of that "
            "shape, or export the graph with such a one"
        )
