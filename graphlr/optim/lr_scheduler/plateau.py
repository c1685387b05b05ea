"""`ReduceLROnPlateau`: lower the learning rates when a metric stops improving."""

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, SupportsFloat

from graphlr.optim.lr_scheduler.settings import (
    at_least_0,
    below_1,
    choice,
    count,
    each,
    fault,
)

_log = logging.getLogger(__name__)

_CHECKS = {
    "mode": choice("min", "max"),
    "factor": below_1,
    "patience": count,
    "threshold": at_least_0,
    "threshold_mode": choice("rel", "abs"),
    "cooldown": count,
    "eps": at_least_0,
}
_STATE = ("best", "num_bad_epochs", "cooldown_counter")


class HasRates(Protocol):
    """What has groups whose rates can be read and scaled: an optimizer."""

    def lr(self) -> dict[str, float]:
        """Every group's learning rate now, by name."""
        ...

    def scale_lr(self, factor: Mapping[str, float]) -> None:
        """Multiply the rates of these groups."""
        ...


class ReduceLROnPlateau:
    """Multiply every group's learning rate by `factor` when a metric stops improving.

    No function of the step, so no schedule: call `plateau.step(metric)` after each
    evaluation, beside whatever schedule the groups have. It scales the optimizer's live
    numbers, so nothing recompiles. A metric that is NaN is no improvement.
    Source: PyTorch `ReduceLROnPlateau`.

    Args:
        optimizer: Whose groups to scale.
        mode: Whether the metric should fall ("min") or rise ("max").
        factor: New rate over old rate, at least 0 and below 1.
        patience: Evaluations without improvement that are borne.
        threshold: What counts as an improvement: in "min" mode a metric below
            `best * (1 - threshold)` ("rel") or `best - threshold` ("abs"); take "abs"
            where the metric may be negative.
        threshold_mode: "rel" or "abs".
        cooldown: Evaluations after a reduction that don't count.
        min_lr: Lowest rate to reduce to, one for all groups or a list with one for
            each; it bounds the rate that `optimizer.lr()` shows.
        eps: A reduction of a rate by no more than this is left out.

    Attributes:
        best: Best metric so far.
        num_bad_epochs: Evaluations without improvement since.
        cooldown_counter: Evaluations left of the cooldown.

    Raises:
        TypeError: `optimizer` is none; a setting is no number.
        ValueError: A setting is out of range; `min_lr` has another length.

    Example:
        >>> from graphlr.optim import SGD
        >>> optimizer = SGD("**", lr=0.5)
        >>> plateau = ReduceLROnPlateau(optimizer, factor=0.5, patience=1)
        >>> [plateau.step(loss) for loss in (1.0, 0.5, 0.5, 0.5)]
        [False, False, False, True]
        >>> optimizer.lr()
        {'group0': 0.25}
    """

    best: float
    num_bad_epochs: int
    cooldown_counter: int

    def __init__(
        self,
        optimizer: HasRates,
        mode: str = "min",
        factor: float = 0.1,
        patience: int = 10,
        threshold: float = 1e-4,
        threshold_mode: str = "rel",
        cooldown: int = 0,
        min_lr: float | Sequence[float] = 0,
        eps: float = 1e-8,
    ) -> None:
        given = locals()
        if not hasattr(optimizer, "scale_lr"):
            setting, fix = (
                "ReduceLROnPlateau: optimizer",
                "glr.optim.SGD(model, lr=0.1)",
            )
            raise fault(TypeError, setting, optimizer, "an optimizer", fix)
        self.optimizer = optimizer
        self._settings = {
            key: check(f"ReduceLROnPlateau: {key}", given[key])
            for key, check in _CHECKS.items()
        }
        self._min_lr = min_lr
        self._floors()
        self.best = math.inf if mode == "min" else -math.inf
        self.num_bad_epochs = self.cooldown_counter = 0

    def step(self, metric: SupportsFloat) -> bool:
        """Note one evaluation, and reduce the rates if it was one too many.

        Args:
            metric: A number, or an array of one; reading it waits for the device.

        Returns:
            Whether a rate was reduced.

        Raises:
            RuntimeError: A group was added, and `min_lr` lists the others only.
        """
        floors, metric = self._floors(RuntimeError), float(metric)
        self.num_bad_epochs += 1
        if self._is_better(metric):
            self.best, self.num_bad_epochs = metric, 0
        if self.cooldown_counter > 0:
            self.cooldown_counter -= 1
            self.num_bad_epochs = 0
        if self.num_bad_epochs <= self._settings["patience"]:
            return False
        self.cooldown_counter = self._settings["cooldown"]
        self.num_bad_epochs = 0
        return self._reduce(floors)

    def state_dict(self) -> dict[str, float]:
        """What a resumed run needs; the rates are in the optimizer's own state."""
        return {key: getattr(self, key) for key in _STATE}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave.

        Raises:
            KeyError: An entry is missing.
        """
        best, *counts = [state[key] for key in _STATE]
        self.best = float(best)
        self.num_bad_epochs, self.cooldown_counter = map(int, counts)

    def _is_better(self, metric: float) -> bool:
        sign = 1 if self._settings["mode"] == "min" else -1
        least = self._settings["threshold"]
        if self._settings["threshold_mode"] == "rel":
            return sign * metric < sign * self.best * (1 - sign * least)
        return sign * metric < sign * self.best - least

    def _reduce(self, floors: Mapping[str, float]) -> bool:
        """Scale each group whose rate gets smaller by more than eps."""
        factors = {}
        for name, rate in self.optimizer.lr().items():
            new = max(rate * self._settings["factor"], floors[name])
            if rate - new > self._settings["eps"]:
                factors[name] = new / rate
                _log.info("plateau: group %r goes from lr %g to %g", name, rate, new)
        self.optimizer.scale_lr(factors)
        return bool(factors)

    def _floors(self, error: type[Exception] = ValueError) -> dict[str, float]:
        """The lowest rate of every group, by name."""
        names, setting = list(self.optimizer.lr()), "ReduceLROnPlateau: min_lr"
        if not isinstance(self._min_lr, list | tuple):
            floor: float = at_least_0(setting, self._min_lr)
            return dict.fromkeys(names, floor)
        floors = each(at_least_0)(setting, self._min_lr)
        if len(floors) != len(names):
            need = f"one number, or one for each of the {len(names)} groups {names}"
            raise fault(error, setting, self._min_lr, need, "=0.0")
        return dict(zip(names, floors, strict=True))

    def __repr__(self) -> str:
        settings = ", ".join(f"{k}={v!r}" for k, v in self._settings.items())
        return f"ReduceLROnPlateau({settings}, min_lr={self._min_lr!r})"
