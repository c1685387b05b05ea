"""A progress bar with the loss and every group's learning rate."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Self, SupportsFloat

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table


class StepProgress:
    """A progress bar over steps with the loss and every group's learning rate.

    Reads the loss only a few times a second, so it doesn't make the device wait.

    Args:
        total: Number of steps.
        console: Where to draw; standard output by default.

    Example:
        >>> with StepProgress(2, Console(quiet=True)) as progress:
        ...     progress.advance(2.3, {"head": 0.1})
        ...     progress.advance(2.1, {"head": 0.1})
        >>> progress.text
        'loss 2.1000  lr head 0.1'
    """

    def __init__(self, total: int, console: Console | None = None) -> None:
        self.text = ""
        self._progress = Progress(
            TextColumn("{task.completed}/{task.total}"),
            BarColumn(bar_width=10),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[text]}"),
            console=console,
            refresh_per_second=4,
        )
        self._task = self._progress.add_task("train", total=total, text="")
        self._shown = -1.0

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def advance(self, loss: SupportsFloat, lr: Mapping[str, float]) -> None:
        """One step is done; `loss` may be a device array that isn't ready yet."""
        now = self._progress.get_time()
        last = self._progress.tasks[0].remaining == 1
        if last or now - self._shown > 0.25:
            rates = "  ".join(f"{name} {rate:.2g}" for name, rate in lr.items())
            self.text = f"loss {float(loss):.4f}  lr {rates}"
            self._shown = now
        self._progress.update(self._task, advance=1, text=self.text)

    def print(self, text: str | Table) -> None:
        """Print a line or a table above the bar."""
        self._progress.console.print(text, highlight=False, soft_wrap=True)
