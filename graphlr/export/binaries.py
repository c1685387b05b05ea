"""Compiled programs in the cache folder, found without lowering them first.

JAX finds a program in its cache by its lowered form, and lowering an exported step
takes longer than loading it. Its bytes say already which program it is.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import pickle
import platform
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from jax.experimental import serialize_executable

from graphlr.runtime import cache_folder, cache_use
from graphlr.state import archive


def load_or_compile(
    identity: str,
    device: Any,
    lower: Callable[[], jax.stages.Lowered],
    compiler_options: Any,
) -> jax.stages.Compiled:
    """A program that another process left in `compile_cache`'s folder, or a new one.

    Args:
        identity: Equal for equal programs only.
        device: What it runs on; nothing else.
        lower: Gives what is to be compiled, if need be.
        compiler_options: What XLA is told.

    Returns:
        The program, which takes the arguments that were lowered.

    Example:
        >>> import jax.numpy as jnp
        >>> x, double = jnp.ones(2), jax.jit(lambda x: 2 * x)
        >>> device = jax.devices()[0]
        >>> run = load_or_compile("double", device, lambda: double.lower(x), None)
        >>> run(x).tolist()
        [2.0, 2.0]
    """
    folder = cache_folder()
    if folder is None or not folder.is_dir():
        return lower().compile(compiler_options)
    path = folder / f"graphlr-{_key(identity, device, compiler_options)}"
    if path.is_file():
        try:
            return _load(path, device)
        except Exception as error:  # damage can show itself anywhere in what is loaded
            path.unlink(missing_ok=True)
            warnings.warn(
                f"{path} can't be read ({error}): it was removed, and the program is "
                "compiled",
                stacklevel=4,
            )
    with cache_use() as use:
        compiled = lower().compile(compiler_options)
    if not use.get("hit"):  # XLA can't write again what it has read
        _save(path, compiled)
    return compiled


def _load(path: Path, device: Any) -> jax.stages.Compiled:
    _, parts = archive.read(path)
    return serialize_executable.deserialize_and_load(
        *pickle.loads(parts["program"]),
        backend=device.client,
        execution_devices=[device],
    )


def _save(path: Path, compiled: jax.stages.Compiled) -> None:
    try:
        program = pickle.dumps(serialize_executable.serialize(compiled))
        archive.write(path, {}, [("program", program)])
    except (OSError, ValueError, NotImplementedError, jax.errors.JaxRuntimeError) as e:
        warnings.warn(f"the program is not kept in {path}: {e}", stacklevel=5)


def _key(identity: str, device: Any, compiler_options: Any) -> str:
    """Of everything that makes a compiled program what it is."""
    settings = [os.environ.get(name) for name in ("XLA_FLAGS", "LIBTPU_INIT_ARGS")]
    versions = [importlib.metadata.version(name) for name in ("jax", "jaxlib")]
    versions.append(device.client.platform_version)
    known = [
        identity,
        compiler_options,
        settings,
        versions,
        device.device_kind,
        device.id,
    ]
    processor = _processor() if device.platform == "cpu" else ""
    return hashlib.sha256(repr([*known, processor]).encode()).hexdigest()


def _processor() -> str:
    """The instructions that the processor has, which XLA for CPU makes use of."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    telling = ("flags", "features", "model name", "cpu part")
    told = {line for line in lines if line.lower().startswith(telling)}
    return repr([platform.machine(), platform.processor(), sorted(told)])
