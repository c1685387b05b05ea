"""A process that makes one system's step and repeats it when told to.

    python -m benchmarks.worker SYSTEM --size 64

It prints a JSON object once two steps are done: the seconds that imports, model and
first step took, and when that one's loss was read (`time.monotonic`). Then, for every
line with a number N, a list of N durations. `timing.Worker` is the other end.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

from benchmarks.systems import SYSTEMS, Step, System


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("system", choices=SYSTEMS, metavar="system")
    parser.add_argument("--size", type=int, default=64, help="images, or arrays")
    parser.add_argument("--tune-cpu", action="store_true", help="first of all")
    parser.add_argument("--cache", metavar="FOLDER", help="of compiled programs")
    parser.add_argument("--file", help="an exported step")
    return parser


def own_output() -> TextIO:
    """Standard output for the answers alone; what libraries print goes to stderr."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return answers


def check_preloaded() -> None:
    """The linker only warns of a library that it can't preload.

    Raises:
        LookupError: This process lacks it.
    """
    library = os.environ.get("LD_PRELOAD", "")
    if Path(library).name not in Path("/proc/self/maps").read_text():
        raise LookupError(f"{library} can't be preloaded")


def set_up(options: argparse.Namespace) -> None:
    """What `glr.runtime` is asked for before anything is computed."""
    if options.tune_cpu or options.cache:
        import graphlr as glr

        if options.tune_cpu and not glr.runtime.tune_cpu():
            raise LookupError("glr.runtime.tune_cpu() has no effect here")
        if options.cache:
            glr.runtime.compile_cache(options.cache)


def compile_times() -> dict[str, float]:
    """Seconds of JAX's longest tracing, lowering and compiling from now on, kept so.

    The step is the longest; what is traced inside it is counted with it.
    """
    longest: dict[str, float] = {}
    if "jax" not in sys.modules:
        return longest
    import jax

    parts = {
        "jaxpr_trace_duration": "trace_s",
        "jaxpr_to_mlir_module_duration": "lower_s",
        "backend_compile_duration": "compile_s",
    }

    def note(event: str, duration_secs: float, **_: Any) -> None:
        part = parts.get(event.rpartition("/")[2])
        if part:
            longest[part] = max(duration_secs, longest.get(part, 0.0))

    jax.monitoring.register_event_duration_secs_listener(note)
    return longest


def duration(call: Callable[[], Any]) -> float:
    """How long a call takes, in seconds."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def prepare(
    system: System, size: int, options: argparse.Namespace
) -> tuple[Step, dict[str, float]]:
    """The step, and what getting as far as its second loss took."""
    start = time.perf_counter()
    check_preloaded()
    set_up(options)
    make = system.load()
    imported = time.perf_counter()
    file = {"file": options.file} if options.file else {}
    step = make(size, **system.options, **file)
    built = time.perf_counter()
    parts = compile_times()
    first = duration(step)
    ready = {
        "imports_s": imported - start,
        "build_s": built - imported,
        "first_s": first,
        "loss_at": time.monotonic(),
        **parts,
    }
    step()
    return step, ready


def main() -> None:
    """Get ready, say so, answer."""
    options = make_parser().parse_args()
    answers = own_output()
    try:
        step, ready = prepare(SYSTEMS[options.system], options.size, options)
    except ModuleNotFoundError as error:
        print(json.dumps({"skipped": f"{error.name} is not installed"}), file=answers)
        return
    except LookupError as error:
        print(json.dumps({"skipped": str(error)}), file=answers)
        return
    print(json.dumps(ready), file=answers, flush=True)
    for line in sys.stdin:
        durations = [duration(step) for _ in range(int(line))]
        print(json.dumps(durations), file=answers, flush=True)


if __name__ == "__main__":
    main()
