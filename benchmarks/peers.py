"""Starting systems, each in a process of its own with an allocator of its own."""

import argparse
import statistics
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import timing

ONEFLOW = "OneFlow nn.Graph"
ALLOCATORS = ("plain", "tune_cpu", "tcmalloc")
SAME = 1.02  # times as long as at an earlier commit: no slower
FIND_LIBRARIES = (
    "import glob, sysconfig; "
    "print(':'.join(glob.glob(sysconfig.get_path('purelib') + '/nvidia/*/lib')))"
)


class Variant(NamedTuple):
    """A system as it is run.

    Attributes:
        system: One of `systems.SYSTEMS`, or `ONEFLOW`.
        allocator: One of `ALLOCATORS`.
        size: Images in a batch, or whatever size means to the system.
        folder: The checkout that it is run from; "" is this one.
    """

    system: str
    allocator: str = "plain"
    size: int = 64
    folder: str = ""

    @property
    def name(self) -> str:
        """What tables call it."""
        name = f"{self.system} ({self.allocator})"
        return f"{name} of {Path(self.folder).name}" if self.folder else name


def start(
    variant: Variant,
    options: argparse.Namespace,
    arguments: Iterable[str] = (),
    environment: Mapping[str, str] | None = None,
) -> timing.Worker:
    """Its worker, ready.

    Args:
        variant: What to start.
        options: Of the command line: `oneflow` and `tcmalloc`.
        arguments: More of them for the worker.
        environment: More of it.

    Raises:
        UnavailableError: It can't be measured here.
    """
    added = dict(environment or {})
    if variant.allocator == "tcmalloc":
        if not options.tcmalloc:
            raise timing.UnavailableError("no tcmalloc found: --tcmalloc LIBRARY")
        added["LD_PRELOAD"] = options.tcmalloc
    if variant.system == ONEFLOW:
        if not options.oneflow:
            raise timing.UnavailableError("--oneflow PYTHON was not given")
        added["LD_LIBRARY_PATH"] = _oneflow_libraries(options.oneflow)
        script = Path(__file__).with_name("oneflow_worker.py")
        command = [options.oneflow, "-I", str(script)]
    else:
        command = [sys.executable, "-m", "benchmarks.worker", variant.system]
    if variant.allocator == "tune_cpu":
        command.append("--tune-cpu")
    command += ["--size", str(variant.size), *arguments]
    return timing.Worker(command, added, variant.folder or None)


def against(ours: Variant, folder: str | None) -> list[Variant]:
    """The same as `ours`, from a checkout of an earlier commit, if one was given."""
    return [ours._replace(folder=folder)] if folder else []


def before_and_after(
    what: str, taken: Mapping[Variant, list[float]]
) -> list[dict[str, Any]]:
    """For each system that is run from two checkouts, the ratio of their medians."""
    lines = []
    for old, seconds in taken.items():
        new = old._replace(folder="")
        if old.folder and new in taken:
            ratio = statistics.median(taken[new]) / statistics.median(seconds)
            name = f"{what}, {new.name}, vs {Path(old.folder).name}"
            lines.append(timing.ratio(name, ratio, SAME))
    return lines


def _oneflow_libraries(python: str) -> str:
    """The folders of the CUDA libraries that OneFlow links against, GPU or not."""
    try:
        found = subprocess.run(
            [python, "-c", FIND_LIBRARIES], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError) as error:
        raise timing.UnavailableError(f"{python} does not run: {error}") from error
    return found.stdout.strip()


@contextmanager
def started(
    variants: Iterable[Variant], options: argparse.Namespace, skipped: dict[str, str]
) -> Iterator[dict[Variant, timing.Worker]]:
    """Workers of those that can be measured here; `skipped` gets the others."""
    workers: dict[Variant, timing.Worker] = {}
    try:
        for variant in variants:
            print(f"starting {variant.name}, {variant.size}", file=sys.stderr)
            try:
                workers[variant] = start(variant, options)
            except timing.UnavailableError as error:
                skipped[variant.name] = str(error)
        yield workers
    finally:
        for worker in workers.values():
            worker.close()


def sample(
    variants: Iterable[Variant],
    options: argparse.Namespace,
    skipped: dict[str, str],
    rounds: int,
    each: int,
) -> dict[Variant, list[float]]:
    """Durations of every variant that can be measured here, in turns; seconds."""
    with started(variants, options, skipped) as workers:
        by_name = {f"{v.name}, {v.size}": v for v in workers}
        named = {name: workers[variant] for name, variant in by_name.items()}
        samples = timing.take_turns(named, rounds, each)
    return {variant: samples[name] for name, variant in by_name.items()}


def rows(samples: Mapping[Variant, list[float]], base: Variant) -> list[dict[str, Any]]:
    """A row for each, ratios to `base`, or to the first if that was not measured."""
    if not samples:
        return []
    base = base if base in samples else next(iter(samples))
    named = {variant.name: taken for variant, taken in samples.items()}
    return [
        {**row, "system": variant.system, "allocator": variant.allocator}
        for variant, row in zip(samples, timing.rows_of(named, base.name), strict=True)
    ]
