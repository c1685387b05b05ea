"""Settings of the process, opt-in: where XLA's compiled programs are kept.

Nothing here is done at import.
"""

from __future__ import annotations

import os
import re
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


@contextmanager
def cache_use() -> Iterator[dict[str, bool]]:
    """What the cache does for one compilation: `hit`, missing where there is no cache.

    Entries that could not be read are removed, with one warning for all.
    """
    use: dict[str, bool] = {}
    if _config.jax_compilation_cache_dir is None:
        yield use
        return
    before, start = _events.copy(), time.time()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield use
    broken = set()
    for item in caught:
        found = _UNREADABLE.match(str(item.message))
        if found:
            broken.add(found[1])
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
