"""What parameter groups cost: 1 to 300 of them, run time and build time.

graphlr beside "the usual optax loop": one `jax.jit` whose arguments are the parameters
and the state of `optax.multi_transform` as nested trees, donated. An update alone is a
step whose loss is zero and its gradient the parameters, which cost nothing.
Every group has a learning rate of its own and at least one parameter; MobileNetV2 has
158, so 300 groups are shown with a chain of 8×8 layers. A build is the first call:
trace, compile and one run. All are JAX programs of one process and take turns.
"""

import argparse
import functools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from benchmarks import timing
from benchmarks.systems import Step, mobilenet, small
from benchmarks.systems.grouped import KINDS, changing, graphlr, update_of, usual_loop
from benchmarks.systems.training import Task

USUAL = "optax multi_transform"
SYSTEMS = {"graphlr": graphlr, USUAL: usual_loop}


class Work(NamedTuple):
    """What is measured.

    Attributes:
        title: Of its tables.
        task: Makes a task.
        counts: How many groups.
        turns: Builds of each variant, rounds, repetitions in a turn.
    """

    title: str
    task: Callable[[], Task]
    counts: Sequence[int]
    turns: tuple[int, int, int]


class Found(NamedTuple):
    """Samples by variant, in seconds, and the steps that were measured."""

    run: dict[str, list[float]]
    build: dict[str, list[float]]
    steps: dict[str, Step]


def name_of(system: str, kind: str, count: int) -> str:
    """A variant's name."""
    return f"{system}, {kind}, {count} group{'s' * (count > 1)}"


def built(
    makers: Mapping[str, Callable[[], Step]], times: int
) -> tuple[dict[str, list[float]], dict[str, Step]]:
    """Seconds of `times` first calls of each, in turns, and the steps made last."""
    seconds: dict[str, list[float]] = {name: [] for name in makers}
    steps: dict[str, Step] = {}
    next(iter(makers.values()))()()  # pays for what only the very first one loads
    for _ in range(times):
        for name, make in makers.items():
            steps[name] = make()
            start = time.perf_counter()
            steps[name]()
            seconds[name].append(time.perf_counter() - start)
    return seconds, steps


def measured(work: Work) -> Found:
    """Both systems, both optimizers, every number of groups."""
    makers = {
        name_of(system, kind, count): functools.partial(
            lambda of, *variant: of(work.task(), *variant), of, kind, count
        )
        for kind in KINDS
        for count in work.counts
        for system, of in SYSTEMS.items()
    }
    builds, *turns = work.turns
    seconds, steps = built(makers, builds)
    run = timing.take_turns(
        {name: timing.Local(step) for name, step in steps.items()}, *turns
    )
    return Found(run, seconds, steps)


def tables_of(work: Work, found: Found) -> list[dict[str, Any]]:
    """Runs and builds, relative to one group of graphlr."""
    base = name_of("graphlr", KINDS[0], 1)
    return [
        {"title": title, "unit": "ms", "rows": timing.rows_of(samples, base)}
        for title, samples in (
            (work.title, found.run),
            (f"{work.title}, build", found.build),
        )
    ]


def median(samples: Mapping[str, Sequence[float]], *variant: Any) -> float:
    """Of a variant, in seconds."""
    return statistics.median(samples[name_of(*variant)])


def series_of(work: Work, found: Found) -> list[dict[str, Any]]:
    """Medians against the number of groups."""
    return [
        timing.series(
            title,
            "groups",
            work.counts,
            {
                f"{system}, {kind}": [
                    1e3 * median(samples, system, kind, count) for count in work.counts
                ]
                for system in SYSTEMS
                for kind in KINDS
            },
        )
        for title, samples in (
            (f"{work.title} by groups", found.run),
            (f"{work.title} by groups, build", found.build),
        )
    ]


def growth_of(work: Work, found: Found) -> list[dict[str, Any]]:
    """Most groups against one."""
    most = work.counts[-1]
    return [
        timing.ratio(
            f"{most} groups vs 1, {work.title}, {kind}: {what}",
            median(samples, "graphlr", kind, most)
            / median(samples, "graphlr", kind, 1),
            target,
        )
        for kind in KINDS
        for what, samples, target in (
            ("run time", found.run, 1.05),
            ("build", found.build, 1.3),
        )
    ]


def against_usual(work: Work, found: Found) -> list[dict[str, Any]]:
    """Most groups against as many in the usual optax loop."""
    most = work.counts[-1]
    return [
        timing.ratio(
            f"{most} groups vs the usual optax loop, {work.title}, {kind}",
            median(found.run, "graphlr", kind, most)
            / median(found.run, USUAL, kind, most),
            0.1,
        )
        for kind in KINDS
    ]


def changed(work: Work, found: Found) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Most groups, each given a new lr before every call: a table and two ratios.

    The assignments are part of what is timed.
    """
    most = work.counts[-1]
    step, graph = changing(work.task(), most)
    step()
    compiled = graph.compiles.count
    never = found.steps[name_of("graphlr", KINDS[0], most)]
    samples = timing.take_turns(
        {"never": timing.Local(never), "each step": timing.Local(step)}, *work.turns[1:]
    )
    rows = timing.rows_of(samples, "never")
    what = f"every lr of {most} groups changed each step vs never, {work.title}"
    recompiled = float(graph.compiles.count - compiled)
    table = {"title": f"{work.title}, {most} groups, lr changed", "unit": "ms"}
    return {**table, "rows": rows}, [
        timing.ratio(what, rows[1]["ratio"], 1.02),
        timing.ratio(f"recompilations, {what}", recompiled, 0),
    ]


def works(quick: bool) -> tuple[Work, Work, Work]:
    """The update and the step of MobileNetV2, and the update of many small arrays."""
    network = functools.partial(small.task if quick else mobilenet.task, 64)
    chain = functools.partial(small.task, 120 if quick else 1200)
    few, many = (1, 10, 50, 150), (1, 50, 300)
    if quick:
        few = many = (1, 10)
    return (
        Work(
            "update of MobileNetV2",
            lambda: update_of(network()),
            few,
            (1, 3, 3) if quick else (1, 12, 5),
        ),
        Work(
            "MobileNetV2 step",
            network,
            few if quick else (1, 150),
            (1, 3, 3) if quick else (1, 8, 3),
        ),
        Work(
            "update of 600 small arrays",
            lambda: update_of(chain()),
            many,
            (1, 3, 3) if quick else (1, 8, 5),
        ),
    )


def measure(options: argparse.Namespace) -> None:
    """Measure and save."""
    update, step, chain = works(options.quick)
    tables, series, ratios = [], [], []
    for work in (update, step, chain):
        found = measured(work)
        tables += tables_of(work, found)
        series += series_of(work, found)
        if work is update:
            ratios += growth_of(work, found) + against_usual(work, found)
        if work is step:
            table, lines = changed(work, found)
            tables.append(table)
            ratios += growth_of(work, found) + lines
    timing.save(
        "groups",
        "python -m benchmarks groups",
        options.results,
        tables=tables,
        series=series,
        ratios=ratios,
    )
