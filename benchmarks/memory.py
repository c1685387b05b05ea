"""Memory: of the host over thousands of steps, and what one step needs for a while.

Resident memory is read from `/proc/self/status` in a process that only trains: a chain
of small linear layers for 10,000 steps and MobileNetV2 for 300, after as many as a
tenth of them that don't count. The other table is XLA's own count of temporary memory
for MobileNetV2's step at batch 64, with graphlr and with flax's own layers under
`jax.jit`, parameters and slots donated in both.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import jax

from benchmarks import timing
from benchmarks.systems import mobilenet, small
from benchmarks.systems.training import Train, by_hand, graph_step

TASKS = {
    "20 small arrays": lambda: small.task(40),  # and as many of momentum
    "MobileNetV2": lambda: mobilenet.task(64),
}
POINTS = 10  # samples
MEGABYTE = 2**20


def resident() -> int:
    """Bytes of this process that are in memory.

    Raises:
        UnavailableError: The system doesn't tell.
    """
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError as error:
        raise timing.UnavailableError(f"no resident memory: {error}") from None
    (line,) = (line for line in lines if line.startswith("VmRSS"))
    return 1024 * int(line.split()[1])


def train(name: str) -> None:
    """In a process of its own: train when told to, and answer the resident memory."""
    step = graph_step(TASKS[name]())

    def answer(times: int) -> list[float]:
        for _ in range(times):
            step()
        return [float(resident())]

    timing.serve({}, answer)


def grown(name: str, steps: int) -> dict[str, Any]:
    """Resident memory, in MB more than at the start, over so many steps."""
    worker = timing.Worker([sys.executable, "-m", "benchmarks.memory", name])
    each = steps // POINTS
    (start,) = worker.run(each)
    found = [0.0]
    for _ in range(POINTS):
        (now,) = worker.run(each)
        found.append((now - start) / MEGABYTE)
    worker.close()
    return timing.series(
        f"resident memory, training {name}",
        "steps",
        [each * i for i in range(POINTS + 1)],
        {"graphlr": found},
        y_label="MB",
    )


def temporary() -> dict[str, float]:
    """MB of temporary memory that MobileNetV2's step needs, with either's layers."""
    task = mobilenet.task(64)
    ours = Train(task).cost(*task.batch)["temporary_memory"]
    task = mobilenet.task(64, "flax")
    state, rates, step = by_hand(task)
    lowered = jax.jit(step, donate_argnums=0).lower(state, rates, *task.batch)
    theirs = lowered.compile().memory_analysis().temp_size_in_bytes
    return {"graphlr": ours / MEGABYTE, "stock flax, jax.jit": theirs / MEGABYTE}


def measure(options: argparse.Namespace) -> None:
    """Measure and save."""
    many, few = (1000, 10) if options.quick else (10_000, 300)
    steps = dict(zip(TASKS, (many, few), strict=True))
    series = [grown(name, count) for name, count in steps.items()]
    held = temporary()
    figures = {
        f"{line['title']}, bytes per step": MEGABYTE * line["slopes"]["graphlr"]
        for line in series
    }
    figures |= {
        f"temporary memory of MobileNetV2's step, MB: {name}": value
        for name, value in held.items()
    }
    ours, theirs = held.values()
    growth = series[0]["lines"]["graphlr"][-1]
    timing.save(
        "memory",
        "python -m benchmarks memory",
        options.results,
        series=series,
        figures=figures,
        ratios=[
            timing.ratio(
                f"growth of resident memory over {many:,} steps, MB", growth, 1
            ),
            timing.ratio(
                "temporary memory of the MobileNetV2 step vs stock flax",
                ours / theirs,
                0.66,
            ),
        ],
    )


if __name__ == "__main__":
    train(sys.argv[1])
