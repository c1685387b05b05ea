"""The keys of a group: what each may hold, checked alike at the top and in a group."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from graphlr.optim.lr_scheduler import as_schedule

# Keys of a group that every rule has, with what a group gets when nobody says.
COMMON: dict[str, Any] = {
    "lr_scale": 1.0,
    "lr_sch": None,
    "frozen": False,
    "clip_grad_max_norm": None,
    "clip_grad_norm_type": 2.0,
    "grad_centralization": False,
}
# What a number is called in messages, and the smallest value it may have.
_NUMBERS: dict[str, tuple[str, float]] = {
    "lr": ("learning rate", 0.0),
    "lr_scale": ("lr_scale", -math.inf),
    "momentum": ("momentum value", 0.0),
    "dampening": ("dampening value", -math.inf),
    "weight_decay": ("weight_decay value", 0.0),
    "eps": ("epsilon value", 0.0),
    "clip_grad_max_norm": ("clip_grad_max_norm", 0.0),
}


def check_number(key: str, value: Any) -> float:
    """`value` as a finite float in the range of `key`.

    Example:
        >>> check_number("lr", -1.0)
        Traceback (most recent call last):
        ValueError: Invalid learning rate: -1.0. It must be finite, at least 0, for \
example {'lr': 0.1}
    """
    what, least = _NUMBERS.get(key, (key, -math.inf))
    if isinstance(value, bool | str) or np.ndim(value) != 0:
        raise TypeError(f"{key} must be a number, not {value!r}")
    try:
        number = float(value)
    except TypeError as error:
        raise TypeError(f"{key} must be a number, not {value!r}") from error
    if not math.isfinite(number) or number < least:
        at_least = f", at least {least:g}" if least > -math.inf else ""
        raise ValueError(
            f"Invalid {what}: {number}. It must be finite{at_least}, for example "
            f"{{{key!r}: {max(least, 0.1):g}}}"
        )
    return number


def _betas(value: Any) -> tuple[float, ...]:
    try:
        betas = tuple(check_number("betas", beta) for beta in value)
    except TypeError as error:
        raise TypeError(f"betas must be two numbers, not {value!r}") from error
    if len(betas) != 2:
        raise ValueError(f"betas must be two numbers, not {value!r}")
    for i, beta in enumerate(betas):
        if not 0.0 <= beta < 1.0:
            raise ValueError(
                f"Invalid beta parameter at index {i}: {beta}. "
                "It must be in [0, 1), for example betas=(0.9, 0.999)"
            )
    return betas


def _norm_type(value: Any) -> float:
    kind = float(value)  # also "inf" and "-inf"
    if math.isnan(kind) or kind == 0:
        raise ValueError(f"clip_grad_norm_type is {value!r}: give 2.0, 1.0 or 'inf'")
    return kind


def check_value(key: str, value: Any, default: Any) -> Any:
    """`value` normalised, its kind told by its key or by the default's type."""
    if key == "lr":
        plain = np.ndim(value) == 0 and not callable(value)
        return check_number(key, value) if plain else as_schedule(value)
    if key == "lr_sch":
        return None if value is None else as_schedule(value)
    if key == "betas":
        return _betas(value)
    if key == "clip_grad_norm_type":
        return _norm_type(value)
    if key == "clip_grad_max_norm":
        return None if value is None else check_number(key, value)
    if isinstance(default, bool):
        if not isinstance(value, bool | np.bool_):
            raise TypeError(f"{key} must be True or False, not {value!r}")
        return bool(value)
    if isinstance(default, float) or isinstance(value, float):
        return check_number(key, value)
    if isinstance(default, tuple) and all(isinstance(x, float) for x in default):
        return tuple(check_number(key, x) for x in value)
    return value
