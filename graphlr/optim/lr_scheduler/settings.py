"""Settings of schedules: the annotation of a field is the check of its value."""

import math
from collections.abc import Callable, Iterable, Sequence
from numbers import Integral, Real
from typing import Annotated, Any

import numpy as np

Check = Callable[[str, Any], Any]
_LARGEST = 10**9  # the sum of two settings still fits an int32 step


def fault(
    error: type[Exception], setting: str, value: object, need: str, fix: str = ""
) -> Exception:
    """An error: the setting and its value, what it is not, what to type."""
    name = setting.rpartition(" ")[2]
    remedy = name + fix if fix.startswith("=") else fix
    return error(f"{setting} is {value!r}, not {need} → {remedy}")


def _number(convert: Callable, need: str, allowed: Callable, fix: str) -> Check:
    def check(setting: str, value: object) -> Any:
        if isinstance(value, list | tuple):
            own = setting.replace(": ", "(") + "=...)"
            groups = f'{{"params": ..., "lr_sch": {own}}} per group'
            raise fault(TypeError, setting, value, "one number", groups)
        if isinstance(value, bool) or not isinstance(value, Real):
            raise fault(TypeError, setting, value, need, fix)
        if not (math.isfinite(value) and allowed(value)):
            raise fault(ValueError, setting, value, need, fix)
        if convert is int and not isinstance(value, Integral):
            raise fault(ValueError, setting, value, need, f"={math.trunc(value)}")
        return convert(value)

    return check


def _whole(least: int) -> Check:
    need = f"an int from {least} to {_LARGEST}"
    return _number(int, need, lambda x: least <= x <= _LARGEST, "=1")


def choice(*options: str) -> Check:
    """One of `options`."""

    def check(setting: str, value: object) -> object:
        if value not in options:
            need = f"one of {options}"
            raise fault(ValueError, setting, value, need, f"={options[0]!r}")
        return value

    return check


def flag(setting: str, value: object) -> bool:
    """A bool."""
    if not isinstance(value, bool | np.bool_):
        raise fault(TypeError, setting, value, "a bool", "=True")
    return bool(value)


def function(setting: str, value: object) -> Callable[[Any], Any]:
    """A function of the step."""
    if not callable(value):
        need = 'a function of the step, one for a group: {"params": ..., "lr_sch": ...}'
        raise fault(TypeError, setting, value, need, "=lambda step: 0.9**step")
    return value


def pair(setting: str, value: object) -> tuple[int, float]:
    """A number of steps and a learning rate."""
    if not isinstance(value, Sequence) or len(value) != 2:
        need, fix = "a pair (steps, lr)", "PiecewiseLR([(1000, 0.1), (500, 0.01)])"
        raise fault(TypeError, setting, value, need, fix)
    return _whole(1)(setting, value[0]), at_least_0(setting, value[1])


def optional(check: Check) -> Check:
    """None, or what `check` allows."""
    return lambda setting, value: None if value is None else check(setting, value)


def each(check: Check, *, least: int = 0) -> Check:
    """A list of at least so many items that `check` allows, as a tuple."""

    def check_all(setting: str, values: object) -> tuple:
        if isinstance(values, str) or not isinstance(values, Iterable):
            raise fault(TypeError, setting, values, "a list", f"=[{values!r}]")
        items = tuple(values)
        if len(items) < least:
            raise fault(ValueError, setting, [], "a list with an item", "=[...]")
        return tuple(check(f"{setting}[{i}]", item) for i, item in enumerate(items))

    return check_all


def starting(method: str) -> Check:
    """A factor to start from, above 0; the remedy for 0 is a `WarmupLR`."""
    need = "a number > 0 and <= 1"
    fix = f'WarmupLR(warmup_factor=0.0, warmup_iters=5, warmup_method="{method}")'
    above_0 = _number(float, need, lambda x: x > 0, fix)
    to_1 = _number(float, need, lambda x: x <= 1, "=1.0")
    return lambda setting, value: to_1(setting, above_0(setting, value))


at_least_0 = _number(float, "a finite number >= 0", lambda x: x >= 0, "=0.1")
_above_0 = _number(float, "a finite number > 0", lambda x: x > 0, "=1.0")
below_1 = _number(float, "a number >= 0 and < 1", lambda x: 0 <= x < 1, "=0.1")
count = _whole(0)
_to_1 = _number(float, "a number from 0 to 1", lambda x: 0 <= x <= 1, "=1.0")

Count = Annotated[int, count]
Positive = Annotated[int, _whole(1)]
OptionalPositive = Annotated[int | None, optional(_whole(1))]
Steps = Annotated[Sequence[int], each(_whole(0))]
NonNegative = Annotated[float, at_least_0]
Above0 = Annotated[float, _above_0]
Unit = Annotated[float, _to_1]
Flag = Annotated[bool, flag]
Strategy = Annotated[str, choice("cos", "linear")]
Function = Annotated[Callable[[Any], Any], function]
