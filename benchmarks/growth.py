"""How the time of a step grows, with a fitted slope for each of four sizes.

With the number of groups, of parameter arrays and of steps in one `graph.scan`, for a
chain of small linear layers, where little else costs anything; at a fixed batch, with
`gradient_accumulation_steps`, for MobileNetV2 (`step` has the size of the batch). SGD
with momentum, the process's own allocator untouched. The sizes of one kind take turns
in one process.
"""

import argparse
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from benchmarks import timing
from benchmarks.systems import Step, mobilenet, small
from benchmarks.systems.grouped import optimizer_of
from benchmarks.systems.training import Train, graph_step, scan_step

SLOTS = 2  # small.task counts a parameter and its momentum


class Growth(NamedTuple):
    """One kind of size.

    Attributes:
        title: Of its series.
        x_label: The size.
        each: One of it.
        sizes: What is measured.
        make: A step of a size.
        turns: Rounds, and repetitions in a turn.
        per: How many steps one repetition is.
    """

    title: str
    x_label: str
    each: str
    sizes: Sequence[int]
    make: Callable[[int], Step]
    turns: tuple[int, int]
    per: Callable[[int], int] = lambda size: 1


def by_groups(count: int) -> Step:
    """A step of 300 parameter arrays in `count` groups."""
    task = small.task(300 * SLOTS)
    graph = Train(task, optimizer_of(task.model, count))
    return lambda: float(graph(*task.batch))


def by_arrays(count: int) -> Step:
    """A step of `count` parameter arrays."""
    return graph_step(small.task(count * SLOTS))


def by_scan(steps: int) -> Step:
    """So many steps of 20 parameter arrays in one run."""
    return scan_step(small.task(20 * SLOTS), steps)


def by_parts(parts: int) -> Step:
    """A step of MobileNetV2 with a batch of 64 in `parts` parts."""
    task = mobilenet.task(64)
    graph = Train(task, gradient_accumulation_steps=parts)
    return lambda: float(np.mean(graph(*task.batch)))  # a loss for each part


def kinds(quick: bool) -> list[Growth]:
    """What is measured."""
    turns, slow = ((3, 3), (1, 1)) if quick else ((20, 50), (8, 3))
    cheap = [
        Growth(
            "step of 300 small arrays by groups",
            "groups",
            "group",
            (1, 10, 50) if quick else (1, 10, 50, 150, 300),
            by_groups,
            turns,
        ),
        Growth(
            "step of small arrays by their number",
            "arrays",
            "array",
            (10, 50) if quick else (10, 50, 150, 300, 600),
            by_arrays,
            turns,
        ),
        Growth(
            "step of 20 small arrays by the steps of one scan",
            "steps in one scan",
            "step more",
            (1, 8) if quick else (1, 2, 4, 8, 16, 32, 64, 128),
            by_scan,
            turns,
            per=lambda steps: steps,
        ),
    ]
    if quick:
        return cheap
    return [
        *cheap,
        Growth(
            "step of MobileNetV2, batch 64, by gradient_accumulation_steps",
            "parts",
            "part",
            (1, 2, 4),
            by_parts,
            slow,
        ),
    ]


def medians(growth: Growth) -> Mapping[int, float]:
    """Milliseconds of a step for every size."""
    steps = {size: growth.make(size) for size in growth.sizes}
    for step in steps.values():
        step()
    samples: Mapping[Any, list[float]] = timing.take_turns(
        {size: timing.Local(step) for size, step in steps.items()}, *growth.turns
    )
    return {
        size: 1e3 * statistics.median(samples[size]) / growth.per(size)
        for size in growth.sizes
    }


def measure(options: argparse.Namespace) -> None:
    """Measure and save."""
    series = [
        timing.series(
            growth.title,
            growth.x_label,
            growth.sizes,
            {"graphlr": medians(growth).values()},
            each=growth.each,
        )
        for growth in kinds(options.quick)
    ]
    timing.save("growth", "python -m benchmarks growth", options.results, series=series)
