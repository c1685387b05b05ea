"""Schedules that go up and down: restarts, one-cycle, triangles."""

import math
from collections.abc import Callable, Iterable
from typing import Annotated, Any

import numpy as np
from jax.typing import ArrayLike

from graphlr.optim.lr_scheduler.base import (
    At,
    Floats,
    Ints,
    Schedule,
    float64,
)
from graphlr.optim.lr_scheduler.settings import (
    Above0,
    Count,
    Flag,
    NonNegative,
    OptionalPositive,
    Positive,
    Strategy,
    Unit,
    choice,
    fault,
    function,
    optional,
)


class CosineAnnealingWarmRestarts(Schedule):
    """Cosines from ``base * decay_rate ** cycle`` to `eta_min`, each `T_mult` longer.

    After `restart_limit` cycles (0: no limit) `eta_min` stays. Source: PyTorch and
    OneFlow `CosineAnnealingWarmRestarts`; OneFlow alone has the last two arguments, and
    finds the cycle by a rounded logarithm that misses some restarts.

    Example:
        >>> schedule = CosineAnnealingWarmRestarts(T_0=2, T_mult=2)
        >>> schedule.sample(1.0, 7).round(3).tolist()
        [1.0, 0.5, 1.0, 0.854, 0.5, 0.146, 1.0]
    """

    T_0: Positive
    T_mult: Positive = 1
    eta_min: NonNegative = 0.0
    decay_rate: NonNegative = 1.0
    restart_limit: Count = 0
    _levels = ("eta_min",)

    def _cycle(self, at: At) -> tuple[Ints, Ints, Ints]:
        """The index of the cycle, the steps done in it and its length."""
        if self.T_mult == 1:
            return at.t // self.T_0, at.t % self.T_0, at.xp.full_like(at.t, self.T_0)
        starts, length = [0], self.T_0
        while starts[-1] + length < 2**31:
            starts.append(starts[-1] + length)
            length *= self.T_mult
        table = np.array([starts, np.diff([*starts, 2**31 - 1])], at.t.dtype)
        cycle = at.reached(starts[1:])
        start, length = at.xp.asarray(table)[:, cycle]
        return cycle, at.t - start, length

    def _lr(self, base: Floats, at: At) -> Floats:
        cycle, done, length = self._cycle(at)
        whole = length.astype(at.dtype)
        down = at.share(done.astype(at.dtype), whole, "cos") * self.eta_min
        up = at.share((length - done).astype(at.dtype), whole, "cos")
        over = (cycle >= self.restart_limit) & (self.restart_limit > 0)
        value = base * at.power(self.decay_rate, cycle) * up + down
        return at.xp.where(over, self.eta_min, value)


class OneCycleLR(Schedule):
    """From ``max_lr / div_factor`` up to `max_lr`, then far down; momentum mirrored.

    The base lr is ignored. Beyond `total_steps` the last value holds, and `sample`
    raises. Source: PyTorch `OneCycleLR`, whose first phase ends at
    ``pct_start * total_steps - 1``.

    Example:
        >>> schedule = OneCycleLR(max_lr=1.0, total_steps=10)
        >>> schedule.sample(0.1, 10).round(2).tolist()
        [0.04, 0.52, 1.0, 0.95, 0.81, 0.61, 0.39, 0.19, 0.05, 0.0]
        >>> schedule.momentum(2)
        0.85
    """

    max_lr: NonNegative
    total_steps: OptionalPositive = None
    epochs: OptionalPositive = None
    steps_per_epoch: OptionalPositive = None
    pct_start: Unit = 0.3
    anneal_strategy: Strategy = "cos"
    cycle_momentum: Flag = True
    base_momentum: NonNegative = 0.85
    max_momentum: NonNegative = 0.95
    div_factor: Above0 = 25.0
    final_div_factor: Above0 = 1e4
    three_phase: Flag = False
    _levels = ("max_lr",)

    def __post_init__(self) -> None:
        if isinstance(self.pct_start, int):  # 1 may mean 1 % or all of it
            setting, fix = "OneCycleLR: pct_start", f"={float(self.pct_start)}"
            raise fault(ValueError, setting, self.pct_start, "a float from 0 to 1", fix)
        super().__post_init__()
        if not self._length:
            need = "given, nor are both epochs and steps_per_epoch"
            fix = "OneCycleLR(max_lr=0.1, total_steps=1000)"
            raise fault(ValueError, "OneCycleLR: total_steps", None, need, fix)

    def sample(self, base_lr: ArrayLike, steps: int | Iterable[int]) -> np.ndarray:
        """As `Schedule.sample`; a step beyond `total_steps` is a ValueError."""
        listed = [*(steps if isinstance(steps, Iterable) else range(steps))]
        if (last := max(listed, default=0)) > self._length * self.every:
            setting, fix = "OneCycleLR: step", f"OneCycleLR(..., total_steps={last})"
            raise fault(ValueError, setting, last, f"<= {self._length}", fix)
        return super().sample(base_lr, listed)

    @property
    def _length(self) -> int:
        return self.total_steps or (self.epochs or 0) * (self.steps_per_epoch or 0)

    def _through(self, at: At, *levels: Floats) -> Floats:
        """The value at t of a curve that goes from level to level."""
        n, peak = self._length, self.pct_start * self._length - 1
        ends = (0.0, peak, 2 * peak, n - 1) if self.three_phase else (0.0, peak, n - 1)
        value = levels[-1]
        for i in reversed(range(len(ends) - 1)):
            span = (ends[i], ends[i + 1])
            phase = at.blend(levels[i], levels[i + 1], span, self.anneal_strategy)
            value = at.xp.where(at.t <= math.floor(span[1]), phase, value)
        return value

    def _lr(self, base: Floats, at: At) -> Floats:
        start = self.max_lr / self.div_factor
        end = start / self.final_div_factor
        return self._through(at, *self._levels_of(start, self.max_lr, end))

    def _momentum(self, at: At) -> Floats | None:
        if not self.cycle_momentum:
            return None
        low, high = self.base_momentum, self.max_momentum
        return self._through(at, *self._levels_of(high, low, high))

    def _levels_of(self, start: float, peak: float, end: float) -> tuple[float, ...]:
        return (start, peak, start, end) if self.three_phase else (start, peak, end)


class CyclicLR(Schedule):
    """Triangles between its own `base_lr` and `max_lr`; momentum mirrored.

    The group's lr is ignored. The height is constant ("triangular"), halved each cycle
    ("triangular2"), ``gamma ** t`` ("exp_range"), or `scale_fn` of the cycle, counted
    from 1, or of the step ("iterations"). Source: PyTorch `CyclicLR`.

    Example:
        >>> CyclicLR(0.0, 1.0, step_size_up=2).sample(0.1, 6).tolist()
        [0.0, 0.5, 1.0, 0.5, 0.0, 0.5]
    """

    base_lr: NonNegative
    max_lr: NonNegative
    step_size_up: Positive = 2000
    step_size_down: OptionalPositive = None
    mode: Annotated[str, choice("triangular", "triangular2", "exp_range")] = (
        "triangular"
    )
    gamma: NonNegative = 1.0
    scale_fn: Annotated[Callable[[Any], Any] | None, optional(function)] = None
    scale_mode: Annotated[str, choice("cycle", "iterations")] = "cycle"
    cycle_momentum: Flag = True
    base_momentum: NonNegative = 0.8
    max_momentum: NonNegative = 0.9
    _levels = ("base_lr", "max_lr")

    def _height(self, at: At) -> Floats:
        up = self.step_size_up
        down = self.step_size_down or up
        cycle, place = at.t // (up + down) + 1, at.t % (up + down)
        rise, fall = place.astype(at.dtype), (up + down - place).astype(at.dtype)
        side = at.xp.where(place <= up, rise / up, fall / down)
        if self.scale_fn is not None:
            count = cycle if self.scale_mode == "cycle" else at.t
            return side * at._replace(t=count).call(self.scale_fn, float64)
        if self.mode == "triangular2":
            return side * at.power(0.5, cycle - 1)
        return side if self.mode == "triangular" else side * at.power(self.gamma, at.t)

    def _lr(self, base: Floats, at: At) -> Floats:
        return self.base_lr + (self.max_lr - self.base_lr) * self._height(at)

    def _momentum(self, at: At) -> Floats | None:
        low, high = self.base_momentum, self.max_momentum
        return high - (high - low) * self._height(at) if self.cycle_momentum else None
