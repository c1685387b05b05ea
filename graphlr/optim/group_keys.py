"""The keys of a group: what each may hold, checked alike at the top and in a group."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from graphlr.optim.lr_scheduler.base import Schedule, as_schedule

# Keys of a group that every rule has, with what a group gets when nobody says.
COMMON: dict[str, Any] = {
    "lr_scale": 1.0,
    "lr_sch": None,
    "frozen": False,
    "clip_grad_max_norm": None,
    "clip_grad_norm_type": 2.0,
    "grad_centralization": False,
}
# What a number is called in messages, the smallest and the largest value it may have.
_ANY = math.inf
_NUMBERS: dict[str, tuple[str, float, float]] = {
    "lr": ("learning rate", 0.0, _ANY),
    "lr_scale": ("lr_scale", -_ANY, _ANY),
    "momentum": ("momentum value", 0.0, _ANY),
    "dampening": ("dampening value", -_ANY, _ANY),
    "weight_decay": ("weight_decay value", 0.0, _ANY),
    "eps": ("epsilon value", 0.0, _ANY),
    "alpha": ("alpha value", 0.0, _ANY),
    "rho": ("rho value", 0.0, 1.0),
    "lr_decay": ("lr_decay value", 0.0, _ANY),
    "initial_accumulator_value": ("initial_accumulator_value value", 0.0, _ANY),
    "momentum_decay": ("momentum_decay value", 0.0, _ANY),
    "lambd": ("lambd value", 0.0, _ANY),
    "beta2_decay": ("beta2_decay value", -_ANY, 0.0),
    "trust_coefficient": ("trust_coefficient value", 0.0, _ANY),
    "clip_grad_max_norm": ("clip_grad_max_norm", 0.0, _ANY),
}


def check_number(key: str, value: Any) -> float:
    """`value` as a finite float in the range of `key`.

    Example:
        >>> check_number("lr", -1.0)
        Traceback (most recent call last):
        ValueError: Invalid learning rate: -1.0. It must be finite, at least 0, for \
example {'lr': 0.1}
    """
    what, least, most = _NUMBERS.get(key, (key, -_ANY, _ANY))
    plain = type(value) is float
    if not plain and (isinstance(value, bool | str) or np.ndim(value) != 0):
        raise TypeError(f"{key} must be a number, not {value!r}")
    try:
        number = float(value)
    except TypeError as error:
        raise TypeError(f"{key} must be a number, not {value!r}") from error
    if not math.isfinite(number) or not least <= number <= most:
        bounds = f", at least {least:g}" if least > -_ANY else ""
        bounds += f", at most {most:g}" if most < _ANY else ""
        raise ValueError(
            f"Invalid {what}: {number}. It must be finite{bounds}, for example "
            f"{{{key!r}: {min(max(least, 0.1), most):g}}}"
        )
    return number


def _curve(key: str, value: object) -> Schedule:
    """A schedule that gives the number itself, because there is no base to scale."""
    curve, steps = as_schedule(value), (0, 1, 2, 10, 100)
    if not np.array_equal(curve.sample(0.0, steps), curve.sample(1.0, steps)):
        fix = (
            f"lr=0.1, lr_sch={curve}"
            if key == "lr"
            else f"{key}=functools.partial({curve}, 0.1)"
        )
        raise ValueError(
            f"{key} is {curve}, which scales a base that nobody gave: write {fix}"
        )
    check_number(key, curve(0.0, 0))
    return curve


def _number_or_curve(key: str, value: Any) -> float | Schedule:
    if type(value) is float:
        return check_number(key, value)
    plain = not callable(value) and (isinstance(value, str) or np.ndim(value) == 0)
    return check_number(key, value) if plain else _curve(key, value)


def at_step(value: Any, step: Any) -> Any:
    """A hyperparameter at `step`: schedules, also those in a tuple, give a number.

    Example:
        >>> at_step((as_schedule([0.5, 0.9]), 0.999), 1)
        (0.9, 0.999)
    """
    if isinstance(value, tuple):
        return tuple(at_step(entry, step) for entry in value)
    return value(0.0, step) if isinstance(value, Schedule) else value


def _betas(value: Any) -> tuple[float | Schedule, ...]:
    try:
        betas = tuple(_number_or_curve("betas", beta) for beta in value)
    except TypeError as error:
        raise TypeError(f"betas must be two numbers, not {value!r}") from error
    if len(betas) != 2:
        raise ValueError(f"betas must be two numbers, not {value!r}")
    for i, beta in enumerate(at_step(betas, 0)):
        if not 0.0 <= beta < 1.0:
            raise ValueError(
                f"Invalid beta parameter at index {i}: {beta}. "
                "It must be in [0, 1), for example betas=(0.9, 0.999)"
            )
    return betas


def _tuple(key: str, value: Any, default: tuple[Any, ...]) -> tuple[Any, ...]:
    """As many numbers as the default has; None where the default has None."""
    try:
        entries = tuple(value)
    except TypeError as error:
        raise TypeError(f"{key} must be like {default}, not {value!r}") from error
    if len(entries) != len(default):
        raise ValueError(
            f"{key} must be {len(default)} numbers, for example {default}, "
            f"not {value!r}"
        )
    return tuple(
        None if entry is None and usual is None else check_number(key, entry)
        for entry, usual in zip(entries, default, strict=True)
    )


def _etas(shrink: float, grow: float) -> None:
    if not 0.0 < shrink < 1.0 < grow:
        raise ValueError(
            f"Invalid eta values: {shrink}, {grow}. The first must be in (0, 1), the "
            "second above 1, for example etas=(0.5, 1.2)"
        )


def _step_sizes(least: float, most: float) -> None:
    if not 0.0 <= least <= most:
        raise ValueError(
            f"Invalid step sizes: {least}, {most}. The first is the smallest, the "
            "second the largest, for example step_sizes=(1e-6, 50.0)"
        )


_PAIRS = {"etas": _etas, "step_sizes": _step_sizes}


def _norm_type(value: Any) -> float:
    p = float(value)  # also "inf" and "-inf"
    if math.isnan(p) or p == 0:
        raise ValueError(f"clip_grad_norm_type is {value!r}: give 2.0, 1.0 or 'inf'")
    return p


def check_value(key: str, value: Any, default: Any) -> Any:
    """`value` normalised, its p told by its key or by the default's type."""
    if (
        key == "lr"
        and isinstance(value, list | tuple)
        and any(isinstance(item, Mapping) for item in value)
    ):
        raise TypeError(
            f"lr is a list of groups, {value!r}: all groups go into one list, the "
            "first argument, SGD([{'params': ...}, {'params': ...}], lr=0.1)"
        )
    if key == "lr_sch":
        return None if value is None else as_schedule(value)
    if key == "betas":
        return _betas(value)
    if key == "clip_grad_norm_type":
        return _norm_type(value)
    if key == "clip_grad_max_norm" and value is None:
        return None
    if isinstance(default, bool):
        if not isinstance(value, bool | np.bool_):
            raise TypeError(f"{key} must be True or False, not {value!r}")
        return bool(value)
    if _is_numbers(default):
        numbers = _tuple(key, value, default)
        if key in _PAIRS:
            _PAIRS[key](*numbers)
        return numbers
    if key in ("lr_scale", "clip_grad_max_norm"):
        return check_number(key, value)
    if key == "lr" or isinstance(default, float) or isinstance(value, float):
        return _number_or_curve(key, value)
    return value


def _is_numbers(default: object) -> bool:
    if not isinstance(default, tuple) or not default:
        return False
    return all(isinstance(entry, float | None) for entry in default)
