"""Pictures; matplotlib is imported where it draws."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from graphlr.report.history import History


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
