"""Measuring side by side: systems take turns, results go to a table and a JSON file.

A system is a process of its own (see `worker.py`), stopped while others have their
turn, so that its allocator and its spinning threads are nobody else's. Only ratios
inside one run mean something: the machine is shared, and its speed drifts.
"""

import importlib.metadata
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax

HERE = Path(__file__).parent
RESULTS = HERE / "results"
PACKAGES = ("graphlr", "jax", "jaxlib", "flax", "optax", "torch", "keras")


class UnavailableError(Exception):
    """A system that can't be measured here; the message says why."""


class Worker:
    """A process that repeats one thing when told to.

    The command prints a JSON object once it is ready (at least `{"first_s": …}`), then,
    for every line with a number N on standard input, a JSON list of N durations in
    seconds.

    Args:
        command: The process.
        environment: Added to this process's environment, `LD_PRELOAD` for example.
        folder: Where it runs; this checkout by default.

    Attributes:
        ready: The first object that it printed.

    Raises:
        UnavailableError: The process ended before it was ready, or said
            `{"skipped": why}`.
    """

    def __init__(
        self,
        command: Iterable[str],
        environment: Mapping[str, str] | None = None,
        folder: str | None = None,
    ):
        self._process = subprocess.Popen(
            list(command),
            env={**os.environ, **(environment or {})},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=folder or HERE.parent,
            text=True,
        )
        self.ready: dict[str, Any] = self._read()
        if "skipped" in self.ready:
            self.close()
            raise UnavailableError(self.ready["skipped"])
        self._process.send_signal(signal.SIGSTOP)

    def run(self, times: int) -> list[float]:
        """Durations of `times` repetitions, in seconds; then the process is stopped."""
        self._process.send_signal(signal.SIGCONT)
        stdin = self._process.stdin
        if stdin is None:
            raise RuntimeError("the worker has no standard input")
        stdin.write(f"{times}\n")
        stdin.flush()
        durations = self._read()
        self._process.send_signal(signal.SIGSTOP)
        return durations

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        with self._process:  # waits, and closes the pipes
            pass

    def _read(self) -> Any:
        stdout = self._process.stdout
        line = stdout.readline() if stdout else ""
        if not line:
            status = self._process.wait()
            self.close()
            raise UnavailableError(f"its process ended with status {status}")
        return json.loads(line)


class Local:
    """A step of this process, in the place of a `Worker`.

    Args:
        step: What is repeated; it waits for its own result.
    """

    def __init__(self, step: Callable[[], object]):
        self._step = step

    def run(self, times: int) -> list[float]:
        """Durations of `times` repetitions, in seconds."""
        durations = []
        for _ in range(times):
            start = time.perf_counter()
            self._step()
            durations.append(time.perf_counter() - start)
        return durations


def serve(ready: Mapping[str, Any], answer: Callable[[int], list[float]]) -> None:
    """The other end of a `Worker`: say `ready`, then answer every number on stdin."""
    print(json.dumps(ready), flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(int(line))), flush=True)


def take_turns(
    workers: Mapping[str, Worker | Local], rounds: int, each: int
) -> dict[str, list[float]]:
    """`rounds` turns of `each` repetitions of every worker; seconds.

    The order rotates, so that nobody always comes after the same one, and the first
    repetition of a turn, which finds cold caches, is not counted.
    """
    samples: dict[str, list[float]] = {name: [] for name in workers}
    order = list(workers)
    for _ in range(rounds):
        order = [*order[1:], *order[:1]]
        for name in order:
            samples[name] += workers[name].run(each + 1)[1:]
    return samples


def summarise(samples: Iterable[float]) -> dict[str, float]:
    """Median, minimum and the tenth and ninetieth percentile, in milliseconds."""
    ordered = sorted(1e3 * sample for sample in samples)
    if len(ordered) == 1:
        ordered *= 2
    deciles = statistics.quantiles(ordered, n=10, method="inclusive")
    return {
        "median_ms": statistics.median(ordered),
        "min_ms": ordered[0],
        "p10_ms": deciles[0],
        "p90_ms": deciles[-1],
    }


def rows_of(samples: Mapping[str, Iterable[float]], base: str) -> list[dict[str, Any]]:
    """A row for each system, with the ratio of its median to that of `base`."""
    rows = [{"name": name, **summarise(taken)} for name, taken in samples.items()]
    (reference,) = (row["median_ms"] for row in rows if row["name"] == base)
    return [{**row, "ratio": row["median_ms"] / reference} for row in rows]


def slope(x: Iterable[float], y: Iterable[float]) -> tuple[float, float]:
    """Least-squares line: what `y` grows by for each of `x`, and where it starts."""
    line = statistics.linear_regression(list(x), list(y))
    return line.slope, line.intercept


def series(
    title: str,
    x_label: str,
    x: Iterable[float],
    lines: Mapping[str, Iterable[float]],
    *,
    y_label: str = "ms",
    each: str = "",
) -> dict[str, Any]:
    """Lines over `x`, each with what it grows by for one `each`."""
    x, lines = list(x), {name: list(y) for name, y in lines.items()}
    slopes = {name: slope(x, y)[0] for name, y in lines.items()}
    return {
        "title": title,
        "x_label": x_label,
        "y_label": y_label,
        "x": x,
        "lines": lines,
        "slopes": slopes,
        "slope_unit": f"{y_label} per {each or x_label.removesuffix('s')}",
    }


def ratio(what: str, value: float, target: float, better: str = "lower") -> dict:
    """One line of the table of targets."""
    return {"what": what, "value": value, "target": target, "better": better}


def met(line: Mapping[str, Any]) -> bool:
    """Whether a line of the table of targets reaches its target."""
    if line["better"] == "lower":
        return line["value"] <= line["target"]
    return line["value"] >= line["target"]


def machine() -> dict[str, Any]:
    """What it ran on: device, processor, cores, memory, versions."""
    device = jax.devices()[0]
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "device": device.device_kind,
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "versions": versions,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if "model name" in line]
    return f"{names[0]}, {platform.machine()}" if names else platform.machine()


def save(name: str, command: str, folder: Path = RESULTS, **parts: Any) -> None:
    """Print the tables of a result and write it to `<folder>/<name>.json`.

    Args:
        name: Of the benchmark.
        command: That reproduces it.
        folder: Where to; made if missing.
        **parts: Any of
            `tables`: `[{"title", "unit": "ms", "rows": rows_of(...)}]`;
            `series`: `[{"title", "x_label", "y_label", "x": [...], "lines":
            {name: [...]}, "slopes": {name: number}, "slope_unit"}]`;
            `ratios`: `[ratio(...)]`; `figures`: `{name: number}`;
            `skipped`: `{system: why}`.
    """
    result = rounded({"command": command, "machine": machine(), **parts})
    print(text_of(result))
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    print(f"written to {path}", file=sys.stderr)


def rounded(value: Any) -> Any:
    """The same with floats of four significant digits: more would be noise."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    return [rounded(item) for item in value] if isinstance(value, list) else value


def text_of(result: Mapping[str, Any]) -> str:
    """Everything in a result, as text for a terminal."""
    machine = result["machine"]
    versions = ", ".join(f"{k} {v}" for k, v in machine["versions"].items())
    lines = [f"{machine['processor']}, {machine['cores']} cores; {versions}"]
    for table in result.get("tables", []):
        lines += [
            "",
            f"{table['title']} ({table['unit']}: median, min, p10–p90, ratio)",
        ]
        lines += [
            f"  {row['name']:44} {row['median_ms']:9.3f} {row['min_ms']:9.3f} "
            f"{row['p10_ms']:9.3f}–{row['p90_ms']:<9.3f} {row['ratio']:7.3f}"
            for row in table["rows"]
        ]
    for series in result.get("series", []):
        lines += ["", f"{series['title']} ({series['y_label']} by {series['x_label']})"]
        lines += [f"  {'':30} " + " ".join(f"{x:>8g}" for x in series["x"])]
        for name, values in series["lines"].items():
            shown = " ".join(f"{value:8.3g}" for value in values)
            grows = series.get("slopes", {}).get(name)
            tail = "" if grows is None else f"   {grows:+.3g} {series['slope_unit']}"
            lines.append(f"  {name:30} {shown}{tail}")
    for name, value in result.get("figures", {}).items():
        lines.append(f"  {name:60} {value:.4g}")
    for row in result.get("ratios", []):
        sign = "≤" if row["better"] == "lower" else "≥"
        lines.append(
            f"  {row['what']:60} {row['value']:8.3f}  target {sign} {row['target']:g}"
            f"  {'met' if met(row) else 'MISSED'}"
        )
    for name, why in result.get("skipped", {}).items():
        lines.append(f"  skipped {name}: {why}")
    return "\n".join(lines)
