"""What people look at: a progress bar, and a picture of loss, accuracy and rates.

Takes plain data and imports nothing from graphlr; matplotlib is imported where it
draws.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.box import SIMPLE
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table

Stats = Mapping[str, Mapping[str, float]]


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

    def advance(self, loss: Any, lr: Mapping[str, float]) -> None:
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


def stats_table(stats: Stats) -> Table:
    """A table of `graph.group_stats`, for `StepProgress.print` or `rich.print`.

    Example:
        >>> row = {"grad_norm": 2.0, "update_norm": 0.1, "update_ratio": 0.001}
        >>> table = stats_table({"head": {**row, "lr": 0.05}})
        >>> [column.header for column in table.columns]
        ['group', 'grad_norm', 'update_norm', 'update_ratio', 'lr']
    """
    table = Table("group", box=SIMPLE)
    for column in next(iter(stats.values()), {}):
        table.add_column(column, justify="right")
    for name, group in stats.items():
        table.add_row(name, *(f"{value:.3g}" for value in group.values()))
    return table


def plot_history(history: History, path: str | Path) -> Path:
    """Draw loss, test accuracy and every group's learning rate against the step.

    Below them, if there are any, the ratios of every group's update to its parameters:
    near 1e-3 is usual; a group far above is too fast, one far below hardly learns.

    Args:
        history: What happened.
        path: Of the picture, `loss_and_lr.png`; its folder is made.

    Returns:
        The path.

    Raises:
        ModuleNotFoundError: matplotlib is missing; names the extra to install.
        ValueError: `history` is empty.
    """
    if not history.loss:
        raise ValueError("history is empty: history.add(loss, graph.lr) at each step")
    ratios = history.update_ratio
    figure = _figure(8, 8 if ratios else 6)
    above, below, *rest = figure.subplots(3 if ratios else 2, sharex=True)
    steps = range(len(history.loss))
    above.plot(steps, [float(loss) for loss in history.loss], lw=0.8, label="loss")
    above.set(ylabel="loss", yscale="log")
    if history.accuracy:
        right = above.twinx()
        percent = [100 * value for value in history.accuracy.values()]
        right.plot([*history.accuracy], percent, "C1o-", ms=4)
        right.set_ylabel("test accuracy, %", color="C1")
    _draw(below, history.lr, "learning rate")
    if ratios:
        _draw(rest[0], ratios, "update / parameters")
        rest[0].set(yscale="log")
    above.grid(alpha=0.3)
    return _save(figure, path)


def plot_lr(
    optimizer: Any, lr_sch: Any, steps: int, path: str | Path | None = None
) -> Any:
    """Draw every group's learning rate at steps 0 to `steps - 1`, before any training.

    Args:
        optimizer: Whose groups.
        lr_sch: What `add_optimizer(lr_sch=...)` takes; None for the optimizer's own.
        steps: How many.
        path: Of a picture to write as well, `lr.png`; its folder is made.

    Returns:
        The matplotlib figure, which notebooks show.

    Raises:
        ModuleNotFoundError: matplotlib is missing; names the extra to install.
        ValueError: `steps` is below 1.

    Example:
        >>> from graphlr.optim import SGD
        >>> figure = plot_lr(SGD("**", lr=0.5), [0.3, 0.2, 0.1], 3)
        >>> figure.axes[0].lines[0].get_ydata().tolist()
        [0.3, 0.2, 0.1]
    """
    if steps < 1:
        raise ValueError(f"steps is {steps}: plot_lr(optimizer, lr_sch, steps=1000)")
    figure = _figure(8, 3.5)
    rates = optimizer.sample_lr(steps, lr_sch=lr_sch)
    _draw(figure.subplots(), rates, "learning rate")
    if path is not None:
        _save(figure, path)
    return figure


def _figure(width: float, height: float) -> Any:
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "plots need matplotlib: pip install 'graphlr[plot]'"
        ) from error
    return Figure(figsize=(width, height), layout="constrained")


def _draw(axes: Any, curves: Mapping[str, Sequence[float]], label: str) -> None:
    for name, curve in curves.items():
        axes.plot(range(len(curve)), curve, label=name)
    axes.set(xlabel="step", ylabel=label)
    axes.grid(alpha=0.3)
    if curves:
        axes.legend()


def _save(figure: Any, path: str | Path) -> Path:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    return path
