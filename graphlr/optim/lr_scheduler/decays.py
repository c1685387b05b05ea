"""Schedules of one formula: steps, lines, powers, cosines, functions."""

import math
from collections.abc import Sequence
from dataclasses import field
from typing import Annotated

import numpy as np

from graphlr.optim.lr_scheduler.base import (
    At,
    Floats,
    Schedule,
    float64,
    host_values,
)
from graphlr.optim.lr_scheduler.settings import (
    Above0,
    Count,
    Flag,
    Function,
    NonNegative,
    Positive,
    Steps,
    Strategy,
    Unit,
    each,
    fault,
    pair,
    starting,
)


class StepLR(Schedule):
    """``base * gamma ** (t // step_size)``. Source: PyTorch and OneFlow `StepLR`.

    Example:
        >>> StepLR(step_size=2, gamma=0.5).sample(1.0, 5).tolist()
        [1.0, 1.0, 0.5, 0.5, 0.25]
    """

    step_size: Positive
    gamma: NonNegative = 0.1

    def _lr(self, base: Floats, at: At) -> Floats:
        return base * at.power(self.gamma, at.t // self.step_size)


class MultiStepLR(Schedule):
    """``base * gamma ** (milestones reached)``; a repeated milestone counts twice.

    Source: PyTorch and OneFlow `MultiStepLR`.

    Example:
        >>> MultiStepLR([1, 3], gamma=0.5).sample(1.0, 5).tolist()
        [1.0, 0.5, 0.5, 0.25, 0.25]
    """

    milestones: Steps
    gamma: NonNegative = 0.1

    def _lr(self, base: Floats, at: At) -> Floats:
        return base * at.power(self.gamma, at.reached(self.milestones))


class ConstantLR(Schedule):
    """``base * factor`` for `total_iters` steps, then ``base``.

    With ``total_iters=0`` the factor is never used, as in PyTorch's closed form (its
    recursive form keeps it for ever). Source: PyTorch and OneFlow `ConstantLR`.

    Example:
        >>> ConstantLR(factor=0.5, total_iters=2).sample(1.0, 4).tolist()
        [0.5, 0.5, 1.0, 1.0]
    """

    factor: Annotated[float, starting("constant")] = 1 / 3
    total_iters: Count = 5

    def _lr(self, base: Floats, at: At) -> Floats:
        return base * at.xp.where(at.t < self.total_iters, self.factor, 1.0)


class LinearLR(Schedule):
    """``base`` times a line from `start_factor` to `end_factor` over `total_iters`.

    Source: PyTorch and OneFlow `LinearLR`.

    Example:
        >>> LinearLR(start_factor=0.5, total_iters=2).sample(1.0, 4).tolist()
        [0.5, 0.75, 1.0, 1.0]
    """

    start_factor: Annotated[float, starting("linear")] = 1 / 3
    end_factor: Unit = 1.0
    total_iters: Positive = 5

    def _lr(self, base: Floats, at: At) -> Floats:
        return base * at.blend(
            self.start_factor, self.end_factor, (0, self.total_iters)
        )


class ExponentialLR(Schedule):
    """``base * gamma ** t``. Source: PyTorch and OneFlow `ExponentialLR`.

    Example:
        >>> ExponentialLR(gamma=0.5).sample(1.0, 4).tolist()
        [1.0, 0.5, 0.25, 0.125]
    """

    gamma: NonNegative

    def _lr(self, base: Floats, at: At) -> Floats:
        return base * at.power(self.gamma, at.t)


class PolynomialLR(Schedule):
    """``end_lr + (base - end_lr) * (1 - t / total_iters) ** power``, then `end_lr`.

    With ``cycle=True`` the period grows by `total_iters` whenever it is over, and step
    0 counts as 1. `end_lr` is absolute; OneFlow's default for it is 1e-4.
    Source: PyTorch and OneFlow `PolynomialLR`.

    Example:
        >>> PolynomialLR(total_iters=4, power=2.0).sample(1.0, 6).tolist()
        [1.0, 0.5625, 0.25, 0.0625, 0.0, 0.0]
    """

    total_iters: Positive = 5
    power: Above0 = 1.0
    end_lr: NonNegative = 0.0
    cycle: Flag = False
    _levels = ("end_lr",)

    def _lr(self, base: Floats, at: At) -> Floats:
        xp, n = at.xp, self.total_iters
        t = xp.maximum(at.t, 1) if self.cycle else xp.minimum(at.t, n)
        end = n * -(-t // n) if self.cycle else xp.full_like(t, n)
        whole = end.astype(at.dtype)
        left = ((end - t).astype(at.dtype) / whole) ** self.power
        part = xp.minimum(t.astype(at.dtype) / whole, 1 - 1e-7)  # log1p(-1) is -inf
        done = xp.where(t < end, -xp.expm1(self.power * xp.log1p(-part)), 1.0)
        return base * left + self.end_lr * done


class CosineDecayLR(Schedule):
    """``base`` times half a cosine from 1 to `alpha` over `decay_steps`, then held.

    `alpha` is a fraction of the base lr. Source: OneFlow `CosineDecayLR`.

    Example:
        >>> CosineDecayLR(decay_steps=2, alpha=0.5).sample(1.0, 4).round(3).tolist()
        [1.0, 0.75, 0.5, 0.5]
    """

    decay_steps: Positive
    alpha: NonNegative = 0.0

    def _lr(self, base: Floats, at: At) -> Floats:
        return base * at.blend(1.0, self.alpha, (0, self.decay_steps), "cos")


class CosineAnnealingLR(Schedule):
    """``eta_min + (base - eta_min) * (1 + cos(pi * t / T_max)) / 2``, period 2 `T_max`.

    It climbs back after `T_max`: `CosineDecayLR` stays down. `eta_min` is absolute.
    Source: PyTorch and OneFlow `CosineAnnealingLR`.

    Example:
        >>> CosineAnnealingLR(T_max=2).sample(1.0, 5).round(3).tolist()
        [1.0, 0.5, 0.0, 0.5, 1.0]
    """

    T_max: Positive
    eta_min: NonNegative = 0.0
    _levels = ("eta_min",)

    def _lr(self, base: Floats, at: At) -> Floats:
        fold = self.T_max - abs(self.T_max - at.t % (2 * self.T_max))
        return at._replace(t=fold).blend(base, self.eta_min, (0, self.T_max), "cos")


class LambdaLR(Schedule):
    """``base * lr_lambda(t)``, for a function from a step to one number.

    On the host the function gets Python ints. In a program it is traced in float64; one
    that cannot be traced (``if step < 6``, ``math.cos``) is called back on the host at
    each step, which costs a transfer and cannot be exported: prefer jax.numpy.
    Source: PyTorch `LambdaLR`.

    Example:
        >>> LambdaLR(lambda step: 0.5**step).sample(1.0, 3).tolist()
        [1.0, 0.5, 0.25]
    """

    lr_lambda: Function

    def _lr(self, base: Floats, at: At) -> Floats:
        return base * at.call(self.lr_lambda, float64)


class MultiplicativeLR(Schedule):
    """``base * lr_lambda(1) * ... * lr_lambda(t)``; ``lr_lambda(0)`` is never called.

    The product is kept on the host, so a program calls back at each step: a constant
    factor is `ExponentialLR`, which does not. Source: PyTorch `MultiplicativeLR`.

    Example:
        >>> MultiplicativeLR(lambda step: 0.5).sample(1.0, 4).tolist()
        [1.0, 0.5, 0.25, 0.125]
    """

    lr_lambda: Function
    _last: tuple[int, float] = field(
        default=(0, 1.0), init=False, repr=False, compare=False
    )

    def _product(self, step: int) -> float:
        """The product up to `step`, continued from the last one that was asked for."""
        done, product = self._last if self._last[0] <= step else (0, 1.0)
        product *= math.prod(host_values(self.lr_lambda, range(done + 1, step + 1)))
        object.__setattr__(self, "_last", (step, product))
        return product

    def _lr(self, base: Floats, at: At) -> Floats:
        return base * at.call_back(self._product)


class PiecewiseLR(Schedule):
    """Each ``(steps, lr)`` in turn: `lr` holds for so many steps, the last for ever.

    The base lr is ignored. Source: the table of a hand-written loop.

    Example:
        >>> PiecewiseLR([(1, 0.1), (2, 0.01), (3, 0.001)]).sample(1.0, 5).tolist()
        [0.1, 0.01, 0.01, 0.001, 0.001]
    """

    pieces: Annotated[Sequence[tuple[int, float]], each(pair, least=1)]
    _levels = ("pieces",)

    def _lr(self, base: Floats, at: At) -> Floats:
        steps, values = zip(*self.pieces, strict=True)
        ends = np.cumsum(steps[:-1], dtype=np.int64).clip(max=2**31 - 1)
        return at.xp.asarray(values, at.dtype)[at.reached(ends)]


class InverseSqrtLR(Schedule):
    """``base * sqrt(warmup_iters / t)`` after a line from `warmup_factor` to 1.

    Source: the Transformer's schedule, as `inverse_sqrt` of Hugging Face.

    Example:
        >>> InverseSqrtLR(warmup_iters=2).sample(1.0, [0, 1, 2, 8]).tolist()
        [0.0, 0.5, 1.0, 0.5]
    """

    warmup_iters: Positive
    warmup_factor: Unit = 0.0

    def _lr(self, base: Floats, at: At) -> Floats:
        n = self.warmup_iters
        warm = at.blend(self.warmup_factor, 1.0, (0, n))
        root = at.xp.sqrt(n / at.xp.maximum(at.t, n).astype(at.dtype))
        return base * at.xp.where(at.t < n, warm, root)


class WarmupStableDecayLR(Schedule):
    """``base`` times a warm-up line to 1, a plateau, and a descent to `end_factor`.

    Source: `warmup_stable_decay` of Hugging Face (MiniCPM).

    Example:
        >>> schedule = WarmupStableDecayLR(2, 2, 2, anneal_strategy="linear")
        >>> schedule.sample(1.0, 8).tolist()
        [0.0, 0.5, 1.0, 1.0, 1.0, 0.5, 0.0, 0.0]
    """

    warmup_iters: Count
    stable_iters: Count
    decay_iters: Positive
    end_factor: Unit = 0.0
    warmup_factor: Unit = 0.0
    anneal_strategy: Strategy = "cos"

    def _lr(self, base: Floats, at: At) -> Floats:
        start = self.warmup_iters + self.stable_iters
        fall = (start, start + self.decay_iters)
        warm = at.blend(self.warmup_factor, 1.0, (0, self.warmup_iters))
        decay = at.blend(1.0, self.end_factor, fall, self.anneal_strategy)
        return base * at.xp.where(at.t < start, warm, decay)


class WarmupCosineLR(Schedule):
    """A line from ``base * warmup_factor`` to ``base``, then half a cosine to `end_lr`.

    `total_iters` includes the warm-up; `end_lr` is absolute and stays. Source:
    `cosine` of Hugging Face and timm.

    Example:
        >>> WarmupCosineLR(2, total_iters=4).sample(1.0, 6).round(3).tolist()
        [0.0, 0.5, 1.0, 0.5, 0.0, 0.0]
    """

    warmup_iters: Count
    total_iters: Positive
    end_lr: NonNegative = 0.0
    warmup_factor: Unit = 0.0
    _levels = ("end_lr",)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.total_iters <= self.warmup_iters:
            setting = "WarmupCosineLR: total_iters"
            need = f"more than warmup_iters={self.warmup_iters}"
            fix = f"={self.warmup_iters + self.total_iters}"
            raise fault(ValueError, setting, self.total_iters, need, fix)

    def _lr(self, base: Floats, at: At) -> Floats:
        n = self.warmup_iters
        warm = at.blend(base * self.warmup_factor, base, (0, n))
        cosine = at.blend(base, self.end_lr, (n, self.total_iters), "cos")
        return at.xp.where(at.t < n, warm, cosine)
