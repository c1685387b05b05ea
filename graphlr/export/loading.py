"""From a file to an exported graph, or to what is wrong with the file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import jax
import jax.export

from graphlr.export.batch_sizes import ExportError
from graphlr.export.exported import ExportedGraph
from graphlr.export.manifest import FORMAT
from graphlr.messages import listing
from graphlr.runtime import wide
from graphlr.state import archive
from graphlr.state.archive import ArchiveError


def load(path: str | os.PathLike[str]) -> ExportedGraph:
    """What `graph.export(path)` wrote, ready to be called like the graph.

    Only load files that you trust: the program in one is run.

    Raises:
        FileNotFoundError: There is no such file.
        ExportError: It is truncated or damaged (names the part), this graphlr or jax
            can't read it, or it is for other platforms (says which are needed).

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> from flax import nnx
        >>> from graphlr import Graph
        >>> class Eval(Graph):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
        ...
        ...     def build(self, x):
        ...         return self.model(x)
        >>> evaluate, x = Eval(), np.ones((4, 3), "f4")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     evaluate.export(f"{folder}/eval.zip", x)
        ...     exported = load(f"{folder}/eval.zip")
        >>> exported
        Eval (exported, eval) takes x: float32[b,3]
        >>> bool((exported(x) == evaluate(x)).all())
        True
    """
    try:
        manifest, parts = archive.read(path)
    except ArchiveError as error:
        raise ExportError(str(error)) from error
    _check_readable(path, manifest)
    programs = {name: data for name, data in parts.items() if name.endswith(".jax")}
    state = {
        key: archive.unpack(parts[f"{key}.npy"], kind["dtype"])
        for key, kind in manifest["state"].items()
    }
    try:
        functions = {
            name: jax.export.deserialize(bytearray(data))
            for name, data in programs.items()
        }
        if manifest["jax"] != jax.__version__:  # a newer one may have written it
            functions["step.jax"].mlir_module()
    except Exception as error:
        raise ExportError(_other_jax(path, manifest, "it can't be read")) from error
    return ExportedGraph(manifest, programs, functions, state)


def _check_readable(path: str | os.PathLike[str], manifest: Mapping[str, Any]) -> None:
    number = manifest.get("format")
    if number != FORMAT:
        raise ExportError(
            f"{path} has format {number}, of graphlr {manifest.get('graphlr')}, and "
            f"this graphlr reads format {FORMAT}: install that version, or export the "
            "graph again"
        )
    least = jax.export.minimum_supported_calling_convention_version
    most = jax.export.maximum_supported_calling_convention_version
    version = manifest["calling_convention"]
    if not least <= version <= most:
        why = f"its calling convention is {version}, and {least} to {most} can be read"
        raise ExportError(_other_jax(path, manifest, why))
    here = jax.export.default_export_platform()
    if here not in manifest["platforms"]:
        raise ExportError(
            f"{path} is for {listing(manifest['platforms'])}, and this machine is "
            f"{here}: graph.export(..., platforms=[{here!r}])"
        )
    if manifest["wide"] != wide():
        mode = "with" if manifest["wide"] else "without"
        raise ExportError(
            f"{path} was exported {mode} 64-bit types: "
            f"jax.config.update('jax_enable_x64', {manifest['wide']}) before loading it"
        )


def _other_jax(
    path: str | os.PathLike[str], manifest: Mapping[str, Any], why: str
) -> str:
    return (
        f"{path} was exported with jax {manifest['jax']}, and this is jax "
        f"{jax.__version__}: {why}. pip install 'jax=={manifest['jax']}', or export "
        "the graph again with this version"
    )
