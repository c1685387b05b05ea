"""Seconds from the start of Python to the first loss of MobileNetV2, batch 64.

Every sample is a fresh process; the systems take turns. `cold` compiles everything;
`warm` finds the programs that another process left in `glr.runtime.compile_cache`;
`exported` loads the step from a file that `graph.export` wrote, and finds its programs
too. `torch.compile` and flax start without caches. Each process says what importing,
making the model and the first call took; JAX, what of that was tracing and compiling.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import peers, timing
from benchmarks.peers import ONEFLOW, Variant

PARTS = {
    "imports_s": "imports",
    "build_s": "model",
    "first_s": "first call",
    "trace_s": "first call: tracing",
    "lower_s": "first call: lowering",
    "compile_s": "first call: compiling or loading",
}
TARGETS = {"graphlr, cold": 9.0, "graphlr, warm": 2.5, "graphlr, exported": 2.0}


class Start(NamedTuple):
    """A way to start.

    Attributes:
        system: What is started.
        samples: How many times.
        arguments: Of the worker.
        environment: Of the worker.
    """

    system: str
    samples: int
    arguments: tuple[str, ...] = ()
    environment: Mapping[str, str] = {}


def ways(folder: Path, quick: bool) -> dict[str, Start]:
    """Everything that is started; caches and the exported step are in `folder`."""
    most = 1 if quick else 3
    cache = ("--cache", str(folder / "cache"))
    file = ("--file", str(folder / "step.zip"))
    starts = {
        "graphlr, cold": Start("graphlr", most),
        "graphlr, warm": Start("graphlr", most, cache),
        "graphlr, exported": Start("graphlr, exported", most, (*cache, *file)),
        "PyTorch eager": Start("PyTorch eager, channels-last", most),
        ONEFLOW: Start(ONEFLOW, most),
    }
    slow = {
        "stock flax, nnx.jit, cold": Start("stock flax, nnx.jit + nnx.Optimizer", 1),
        "torch.compile, cold": Start(
            "torch.compile, channels-last",
            1,
            environment={"TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor")},
        ),
    }
    return starts if quick else starts | slow


def start(way: Start, options: argparse.Namespace) -> dict[str, float]:
    """Start once; the worker's own times, and `total_s`."""
    size = 8 if options.quick else 64
    begin = time.monotonic()
    worker = peers.start(
        Variant(way.system, size=size), options, way.arguments, way.environment
    )
    worker.close()
    return {**worker.ready, "total_s": worker.ready["loss_at"] - begin}


def fill(starts: dict[str, Start], options: argparse.Namespace, folder: Path) -> None:
    """Export the step, and let one process each leave its programs in the cache."""
    from benchmarks.systems import mobilenet

    mobilenet.export(str(folder / "step.zip"), 8 if options.quick else 64)
    for name in ("graphlr, warm", "graphlr, exported"):
        start(starts[name], options)


def sample(
    starts: Mapping[str, Start], options: argparse.Namespace, skipped: dict[str, str]
) -> dict[str, list[dict[str, float]]]:
    """All samples of every way that can be measured here."""
    taken: dict[str, list[dict[str, float]]] = {}
    for turn in range(max(way.samples for way in starts.values())):
        for name, way in starts.items():
            if turn >= way.samples or name in skipped:
                continue
            print(f"starting {name}", file=sys.stderr)
            try:
                taken.setdefault(name, []).append(start(way, options))
            except timing.UnavailableError as error:
                skipped[name] = str(error)
    return {name: samples for name, samples in taken.items() if samples}


def figures(taken: Mapping[str, list[dict[str, float]]]) -> dict[str, float]:
    """Medians of the parts, in seconds."""
    return {
        f"{name}: {label}, s": statistics.median(each[part] for each in samples)
        for name, samples in taken.items()
        for part, label in PARTS.items()
        if part in samples[0]
    }


def measure(options: argparse.Namespace) -> None:
    """Measure, print, write."""
    skipped: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        starts = ways(folder, options.quick)
        fill(starts, options, folder)
        taken = sample(starts, options, skipped)
    totals: dict[str, list[float]] = {
        name: [each["total_s"] for each in samples] for name, samples in taken.items()
    }
    table: dict[str, Any] = {
        "title": "From the start of Python to the first loss",
        "unit": "ms",
        "rows": timing.rows_of(totals, "graphlr, cold"),
    }
    timing.save(
        "startup",
        command="python -m benchmarks startup",
        folder=options.results,
        tables=[table],
        figures=figures(taken),
        ratios=[
            timing.ratio(
                f"first loss, {name}, s", statistics.median(totals[name]), most
            )
            for name, most in TARGETS.items()
            if name in totals
        ],
        skipped=skipped,
    )
