"""What a call costs beside computing: a tiny network of 52, 160 and 500 arrays.

Linear layers of 8×8, SGD with momentum; parameters and momentum are counted. Every
system is a process of its own, they take turns, and the loss is read each time.
"""

import argparse
import statistics
from typing import Any

from benchmarks import timing
from benchmarks.peers import Variant, rows, sample
from benchmarks.systems import DISPATCH

SCAN = "graphlr, scan of 32"
# What, the peer, at how many arrays, and the target.
TARGETS = (
    ("call vs the same by hand, flat jax.jit", "flat jax.jit", 500, 1.10),
    ("call vs nnx.jit + nnx.Optimizer", "nnx.jit + nnx.Optimizer", 160, 0.05),
    ("call vs nnx.cached_partial", "nnx.cached_partial", 160, 0.28),
)


def calls(
    arrays: int, options: argparse.Namespace, skipped: dict[str, str]
) -> dict[Variant, list[float]]:
    """Durations of one step of every system, in seconds."""
    rounds, each = (2, 10) if options.quick else (12, 100)
    variants = {Variant(f"{name}, tiny", size=arrays): name for name in DISPATCH}
    taken = sample(variants, options, skipped, rounds, each)
    steps = {SCAN: 32}
    return {
        variant._replace(system=variants[variant]): [
            second / steps.get(variants[variant], 1) for second in seconds
        ]
        for variant, seconds in taken.items()
    }


def series(medians: dict[int, dict[str, float]]) -> dict[str, Any]:
    """The calls by the number of arrays, from `{arrays: {system: µs}}`."""
    names = [name for name in DISPATCH if all(name in row for row in medians.values())]
    return timing.series(
        "A call by the number of arrays",
        "arrays, parameters and momentum",
        medians,
        {name: [row[name] for row in medians.values()] for name in names},
        y_label="µs",
        each="array",
    )


def ratios(medians: dict[int, dict[str, float]]) -> list[dict[str, Any]]:
    """The lines of the table of targets, from the same."""
    return [
        timing.ratio(
            f"{what}, {arrays} arrays",
            medians[arrays]["graphlr"] / medians[arrays][peer],
            target,
        )
        for what, peer, arrays, target in TARGETS
        if {"graphlr", peer} <= set(medians[arrays])
    ]


def measure(options: argparse.Namespace) -> None:
    """Measure, print, write."""
    skipped: dict[str, str] = {}
    tables, medians = [], {}
    for arrays in (52, 160, 500):
        taken = calls(arrays, options, skipped)
        medians[arrays] = {
            variant.system: 1e6 * statistics.median(seconds)
            for variant, seconds in taken.items()
        }
        title = f"Step of a tiny network, {arrays} arrays"
        base = Variant("graphlr", size=arrays)
        tables.append({"title": title, "unit": "ms", "rows": rows(taken, base)})
    timing.save(
        "dispatch",
        command="python -m benchmarks dispatch",
        folder=options.results,
        tables=tables,
        series=[series(medians)],
        ratios=ratios(medians),
        skipped=skipped,
    )
