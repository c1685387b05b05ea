"""What a call costs beside computing: a tiny network of 52, 160 and 500 arrays.

Linear layers of 8×8, SGD with momentum; parameters and momentum are counted. Every
system is a process of its own, they take turns, and the loss is read each time. The
last table is MobileNetV2's step, under tcmalloc if it is found: with the C library's
allocator two processes with one program differ by as much as 10 %.
"""

import argparse
import statistics
from typing import Any

from benchmarks import timing
from benchmarks.peers import Variant, against, before_and_after, rows, sample
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
    ours = Variant("graphlr, tiny", size=arrays)
    variants |= dict.fromkeys(against(ours, options.against), "graphlr")
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


def real(
    options: argparse.Namespace, skipped: dict[str, str]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """MobileNetV2's step and the same by hand: a table and its ratio."""
    allocator = "tcmalloc" if options.tcmalloc else "plain"
    size, turns = (8, (2, 2)) if options.quick else (64, (10, 5))
    ours, by_hand = (
        Variant(name, allocator, size) for name in ("graphlr", "flat jax.jit")
    )
    variants = [ours, by_hand, *against(ours, options.against)]
    taken = sample(variants, options, skipped, *turns)
    title = f"MobileNetV2 step, batch {size}, and the same by hand"
    table = {"title": title, "unit": "ms", "rows": rows(taken, ours)}
    lines = before_and_after("MobileNetV2 step", taken)
    if {ours, by_hand} <= set(taken):
        ratio = statistics.median(taken[ours]) / statistics.median(taken[by_hand])
        what = f"MobileNetV2 step vs the same by hand, flat jax.jit, both {allocator}"
        lines.append(timing.ratio(what, ratio, 1.02))
    return table, lines


def measure(options: argparse.Namespace) -> None:
    """Measure, print, write."""
    skipped: dict[str, str] = {}
    tables, medians, before = [], {}, []
    for arrays in (52, 160, 500):
        taken = calls(arrays, options, skipped)
        before += before_and_after(f"call, {arrays} arrays", taken)
        medians[arrays] = {
            variant.system: 1e6 * statistics.median(seconds)
            for variant, seconds in taken.items()
            if not variant.folder
        }
        title = f"Step of a tiny network, {arrays} arrays"
        base = Variant("graphlr", size=arrays)
        tables.append({"title": title, "unit": "ms", "rows": rows(taken, base)})
    table, lines = real(options, skipped)
    timing.save(
        "dispatch",
        command="python -m benchmarks dispatch",
        folder=options.results,
        tables=[*tables, table],
        series=[series(medians)],
        ratios=[*ratios(medians), *lines, *before],
        skipped=skipped,
    )
