"""Batches that were skipped: noticed without waiting, and told what was wrong."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from graphlr.step.carried import Skips
from graphlr.step.plan import Plan
from graphlr.step.types import Report


class News(NamedTuple):
    """What became known of skipped batches.

    Attributes:
        total: How many there were.
        in_a_row: How many of them were the last ones.
        are_new: Whether there are more than at the last look.
    """

    total: int
    in_a_row: int
    are_new: bool


class SkipWatch:
    """Looks at the counts that the last step left, without waiting for the device."""

    def __init__(self) -> None:
        self._seen = 0
        self._calls = 0

    def look(self, skips: Skips, limit: int) -> News | None:
        """What is known before the next step; None while the last one still runs.

        Args:
            skips: As the last step left them.
            limit: Every call of so many waits for the device, so that at most as many
                skips in a row go unnoticed; 0: none waits.
        """
        self._calls += 1
        due = limit and self._calls % limit == 0
        if not (due or _is_ready(skips.total)):
            return None
        total, in_a_row = int(skips.total), int(skips.in_a_row)
        news = News(total, in_a_row, total > self._seen)
        self._seen = total  # less than before, after an older state was loaded
        return news


def _is_ready(array: Any) -> bool:
    """Whether reading a JAX array doesn't wait; JAX's types don't know the method."""
    return array.is_ready()


def why_skipped(report: Report, plan: Plan) -> str:
    """The first parameter whose gradient wasn't finite, and its group.

    Args:
        report: Of the step that was skipped; waits for it.
        plan: For names.
    """
    bad = [] if report.finite is None else np.flatnonzero(~np.asarray(report.finite))
    if len(bad) == 0:
        return "the loss or a statistic isn't finite"
    path = plan.names[bad[0]]
    rest = f", and {len(bad) - 1} more" if len(bad) > 1 else ""
    return f"the gradient of {path} (group {plan.group_of(path)!r}) isn't finite{rest}"
