"""Schedules made of schedules: warm-up, sequence, product, averaging phase."""

import math
from collections.abc import Callable, Sequence
from dataclasses import field
from typing import Annotated, Any

from graphlr.optim.lr_scheduler.base import (
    At,
    Floats,
    Inner,
    Inners,
    Schedule,
)
from graphlr.optim.lr_scheduler.settings import (
    Count,
    Flag,
    NonNegative,
    Steps,
    Strategy,
    Unit,
    choice,
    each,
    fault,
    flag,
)


class WarmupLR(Schedule):
    """`schedule` (or the base lr) after a warm-up from ``base * warmup_factor``.

    The linear warm-up meets the curve of `schedule` at step `warmup_iters` and follows
    it from there; with ``warmup_prefix=True`` it ends at the base lr and `schedule`
    then starts at its own step 0. A constant warm-up stays at its factor.
    Source: OneFlow `WarmupLR` (`WarmUpLR`).

    Example:
        >>> from graphlr.optim.lr_scheduler import LinearLR
        >>> inner = LinearLR(1.0, 0.0, total_iters=4)
        >>> WarmupLR(inner, warmup_factor=0.0, warmup_iters=2).sample(1.0, 5).tolist()
        [0.0, 0.25, 0.5, 0.25, 0.0]
    """

    schedule: Inner = None
    warmup_factor: Unit = 1 / 3
    warmup_iters: Count = 5
    warmup_method: Annotated[str, choice("linear", "constant")] = "linear"
    warmup_prefix: Flag = False

    def _lr(self, base: Floats, at: At) -> Floats:
        n, low = self.warmup_iters, base * self.warmup_factor
        clock = at.xp.maximum(at.t, n) - (n if self.warmup_prefix else 0)
        after = base if self.schedule is None else self.schedule(base, clock)
        high = base if self.warmup_prefix else after
        linear = self.warmup_method == "linear"
        warm = at.blend(low, high, (0, n)) if linear else low
        return at.xp.where(at.t < n, warm, after)

    def _momentum(self, at: At) -> Floats | None:
        start = self.warmup_iters if self.warmup_prefix else 0
        clock = at.xp.maximum(at.t - start, 0)
        return None if self.schedule is None else self.schedule.momentum(clock)


class SequentialLR(Schedule):
    """``schedules[i]`` from ``milestones[i - 1]`` on, each from the base lr.

    The clock restarts at each milestone. With ``interval_rescaling=False`` (OneFlow's
    default) it runs on; a list says so for each milestone, where False continues the
    clock of the schedule before, as OneFlow's graph mode does. A sequence inside a
    sequence gives what it gives alone; PyTorch's runs one step early.
    Source: PyTorch and OneFlow `SequentialLR`.

    Example:
        >>> from graphlr.optim.lr_scheduler import ConstantLR, ExponentialLR
        >>> parts = [ConstantLR(0.5, total_iters=2), ExponentialLR(0.5)]
        >>> SequentialLR(parts, milestones=[2]).sample(1.0, 5).tolist()
        [0.5, 0.5, 1.0, 0.5, 0.25]
    """

    schedules: Inners
    milestones: Steps
    interval_rescaling: bool | Sequence[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        setting, steps = "SequentialLR: milestones", self.milestones
        if len(steps) != len(self.schedules) - 1:
            need = f"one fewer than the {len(self.schedules)} schedules"
            raise fault(ValueError, setting, steps, need, "SequentialLR([a, b], [100])")
        if list(steps) != sorted(steps):
            raise fault(ValueError, setting, steps, "ascending", f"={sorted(steps)}")
        if not isinstance(self.interval_rescaling, bool):
            setting = "SequentialLR: interval_rescaling"
            flags = each(flag)(setting, self.interval_rescaling)
            if len(flags) != len(steps):
                raise fault(ValueError, setting, flags, f"{len(steps)} bools", "=True")
            object.__setattr__(self, "interval_rescaling", flags)
        if len({inner.momentum(0) is None for inner in self.schedules}) > 1:
            setting, need = (
                "SequentialLR: schedules",
                "all with momentum or all without",
            )
            fix = "OneCycleLR(..., cycle_momentum=False)"
            raise fault(ValueError, setting, self.schedules, need, fix)

    def _pick(self, at: At, evaluate: Callable[[Schedule, Floats], Any]) -> Any:
        """The value of the schedule in charge; the others see the end of their part."""
        steps, restarts = self.milestones, self.interval_rescaling
        flags = (restarts,) * len(steps) if isinstance(restarts, bool) else restarts
        first, *rest = self._inner
        value = evaluate(first, at.xp.clip(at.t, 0, steps[0] if steps else None))
        offset = 0
        for inner, start, end, restart in zip(
            rest, steps, (*steps, None)[1:], flags, strict=True
        ):
            offset = start if restart else offset
            now = evaluate(inner, at.xp.clip(at.t, start, end) - offset)
            value = at.xp.where(at.t >= start, now, value)
        return value

    def _lr(self, base: Floats, at: At) -> Floats:
        return self._pick(at, lambda inner, clock: inner(base, clock))

    def _momentum(self, at: At) -> Floats | None:
        if self._inner[0].momentum(0) is None:
            return None
        return self._pick(at, lambda inner, clock: inner.momentum(clock))


class ChainedScheduler(Schedule):
    """The base lr times the factor ``schedule(base, t) / base`` of every schedule.

    Every factor is taken at t, also a cosine's; PyTorch's recursive cosine forgets the
    other factors when it reaches `eta_min`. Nothing is divided by the base lr, unless
    two schedules have absolute values (an `eta_min`, a one-cycle).
    Source: PyTorch `ChainedScheduler`.

    Example:
        >>> from graphlr.optim.lr_scheduler import ConstantLR, ExponentialLR
        >>> parts = [ExponentialLR(0.5), ConstantLR(0.5, total_iters=2)]
        >>> ChainedScheduler(parts).sample(1.0, 4).tolist()
        [0.5, 0.25, 0.25, 0.125]
    """

    schedules: Inners

    def __post_init__(self) -> None:
        super().__post_init__()
        if sum(inner.momentum(0) is not None for inner in self.schedules) > 1:
            setting, need = "ChainedScheduler: schedules", "at most one with momentum"
            fix = "OneCycleLR(..., cycle_momentum=False)"
            raise fault(ValueError, setting, self.schedules, need, fix)

    def _lr(self, base: Floats, at: At) -> Floats:
        unit, divisor = (
            at.xp.ones((), at.dtype),
            at.xp.where(base == 0, at.xp.inf, base),
        )
        absolute = [inner for inner in self._inner if not inner.relative]
        value = absolute[0](base, at.t) if absolute else base
        for inner in absolute[1:]:
            value = value * (inner(base, at.t) / divisor)
        factors = (inner(unit, at.t) for inner in self._inner if inner.relative)
        return math.prod(factors, start=value)

    def _momentum(self, at: At) -> Floats | None:
        values = (inner.momentum(at.t) for inner in self._inner)
        return next((value for value in values if value is not None), None)


class SWALR(Schedule):
    """From the lr in use to the constant `swa_lr`, over `anneal_epochs`.

    The lr in use is the base lr, or that of `schedule`, which is followed until
    `swa_start`. Source: PyTorch `SWALR`.

    Example:
        >>> from graphlr.optim.lr_scheduler import StepLR
        >>> schedule = SWALR(0.5, 2, "linear", schedule=StepLR(9), swa_start=1)
        >>> schedule.sample(1.0, 5).tolist()
        [1.0, 1.0, 0.75, 0.5, 0.5]
    """

    swa_lr: NonNegative
    anneal_epochs: Count = 10
    anneal_strategy: Strategy = "cos"
    schedule: Inner = field(default=None, kw_only=True)
    swa_start: Count = field(default=0, kw_only=True)
    _levels = ("swa_lr",)

    def _lr(self, base: Floats, at: At) -> Floats:
        start = self.swa_start
        clock = at.xp.minimum(at.t, start)
        before = base if self.schedule is None else self.schedule(base, clock)
        span = (start, start + self.anneal_epochs)
        swa = at.blend(before, self.swa_lr, span, self.anneal_strategy)
        return at.xp.where(at.t < start, before, swa)
