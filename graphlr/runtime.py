"""Settings of the process: its memory, the cache of programs, the compiler, jax's own.

Nothing here is done at import.
"""

from __future__ import annotations

import ctypes
import gc
import os
import re
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache

_config: Any = jax.config  # its options are made at run time, unknown to type checkers
_HIT, _MISS = (f"/jax/compilation_cache/cache_{kind}" for kind in ("hits", "misses"))
_UNREADABLE = re.compile(
    r"Error reading persistent compilation cache entry for '(.+?)'"
)

_events: Counter[str] = Counter()

# For XLA's CPU compiler. The pass that is left out removes optimization barriers: then
# what is computed twice on purpose is shared, and a gradient is computed again at every
# kernel position. LLVM's third level makes depthwise convolutions a tenth slower.
_CPU_COMPILER: dict[str, Any] = {
    "xla_disable_hlo_passes": "cse_barrier_expander",
    "xla_backend_optimization_level": 1,
}

# M_ARENA_MAX, M_MMAP_MAX and M_TRIM_THRESHOLD of <malloc.h>: one heap, which serves
# large requests too, and which is not given back.
_KEEP_MEMORY = {-8: 1, -4: 0, -1: 2**31 - 1}


def tune_cpu() -> bool:
    """Let the C library keep freed memory: steps on a Linux CPU get faster.

    XLA allocates a step's temporary memory for each run, and glibc asks the system for
    it and gives it back every time: tens of thousands of page faults a step. This sets
    three of glibc's `mallopt` parameters, for the whole process and for good: what the
    process once used it keeps. Call it first, before anything computes or asks for
    `jax.devices()`. What it gains, and what other allocators gain: docs/cpu.md.

    Returns:
        Whether it was done: False on other systems and C libraries, and after a
        warning if JAX was already in use, when it would have no effect.

    Example:
        >>> import subprocess, sys
        >>> code = "import graphlr as glr; glr.runtime.tune_cpu()"
        >>> subprocess.run([sys.executable, "-c", code]).returncode
        0
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if sys.platform != "linux" or mallopt is None:
        return False
    if _jax_is_in_use():
        warnings.warn(
            "tune_cpu() comes too late: JAX has started its threads, and the memory "
            "of a thread stays as it was. Call glr.runtime.tune_cpu() first in main()",
            stacklevel=2,
        )
        return False
    return all(mallopt(option, value) for option, value in _KEEP_MEMORY.items())


def _jax_is_in_use() -> bool:
    """Whether XLA has its threads, which the first use of a device starts."""
    names = (name.read_text() for name in Path("/proc/self/task").glob("*/comm"))
    return any(name.startswith("tf_XLA") for name in names)


def compiler_options() -> dict[str, Any] | None:
    """What graphlr tells XLA: measured settings on CPU, nothing elsewhere.

    For `jax.jit(step, compiler_options=...)`, to compile a program of your own alike.

    Example:
        >>> jax.jit(lambda x: 2 * x, compiler_options=compiler_options())(2)
        Array(4, dtype=int32, weak_type=True)
    """
    return _CPU_COMPILER if jax.default_backend() == "cpu" else None


def wide() -> bool:
    """Whether JAX has 64-bit types now.

    Example:
        >>> with jax.enable_x64(True):
        ...     wide()
        True
    """
    return bool(_config.jax_enable_x64)


def jitting_is_off() -> bool:
    """Whether `jax.disable_jit` is in force.

    Example:
        >>> with jax.disable_jit():
        ...     jitting_is_off()
        True
    """
    return bool(_config.jax_disable_jit)


def default_cache() -> Path:
    """Where `compile_cache` keeps programs unless told: in the user's cache folder.

    Example:
        >>> default_cache().name
        'graphlr'
    """
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "graphlr"


def compile_cache(directory: str | Path | None) -> Path | None:
    """Keep compiled programs in a folder, for the whole process and the next ones.

    The next process that compiles the same step for the same device reads it instead.
    `graph.compiles` counts hits and misses. An entry that can't be read is removed with
    one warning, and the program is compiled. Only use a folder that nobody else can
    write to: what is in it is run.

    Args:
        directory: The folder, made if missing; `default_cache()` is one. None: off.

    Returns:
        The folder, or None if it is off or can't be written to.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     compile_cache(folder) == Path(folder)
        True
        >>> compile_cache(None)
    """
    path = None if directory is None else Path(directory).expanduser()
    if path is not None:
        try:
            path.mkdir(parents=True, exist_ok=True)
            probe = path / f".{os.getpid()}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            warnings.warn(
                f"no compiled programs are kept, {path} can't be written to ({error}): "
                "glr.runtime.compile_cache('another folder')",
                stacklevel=2,
            )
            path = None
    _config.update("jax_compilation_cache_dir", None if path is None else str(path))
    _config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    _config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    compilation_cache.reset_cache()
    if not _events:
        jax.monitoring.register_event_listener(_note)
        _events[_HIT] += 0
    return path


def cache_folder() -> Path | None:
    """Where compiled programs are kept now, by `compile_cache` or JAX's own settings.

    Example:
        >>> cache_folder() is None
        True
    """
    enabled = _config.jax_enable_compilation_cache
    folder = _config.jax_compilation_cache_dir if enabled else None
    return None if folder is None else Path(folder)


@contextmanager
def garbage_collection_off() -> Iterator[None]:
    """Without looking for dead objects, as long as millions are made that live.

    Looking takes a quarter of the time to trace a large step, and two fifths of the
    time to plan one of 150 groups.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextmanager
def cache_use() -> Iterator[dict[str, bool]]:
    """What the cache does for one compilation: `hit`, missing where there is no cache.

    Entries that could not be read are removed, with one warning for all.
    """
    use: dict[str, bool] = {}
    if cache_folder() is None:
        yield use
        return
    before, start = _events.copy(), time.time()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield use
    broken = set()
    for item in caught:
        unreadable = _UNREADABLE.match(str(item.message))
        if unreadable:
            broken.add(unreadable[1])
        else:
            warnings.warn_explicit(
                item.message, item.category, item.filename, item.lineno
            )
    if _events[_HIT] > before[_HIT]:
        use["hit"] = True
    elif _events[_MISS] > before[_MISS] or broken:
        use["hit"] = False
    if broken:
        _remove(broken, start)


def _note(event: str, **_: Any) -> None:
    if event in (_HIT, _MISS):
        _events[event] += 1


def _remove(modules: set[str], before: float) -> None:
    """Delete the entries of these programs that are older than `before`."""
    folder = Path(_config.jax_compilation_cache_dir)
    entries = [
        path
        for name in modules
        for path in folder.glob(f"{name}-*")
        if path.stat().st_mtime < before
    ]
    for path in entries:
        path.unlink(missing_ok=True)
    warnings.warn(
        f"{folder} had entries that can't be read, of {', '.join(sorted(modules))}; "
        "they were removed and the program compiled, and the next process keeps it",
        stacklevel=4,
    )
