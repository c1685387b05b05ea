"""What happened at each step of a run."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

Stats = Mapping[str, Mapping[str, float]]  # `graph.group_stats`


@dataclasses.dataclass
class History:
    """What happened at each step, for `plot_history`.

    Attributes:
        loss: Loss at each step; device arrays are fine, they are read when drawn.
        lr: Learning rate of each group at each step.
        accuracy: `{updates applied: test accuracy from 0 to 1}`.
        update_ratio: For each group the norm of the update over that of the parameters
            at each step, from `graph.group_stats`.

    Example:
        >>> history = History()
        >>> history.add(2.3, {"head": 0.1})
        >>> history.accuracy[1] = 0.5
        >>> len(history.loss), history.lr
        (1, {'head': [0.1]})
    """

    loss: list[Any] = dataclasses.field(default_factory=list)
    lr: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    accuracy: dict[int, float] = dataclasses.field(default_factory=dict)
    update_ratio: dict[str, list[float]] = dataclasses.field(default_factory=dict)

    def add(
        self, loss: Any, lr: Mapping[str, float], stats: Stats | None = None
    ) -> None:
        """Note one step: its loss, the learning rates it used, its `group_stats`."""
        self._note(self.lr, lr)
        ratios = {name: group["update_ratio"] for name, group in (stats or {}).items()}
        self._note(self.update_ratio, ratios)
        self.loss.append(loss)

    def _note(self, curves: dict[str, list[float]], now: Mapping[str, float]) -> None:
        for name in {**curves, **now}:
            curve = curves.setdefault(name, [math.nan] * len(self.loss))
            curve.append(now.get(name, math.nan))
