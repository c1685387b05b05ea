"""Batches that were skipped: noticed, named in the log, and stopped when too many."""

from __future__ import annotations

import logging
from typing import Any

import jax.numpy as jnp
import numpy as np

_log = logging.getLogger(__name__)


class SkipWatch:
    """Looks at what the last step reported, without waiting for the device.

    Args:
        runner: Whose memory and report to look at.
    """

    def __init__(self, runner: Any) -> None:
        self._runner = runner
        self._seen = 0
        self._calls = 0

    def look(self) -> None:
        """Log skips that are new; called before each step.

        A step that is still computed is not waited for, except for one call in as many
        as may be skipped in a row.

        Raises:
            FloatingPointError: Too many in a row; names the first bad parameter.
        """
        memory = self._runner.memory
        if "skipped.total" not in memory:
            return
        self._calls += 1
        limit = self._runner.config.skip_nonfinite
        due = limit and self._calls % limit == 0
        if not (due or memory["skipped.total"].is_ready()):
            return
        total, in_a_row = (int(memory[f"skipped.{k}"]) for k in ("total", "in_a_row"))
        if total > self._seen:
            why = f"; {self.why()}" if in_a_row else ""
            level = logging.WARNING if limit else logging.INFO
            _log.log(level, "%s: %d skipped%s", self._runner.name, total, why)
            self._seen = total
        if limit and in_a_row >= limit:
            why = self.why()
            memory["skipped.in_a_row"] = jnp.zeros((), jnp.int32)
            raise FloatingPointError(
                f"{in_a_row} batches in a row gave a NaN or an infinity and were "
                f"skipped (config.skip_nonfinite = {limit}): {why}. Everything "
                "is as it was before them. Look at the batch, lower the learning rate, "
                "or call graph.eager(...) under jax.debug_nans(True) to find where"
            )

    def why(self) -> str:
        """The first parameter whose gradient wasn't finite, and its group."""
        plan, finite = self._runner.plan, self._runner.report.get("finite")
        bad = [] if finite is None else np.flatnonzero(~np.asarray(finite)).tolist()
        if not bad:
            return "the loss or a statistic isn't finite"
        path = plan.names[bad[0]]
        group = next(labels[path] for labels in plan.labels if path in labels)
        rest = f", and {len(bad) - 1} more" if len(bad) > 1 else ""
        return f"the gradient of {path} (group {group!r}) isn't finite{rest}"
