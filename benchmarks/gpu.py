"""MobileNetV2 on a GPU: images per second, share of the roofline, peak memory.

float32 (matrix products in TF32) and bfloat16 (mixed), images of 224×224 and 32×32, 64
to 1024 in a batch, SGD with momentum and three groups: a Graph, the same step written
by hand with `jax.jit`, and `torch.compile`, channels-last, autocast, fused SGD. Then
what a small step costs by calls and by `graph.scan`, with 1 and with 150 groups; and
the update alone, fused. The roofline is the traffic of `roofline.py`, which grows with
the pixels and halves in 16 bits, at the bandwidth of scaling a large array in place.

Every system is a process of its own; those of a table start together and take turns.
`--profile FOLDER` leaves a trace of five steps. `--platform cpu --quick` tries the code
where there is no GPU.
"""

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax

from benchmarks import timing
from benchmarks.optimizers import CASES
from benchmarks.roofline import IMAGE_BYTES, STEP_BYTES, copy_gbytes
from benchmarks.systems.accelerated import SCAN, UPDATES, Point

MAIN = ("graphlr", "jax.jit by hand", "torch.compile")
SMALL = (
    "graphlr",
    f"graphlr, scan of {SCAN}",
    "graphlr, 1 group",
    "graphlr, 150 groups",
)
PARAMETERS = STEP_BYTES / 20  # SGD with momentum moves 20 bytes for each
NEEDS = "gpu needs a CUDA GPU and jax[cuda12]: nothing was measured"


class Measured(NamedTuple):
    """What was found, as `timing.save` takes it."""

    tables: list[dict[str, Any]]
    series: list[dict[str, Any]]
    ratios: list[dict[str, Any]]
    figures: dict[str, float]
    skipped: dict[str, str]


def has_gpu() -> bool:
    """Whether JAX sees one."""
    try:
        return bool(jax.devices("gpu"))
    except RuntimeError:
        return False


def title_of(point: Point) -> str:
    """What a table calls its size."""
    return f"{point.precision}, {point.size}×{point.size}, batch {point.batch}"


def roofline_ms(point: Point, gbytes: float) -> float:
    """The least time of a step whose traffic runs at `gbytes` GB/s.

    Example:
        >>> roofline_ms(Point("graphlr", "gpu", "float32", 32, 64), 40)
        9.925
        >>> roofline_ms(Point("graphlr", "gpu", "bfloat16", 224, 64), 4300) < 2.1
        True
    """
    width = 0.5 if point.precision == "bfloat16" else 1.0
    image = IMAGE_BYTES * (point.size / 32) ** 2 * width
    return (image * point.batch + STEP_BYTES) / gbytes / 1e6


def start(point: Point) -> timing.Worker | str:
    """Its worker, or why there is none."""
    module = "benchmarks.systems.accelerated"
    command = [sys.executable, "-m", module, json.dumps(point._asdict())]
    platform = "cuda" if point.platform == "gpu" else point.platform
    try:
        return timing.Worker(command, {"JAX_PLATFORMS": platform})
    except timing.UnavailableError as error:
        return str(error)


def sampled(
    points: Sequence[Point], turns: tuple[int, int], found: Measured
) -> dict[str, list[float]]:
    """Durations of a step of every system that runs here, by its name; seconds."""
    with ThreadPoolExecutor() as pool:
        started = dict(zip(points, pool.map(start, points), strict=True))
    workers: dict[str, Any] = {}
    for point, worker in started.items():
        what = f"{point.system}, {title_of(point)}"
        if isinstance(worker, str):
            found.skipped[what] = worker
            continue
        workers[point.system] = worker
        if worker.ready["peak_bytes"]:
            megabytes = worker.ready["peak_bytes"] / 1e6
            found.figures[f"peak memory, MB: {what}"] = megabytes
    samples = timing.take_turns(workers, *turns)
    for worker in workers.values():
        worker.close()
    return samples


def add_table(found: Measured, title: str, samples: Mapping[str, list[float]]) -> None:
    """The samples as a table, relative to the first of them."""
    if samples:
        rows = timing.rows_of(samples, next(iter(samples)))
        found.tables.append({"title": title, "unit": "ms", "rows": rows})


def steps(
    found: Measured, points: Sequence[Point], turns: tuple[int, int], gbytes: float
) -> None:
    """The training step over batch sizes, all three systems."""
    speeds: dict[str, dict[int, float]] = {system: {} for system in MAIN}
    for point in points:
        each = [point._replace(system=system) for system in MAIN]
        samples = sampled(each, turns, found)
        add_table(found, f"MobileNetV2 step, {title_of(point)}", samples)
        medians = {
            name: timing.summarise(taken)["median_ms"]
            for name, taken in samples.items()
        }
        for name, median in medians.items():
            speeds[name][point.batch] = 1e3 * point.batch / median
            what = f"share of the roofline: {name}, {title_of(point)}"
            found.figures[what] = roofline_ms(point, gbytes) / median
        found.ratios.extend(targets(point, medians, gbytes))
    batches = [p.batch for p in points if all(p.batch in y for y in speeds.values())]
    if len(batches) > 1:
        title = f"images per second, {points[0].precision}, {points[0].size} pixels"
        lines = {name: [y[batch] for batch in batches] for name, y in speeds.items()}
        found.series.append(
            timing.series(
                title,
                "images in a batch",
                batches,
                lines,
                y_label="images per second",
                each="image",
            )
        )


def targets(
    point: Point, medians: Mapping[str, float], gbytes: float
) -> list[dict[str, Any]]:
    """Against `torch.compile` and, at 224×224, against the roofline."""
    lines = []
    if {"graphlr", "torch.compile"} <= medians.keys():
        value = medians["torch.compile"] / medians["graphlr"]
        what = f"images per second vs torch.compile, {title_of(point)}"
        lines.append(timing.ratio(what, value, 1.2, "higher"))
    if "graphlr" in medians and point.size == 224:
        value = roofline_ms(point, gbytes) / medians["graphlr"]
        what = f"share of the roofline, {title_of(point)}"
        lines.append(timing.ratio(what, value, 0.6, "higher"))
    return lines


def small_steps(found: Measured, point: Point, turns: tuple[int, int]) -> None:
    """Calls against `scan`, which has no use on CPU, and 1 against 150 groups."""
    points = [point._replace(system=system) for system in SMALL]
    if point.platform == "cpu":
        points = [point for point in points if "scan" not in point.system]
    samples = {
        name: [value / (SCAN if "scan" in name else 1) for value in taken]
        for name, taken in sampled(points, turns, found).items()
    }
    add_table(found, f"small step, {title_of(point)}", samples)
    one, many = (f"graphlr, {count}" for count in ("1 group", "150 groups"))
    if {one, many} <= samples.keys():
        value = timing.rows_of(samples, one)[list(samples).index(many)]["ratio"]
        found.ratios.append(timing.ratio("150 groups vs 1, on GPU", value, 1.05))


def updates(
    found: Measured, platform: str, turns: tuple[int, int], gbytes: float
) -> None:
    """The update alone, and its share of the bandwidth."""
    for name in UPDATES:
        peers = ("graphlr", "optax", "PyTorch fused")
        points = [Point(f"{name}, {peer}", platform) for peer in peers]
        samples = sampled(points, turns, found)
        add_table(found, f"update of MobileNetV2's parameters, {name}", samples)
        traffic = CASES[name].traffic or 0
        least = PARAMETERS * traffic / gbytes / 1e6
        for system, taken in samples.items():
            median = timing.summarise(taken)["median_ms"]
            what = f"share of the bandwidth at {traffic} B per parameter: {system}"
            found.figures[what] = least / median


def measure(options: argparse.Namespace) -> None:
    """Measure and save, after each precision and size, what is there so far.

    Raises:
        SystemExit: There is no GPU; with status 2.
    """
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # processes share the memory
    if options.platform == "gpu" and not has_gpu():
        print(NEEDS, file=sys.stderr)
        raise SystemExit(2)
    quick, turns = options.quick, (2, 2) if options.quick else (10, 5)
    gbytes = copy_gbytes(64 if quick else 4096)
    bandwidth = {"bandwidth of scaling an array in place, GB/s": gbytes}
    found = Measured([], [], [], bandwidth, {})

    def save() -> None:
        command = "python -m benchmarks gpu"
        timing.save("gpu", command, options.results, **found._asdict())

    point = Point("graphlr", options.platform, "bfloat16")
    if options.profile:
        traced = start(point._replace(profile=str(options.profile)))
        if isinstance(traced, timing.Worker):
            traced.close()
    for precision in ("float32",) if quick else ("bfloat16", "float32"):
        for size in (32,) if quick else (224, 32):
            batches = (2,) if quick else (64, 256, 1024)
            points = [
                point._replace(precision=precision, size=size, batch=batch)
                for batch in batches
            ]
            steps(found, points, turns, gbytes)
            save()
    small_steps(found, point._replace(batch=2) if quick else point, turns)
    updates(found, options.platform, turns, gbytes)
    save()
