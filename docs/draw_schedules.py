"""Draws the pictures of docs/schedules.md: one for each schedule.

A caption is the call that made its curve, so it can't say anything else. The same
matplotlib writes the same bytes again.
"""

from __future__ import annotations

import argparse
import math
import textwrap
from collections.abc import Sequence
from pathlib import Path

import matplotlib.style
import numpy as np
import optax
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from graphlr.optim import SGD, lr_scheduler

STEPS = 200
STYLE = {
    "axes.edgecolor": "0.6",
    "axes.labelsize": 7,
    "font.monospace": ["DejaVu Sans Mono", "monospace"],
    "font.sans-serif": ["DejaVu Sans", "sans-serif"],
    "svg.fonttype": "none",
    "svg.hashsalt": "graphlr",
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
}
PICTURES = {  # every curve of a picture: the code that gives its schedule
    "ConstantLR": ["ConstantLR(0.4, total_iters=80)"],
    "LinearLR": [
        "LinearLR(0.1, total_iters=80)",
        "LinearLR(1.0, 0.2, total_iters=160)",
    ],
    "StepLR": ["StepLR(50, gamma=0.5)"],
    "MultiStepLR": ["MultiStepLR([60, 90, 160], gamma=0.5)"],
    "ExponentialLR": ["ExponentialLR(0.98)"],
    "PolynomialLR": [
        "PolynomialLR(160)",
        "PolynomialLR(160, power=3.0, end_lr=0.1)",
        "PolynomialLR(50, cycle=True)",
    ],
    "CosineDecayLR": ["CosineDecayLR(160)", "CosineDecayLR(160, alpha=0.3)"],
    "CosineAnnealingLR": ["CosineAnnealingLR(80)", "CosineAnnealingLR(80, 0.3)"],
    "CosineAnnealingWarmRestarts": [
        "CosineAnnealingWarmRestarts(25, T_mult=2)",
        "CosineAnnealingWarmRestarts(50, decay_rate=0.5, restart_limit=3)",
    ],
    "OneCycleLR": [
        "OneCycleLR(1.0, total_steps=200)",
        'OneCycleLR(0.7, 200, anneal_strategy="linear", three_phase=True, '
        "cycle_momentum=False)",
    ],
    "CyclicLR": [
        "CyclicLR(0.1, 1.0, step_size_up=40)",
        'CyclicLR(0.1, 1.0, 40, mode="triangular2", cycle_momentum=False)',
    ],
    "InverseSqrtLR": ["InverseSqrtLR(30)"],
    "WarmupCosineLR": [
        "WarmupCosineLR(40, 180)",
        "WarmupCosineLR(40, 180, end_lr=0.2, warmup_factor=0.5)",
    ],
    "WarmupStableDecayLR": [
        "WarmupStableDecayLR(40, 80, 60)",
        'WarmupStableDecayLR(20, 80, 60, 0.2, anneal_strategy="linear")',
    ],
    "WarmupLR": [
        "WarmupLR(CosineDecayLR(180), 0.0, 60)",
        "WarmupLR(CosineDecayLR(120), 0.0, 60, warmup_prefix=True)",
        'WarmupLR(StepLR(100), 0.3, 40, "constant")',
    ],
    "SequentialLR": [
        "SequentialLR([ConstantLR(0.2, 60), CosineDecayLR(130)], [60])",
        "SequentialLR([ConstantLR(0.2, 60), CosineDecayLR(130)], [60], "
        "interval_rescaling=False)",
    ],
    "ChainedScheduler": ["ChainedScheduler([LinearLR(0.1, 1.0, 40), StepLR(70, 0.5)])"],
    "SWALR": [
        "SWALR(0.3, 40, schedule=CosineDecayLR(200), swa_start=130)",
        'SWALR(0.1, 80, "linear")',
    ],
    "LambdaLR": ["LambdaLR(lambda step: 1 / (1 + step / 40))"],
    "MultiplicativeLR": ["MultiplicativeLR(lambda step: 0.97 if step < 60 else 0.995)"],
    "PiecewiseLR": ["PiecewiseLR([(50, 0.3), (90, 1.0), (1, 0.1)])"],
    "FunctionLR": ["as_schedule(optax.cosine_onecycle_schedule(180, 1.0))"],
    "TableLR": ["as_schedule([0.5, 1.0, 0.4, 0.2, 0.1], every=40)"],
}
PLATEAU = 'ReduceLROnPlateau(SGD("**", lr=1.0), factor=0.5, patience=24)'
NAMES = [*PICTURES, "ReduceLROnPlateau"]


def evaluate(code: str) -> object:
    """What `code` gives, with every schedule, `SGD` and optax in reach."""
    return eval(code, {**vars(lr_scheduler), "SGD": SGD, "optax": optax})


def draw_schedules(axes: Axes, codes: Sequence[str]) -> None:
    """One curve for each of `codes` from a base lr of 1; the momentum dashed."""
    for i, code in enumerate(codes):
        schedule = evaluate(code)
        axes.plot(schedule.sample(1.0, STEPS), f"C{i}", lw=1.4)
        momentum = schedule.momentum(np.arange(STEPS))
        if momentum is not None:
            axes.plot(momentum, f"C{i}--", lw=0.8)
            axes.text(160, momentum[160] + 0.03, "momentum", size=6, ha="center")
    axes.set(xlabel="step")


def draw_plateau(axes: Axes, code: str) -> None:
    """A metric that falls and stalls twice, and the rate that answers."""
    plateau = evaluate(code)
    metrics, rates = [], []
    for i in range(STEPS):
        metrics.append(max(math.exp(-i / 20), min(0.62, 1.52 - i / 100), 0.32))
        plateau.step(metrics[-1])
        rates.append(plateau.optimizer.lr()["group0"])
    axes.plot(rates, "C0", lw=1.4)
    axes.plot(metrics, "0.4", ls="--", lw=0.8)
    axes.text(60, metrics[60] + 0.03, "metric", size=6, ha="center")
    axes.set(xlabel="evaluation")


def picture(name: str) -> Figure:
    """The picture of the schedule called `name`."""
    figure = Figure(figsize=(3.4, 2.2))
    axes = figure.add_axes((0.13, 0.17, 0.84, 0.62))
    codes = PICTURES.get(name, [PLATEAU])
    if name in PICTURES:
        draw_schedules(axes, codes)
    else:
        draw_plateau(axes, PLATEAU)
    axes.set(xlim=(0, STEPS), ylim=(-0.03, 1.08))
    axes.set(xticks=range(0, STEPS + 1, 50), yticks=(0, 0.5, 1))
    axes.set_ylabel("lr", labelpad=1)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.3, lw=0.5)
    lines = [
        (line, f"C{i}")
        for i, code in enumerate(codes)
        for line in textwrap.wrap(code, 62, subsequent_indent="  ")
    ]
    for i, (line, color) in enumerate(reversed(lines)):
        y = 0.82 + 0.057 * i
        figure.text(0.03, y, line, color=color, size=6, family="monospace")
    return figure


def draw(folder: Path) -> list[Path]:
    """Write every picture into `folder`, which is made.

    Returns:
        Their paths.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    with matplotlib.style.context(["default", STYLE]):
        for name in NAMES:
            paths.append(folder / f"{name}.svg")
            nothing = {"Date": None, "Creator": None}
            picture(name).savefig(paths[-1], metadata=nothing)
    return paths


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    here = Path(__file__).parent / "schedules"
    parser.add_argument(
        "--out",
        type=Path,
        default=here,
        metavar="FOLDER",
        help="where to write the pictures (default: docs/schedules)",
    )
    paths = draw(parser.parse_args(arguments).out)
    size = sum(path.stat().st_size for path in paths)
    print(f"{len(paths)} pictures, {size / 1000:.0f} kB, in {paths[0].parent}")


if __name__ == "__main__":
    main()
