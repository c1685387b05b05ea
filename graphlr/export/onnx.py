"""A graph's forward pass as an ONNX file, through jax2onnx."""

from __future__ import annotations

import importlib
import os
import warnings
from importlib.metadata import version
from typing import cast

import jax

from graphlr.export.batch_sizes import ExportError, Request, Specs, with_batch_sizes
from graphlr.modules.variables import as_arrays
from graphlr.runtime import wide
from graphlr.state import archive
from graphlr.step.types import Batch, Inputs


def save(
    request: Request, path: str | os.PathLike[str], *, symbolic: bool | None
) -> None:
    """Write what `build` computes, the arrays of the model as constants.

    Inputs are called as `build` calls them, outputs `output` or `output_0`, ….

    Raises:
        ImportError: jax2onnx is missing.
        ExportError: The graph trains, `build` changes a Variable, or jax2onnx doesn't
            know something in it.
    """
    runner = request.runner
    if runner.optimizers:
        raise ExportError(
            f"{request.name} has an optimizer, and ONNX holds forward passes: export a "
            "graph without one over the same model, or give the file another suffix"
        )
    try:
        to_onnx = importlib.import_module("jax2onnx").to_onnx
    except ImportError as error:
        raise ImportError(
            "ONNX is written by jax2onnx: pip install 'graphlr[onnx]'"
        ) from error
    plan, live = runner.peek(request.definition)
    given = request.signature()
    step = runner.step_for(request.definition, plan, given)
    state, extras = live.state(), as_arrays(plan.extras)
    names = [_plain(name) for name in request.names(given)]

    def forward(*batch: jax.Array) -> tuple[jax.Array, ...]:
        return tuple(step(state, Inputs(extras, [], batch)).outputs)

    def attempt(batch: Specs) -> bytes:
        results = jax.eval_shape(step, state, Inputs(extras, [], cast(Batch, batch)))
        changed = [plan.path_of(plan.extras[i]) for i in results.found.changed]
        if changed:
            raise ExportError(
                f"build() changes {changed[0]}, and ONNX has no state: leave that out"
            )
        outputs = len(results.outputs)
        numbered = [f"output_{i}" for i in range(outputs)]
        options = {
            "model_name": request.name,
            "enable_double_precision": wide(),
            "input_names": names,
            "output_names": numbered if outputs > 1 else ["output"],
        }
        with warnings.catch_warnings():  # it reads modules in ways that flax deprecates
            warnings.simplefilter("ignore", DeprecationWarning)
            try:
                return to_onnx(forward, batch, **options).SerializeToString()
            except Exception as error:
                raise ExportError(
                    f"jax2onnx {version('jax2onnx')} with jax {jax.__version__} can't "
                    f"write {request.name} as ONNX ({type(error).__name__}: {error}): "
                    "try other versions of them"
                ) from error

    data = with_batch_sizes(request, given, attempt, symbolic)
    with archive.replacing(path) as file:
        file.write(data)


def _plain(name: str) -> str:
    """A name that other tools take: `batch['image']` is `batch_image`."""
    kept = "".join(char if char.isalnum() else " " for char in name)
    return "_".join(kept.split())
