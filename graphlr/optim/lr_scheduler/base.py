"""`Schedule` and the arithmetic that all schedules share, on the host and traced."""

import math
import operator
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, fields, replace
from functools import partial
from types import ModuleType
from typing import Annotated, Any, ClassVar, NamedTuple, Self, dataclass_transform

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike

from graphlr.optim.lr_scheduler.settings import (
    Function,
    Positive,
    at_least_0,
    each,
    fault,
    optional,
)

LearningRate = float | np.ndarray | jax.Array
Floats = LearningRate  # on the way to one: on the host or traced
Ints = np.ndarray | jax.Array  # steps, periods, cycles


# --- Arithmetic: the same for both namespaces -----------------------------------------
class At(NamedTuple):
    """The steps at which a schedule is evaluated, and arithmetic in their namespace."""

    xp: ModuleType
    """numpy on the host, jax.numpy inside a program."""
    t: Ints
    """Steps, in periods of the schedule's `every`: an integer array."""
    dtype: DTypeLike

    def since(self, start: float) -> Floats:
        """``t - start`` without cancellation: the whole part is taken in integers."""
        whole = math.floor(start)
        return (self.t - whole).astype(self.dtype) - (start - whole)

    def share(self, part: Floats, whole: Floats, shape: str) -> Floats:
        """How much of a blend is done after `part` of `whole`, relatively exact."""
        if shape == "linear":
            return part / whole
        return self.xp.square(self.xp.sin(part * (math.pi / 2 / whole)))

    def blend(
        self,
        first: Floats,
        last: Floats,
        span: tuple[float, float],
        shape: str = "linear",
    ) -> Floats:
        """From `first` to `last` while t crosses `span`, constant outside it.

        The two shares are computed from their own ends: ``1 - share`` would lose the
        digits of a small learning rate.
        """
        start, end = span
        whole = end - start
        if whole <= 0:
            return last
        done = self.xp.clip(self.since(start), 0, whole)
        left = self.xp.clip(-self.since(end), 0, whole)
        first_share = self.share(left, whole, shape)
        return first * first_share + last * self.share(done, whole, shape)

    def power(self, gamma: float, k: Floats) -> Floats:
        """``gamma**k`` for any int32 k, within 4e-7: a product of 4 table entries.

        ``exp(k * log(gamma))`` in float32 would be off by 1e-5 at small values.
        """
        places = [256**i for i in range(4)]
        with np.errstate(over="ignore", under="ignore"):
            digits = np.arange(256.0) * np.array(places)[:, None]
            tables = self.xp.asarray((np.float64(gamma) ** digits).astype(self.dtype))
            return math.prod(tables[i, k // n % 256] for i, n in enumerate(places))

    def reached(self, bounds: Iterable[int]) -> Ints:
        """How many of `bounds` are reached at t."""
        listed = self.xp.asarray(np.array([*bounds], self.t.dtype))
        return (self.t[..., None] >= listed).sum(-1)

    def call(
        self,
        fn: Callable[[Any], Any],
        precision: Callable[[], AbstractContextManager] = nullcontext,
    ) -> Floats:
        """`fn` of each step: on the host, traced, or called back if it cannot be."""
        if self.xp is np:
            return host_values(fn, self.t)
        try:
            with precision():  # int64 steps there: int32 ones divide in float32
                one = jnp.vectorize(lambda t: jnp.asarray(fn(t), self.dtype))
                return one(self.t.astype(int))
        except (TypeError, ValueError):  # fn refuses a tracer, or is at fault itself:
            host_values(fn, 1)  # then this raises, before the program runs
            return self.call_back(fn)

    def call_back(self, fn: Callable[[int], Any]) -> Floats:
        """`fn` of each step, called on the host also from inside a program."""
        if self.xp is np:
            return host_values(fn, self.t)
        result = jax.ShapeDtypeStruct(self.t.shape, self.dtype)
        host = partial(host_values, fn, dtype=self.dtype)
        return jax.pure_callback(host, result, self.t, vmap_method="expand_dims")


float64 = partial(jax.enable_x64, True)


def host_values(
    fn: Callable[[int], Any], steps: ArrayLike | range, dtype: DTypeLike = float
) -> np.ndarray:
    """`fn` called with a Python int for each of `steps`."""
    steps = np.asarray(steps)
    values = np.empty(steps.size)
    for i, step in enumerate(steps.ravel().tolist()):
        value = fn(step)
        try:
            values[i] = float(value)
        except (TypeError, ValueError):
            setting, fix = f"{_name(fn)}({step})", "return float(...)"
            raise fault(TypeError, setting, value, "a number", fix) from None
    return values.reshape(steps.shape).astype(dtype)


def _prepare(
    base_lr: ArrayLike, step: ArrayLike, every: int
) -> tuple[np.ndarray | jax.Array, At]:
    """`base_lr` as a float array and `step` as periods, host or JAX as they are."""
    traced = isinstance(base_lr, jax.Array) or isinstance(step, jax.Array)
    t = jnp.asarray(step) if traced else np.asarray(step)
    if not jnp.issubdtype(t.dtype, jnp.integer):
        fix = "schedule(base_lr, int(step))"
        raise fault(TypeError, "step", step, "an integer", fix)
    if traced:
        dtype = jnp.promote_types(jnp.result_type(base_lr, 1.0), jnp.float32)
        return jnp.asarray(base_lr, dtype), At(jnp, t.astype(np.int32) // every, dtype)
    if (t < 0).any():
        raise fault(ValueError, "step", step, ">= 0", "schedule(base_lr, 0)")
    base = np.asarray(base_lr, np.float64)
    return base, At(np, t.astype(np.int64) // every, base.dtype)


def _finish(value: Floats, base: np.ndarray | jax.Array, at: At) -> LearningRate:
    """`value` in the common dtype and shape; one value on the host is a float."""
    shape = np.broadcast_shapes(base.shape, at.t.shape)
    if at.xp is np and shape == ():
        return float(value)
    return at.xp.full(shape, value, at.dtype)


def _name(value: object) -> str:
    return getattr(value, "__name__", None) or repr(value)


def _show(value: object) -> str:
    if not isinstance(value, tuple):
        return _name(value)
    items = [_name(item) for item in value]
    return f"[{', '.join([*items[:3], '...', items[-1]] if len(items) > 8 else items)}]"


# --- Schedules ------------------------------------------------------------------------
@dataclass_transform(frozen_default=True, field_specifiers=(field,))
class _Value:
    """Makes each subclass a frozen dataclass."""

    def __init_subclass__(cls) -> None:
        dataclass(frozen=True, repr=False)(cls)


class Schedule(_Value):
    """A learning rate as a pure function of the base lr and the step.

    A subclass is a frozen dataclass; it has fields and a method ``_lr(base, at)``. A
    function of the step needs no class: see `LambdaLR` and `as_schedule`.

    Args:
        every: Steps in a period. The schedule counts periods, ``step // every``: the
            steps of an epoch for a schedule that is written in epochs. Schedules
            inside another one count its periods.

    Example:
        >>> from graphlr.optim.lr_scheduler import StepLR
        >>> StepLR(step_size=1, gamma=0.5, every=2).sample(1.0, 6).tolist()
        [1.0, 1.0, 0.5, 0.5, 0.25, 0.25]
    """

    every: Positive = field(default=1, kw_only=True)

    _levels: ClassVar[tuple[str, ...]] = ()
    """The fields that hold an lr, not a factor of the base lr."""

    def __new__(cls, *args: object, **settings: object) -> Self:
        """Refuse the optimizer, which PyTorch's schedulers take first."""
        if "optimizer" in settings or any(hasattr(x, "param_groups") for x in args):
            raise TypeError(
                f"{cls.__name__} takes no optimizer, the optimizer takes it → "
                f"self.add_optimizer(optimizer, lr_sch={cls.__name__}(...))"
            )
        return super().__new__(cls)

    def __post_init__(self) -> None:
        for item in fields(self):
            for check in getattr(item.type, "__metadata__", ()):
                setting = f"{type(self).__name__}: {item.name}"
                value = check(setting, getattr(self, item.name))
                object.__setattr__(self, item.name, value)

    def __call__(self, base_lr: ArrayLike, step: ArrayLike) -> LearningRate:
        """The learning rate of the update that follows `step` updates."""
        base, at = _prepare(base_lr, step, self.every)
        return _finish(self._lr(base, at), base, at)

    def momentum(self, step: ArrayLike) -> LearningRate | None:
        """The momentum (beta1 of an Adam) at `step`; None: this schedule has none."""
        unit, at = _prepare(1.0, step, self.every)
        value = self._momentum(at)
        return None if value is None else _finish(value, unit, at)

    def sample(self, base_lr: ArrayLike, steps: int | Iterable[int]) -> np.ndarray:
        """The float64 learning rates of steps 0 to ``steps - 1``, or of those listed.

        The result has the shape (steps, *shape of base_lr).
        """
        listed = steps if isinstance(steps, Iterable) else range(steps)
        t = np.fromiter(map(operator.index, listed), np.int64)
        base = np.asarray(base_lr, np.float64)
        return np.asarray(self(base, t.reshape(-1, *(1,) * base.ndim)))

    def _lr(self, base: Floats, at: At) -> Floats:
        """The lr for a float array of base lrs."""
        raise NotImplementedError(f"{type(self).__name__}._lr(self, base, at)")

    def _momentum(self, at: At) -> Floats | None:
        return None

    @property
    def _inner(self) -> tuple["Schedule", ...]:
        """The schedules inside this one."""
        one = getattr(self, "schedule", None)
        return getattr(self, "schedules", () if one is None else (one,))

    @property
    def relative(self) -> bool:
        """Whether the lr is `base_lr` times a function of the step alone."""
        absolute = any(getattr(self, level) for level in self._levels)
        return not absolute and all(inner.relative for inner in self._inner)

    def __repr__(self) -> str:
        shown = (
            f"{item.name}={_show(getattr(self, item.name))}"
            for item in sorted(fields(self), key=lambda item: item.kw_only is True)
            if item.repr and getattr(self, item.name) != item.default
        )
        return f"{type(self).__name__}({', '.join(shown)})"


class FunctionLR(Schedule):
    """``fn(t)``, whatever the base lr: an optax schedule. See `as_schedule`.

    Traced in the program's own precision; called back like a `LambdaLR` if need be.

    Example:
        >>> FunctionLR(lambda step: 0.5**step).sample(1.0, 3).tolist()
        [1.0, 0.5, 0.25]
    """

    fn: Function
    _levels = ("fn",)

    def _lr(self, base: Floats, at: At) -> Floats:
        return at.call(self.fn)


class TableLR(Schedule):
    """``values[t]``, whatever the base lr; the last value holds. See `as_schedule`.

    Example:
        >>> TableLR([0.3, 0.2, 0.1]).sample(1.0, 5).tolist()
        [0.3, 0.2, 0.1, 0.1, 0.1]
    """

    values: Annotated[Sequence[float], each(at_least_0, least=1)]
    _levels = ("values",)

    def _lr(self, base: Floats, at: At) -> Floats:
        last = len(self.values) - 1
        return at.xp.asarray(self.values, at.dtype)[at.xp.minimum(at.t, last)]


def as_schedule(value: object, *, every: int = 1) -> Schedule:
    """`value` as a `Schedule`, counting in periods of `every` steps.

    A schedule is itself; a function ``step -> lr``, such as an optax schedule, and a
    1-D array (step i takes its i-th value, the last one holds) ignore the base lr.

    Raises:
        TypeError: `value` is none of the three.
        ValueError: It changes rates by a `step` method of its own.

    Example:
        >>> as_schedule([0.3, 0.2, 0.1])(1.0, 1)
        0.2
        >>> as_schedule(lambda step: 0.1 / (1 + step))(1.0, 4)
        0.02
    """
    schedule = _inner("schedule", value)
    return schedule if every == 1 else replace(schedule, every=schedule.every * every)


def _inner(setting: str, value: object) -> Schedule:
    if isinstance(value, Schedule):
        return value
    if callable(value) and not isinstance(value, type):
        return FunctionLR(value)
    if isinstance(value, list | tuple | np.ndarray | jax.Array) and np.ndim(value) == 1:
        return TableLR(np.asarray(value).tolist())
    need = "a schedule, a function of the step or a 1-D array of learning rates"
    if hasattr(value, "step"):
        fix = "plateau.step(metric) after each evaluation, beside a schedule"
        raise fault(ValueError, setting, value, need, fix)
    raise fault(TypeError, setting, value, need, "StepLR(step_size=30)")


Inner = Annotated[Any, optional(_inner)]
Inners = Annotated[Sequence[Any], each(_inner, least=1)]
