"""A graph's step written to a file."""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.export
import jax.numpy as jnp

from graphlr.engine.program import trace_step
from graphlr.export import manifest, onnx
from graphlr.export.batch_sizes import Request, Specs, spec_of, with_batch_sizes
from graphlr.export.manifest import FORMAT, FileState, from_file, to_file
from graphlr.modules.variables import as_arrays
from graphlr.optim.traced import group_lr, unpack
from graphlr.runtime import wide
from graphlr.state.state_dict import (
    Owned,
    key_data,
    state_dict,
)
from graphlr.step.signature import Signature
from graphlr.step.types import Arrays, Batch, Found, Inputs

PLATFORMS = ("cpu", "cuda", "tpu")


def save(
    request: Request,
    path: str | os.PathLike[str],
    *,
    symbolic: bool | None,
    platforms: Sequence[str],
) -> None:
    """Write a graph's step and state, or ONNX; see `Graph.export`."""
    if str(path).endswith(".onnx"):
        onnx.save(request, path, symbolic=symbolic)
        return
    runner = request.runner
    owned = Owned(*runner.peek(request.definition), runner.optimizers)
    given = request.signature()

    def attempt(batch: Specs) -> _Traced:
        return _traced(request, owned, given, batch, platforms)

    made = with_batch_sizes(request, given, attempt, symbolic)
    programs = {"step.jax": bytes(made.step.serialize())}
    if runner.optimizers:
        programs["lr.jax"] = bytes(_rates(owned, platforms).serialize())
    versions = {
        name: importlib.import_module(name).__version__
        for name in ("graphlr", "jax", "flax")
    }
    kinds = [jax.typeof(spec).str_short() for spec in made.batch]
    made_of = {
        "format": FORMAT,
        "name": request.name,
        "training": runner.training_mode,
        **versions,
        "calling_convention": made.step.calling_convention_version,
        "platforms": list(platforms),
        "wide": wide(),
        "donate": bool(runner.optimizers) and runner.config.donate,
        "arguments": dict(zip(request.names(given), kinds, strict=True)),
        "parameters": manifest.parameters(request.definition.build, given),
        "results": manifest.results(made.found.outputs),
        "limits": [[i, size] for i, size in made.limits.items()],
        "places": manifest.places(owned, made.found),
    }
    manifest.write(path, made_of, programs, state_dict(owned))


# --- tracing --------------------------------------------------------------------------


class _Traced(NamedTuple):
    """A step to be written.

    Attributes:
        step: `(state, extras, numbers, batch) -> (outputs, changed extras, state)`.
        batch: What it was traced for.
        found: What tracing found out.
        limits: `{position in the batch: size}` of what integer arrays index.
    """

    step: jax.export.Exported
    batch: Specs
    found: Found
    limits: dict[int, int]


def _traced(
    request: Request,
    owned: Owned,
    given: Signature,
    batch: Specs,
    platforms: Sequence[str],
) -> _Traced:
    plan, live, optimizers = owned
    step = request.runner.step_for(request.definition, plan, given)
    state = live.state()
    inputs = Inputs(as_arrays(plan.extras), optimizers.numbers, cast(Batch, batch))
    impls = [_key_impl(array) for array in inputs.extras]
    noted: list[Found] = []

    def flat(file: FileState, extras: Arrays, numbers: Arrays, batch: Arrays) -> Any:
        pairs = zip(extras, impls, strict=True)
        wrap = jax.random.wrap_key_data
        extras = [wrap(x, impl=impl) if impl else x for x, impl in pairs]
        results = step(from_file(file), Inputs(extras, numbers, batch))
        noted.append(results.found)  # while it is traced
        changed = [key_data(array) for array in results.extras]
        return results.outputs, changed, to_file(results.state)

    extras = [jax.eval_shape(key_data, array) for array in inputs.extras]
    specs = jax.tree.map(spec_of, (to_file(state), extras, inputs.numbers))
    jitted = jax.jit(flat)
    limits = trace_step(lambda: jitted.trace(*specs, batch), plan, state, inputs).limits
    limits = {i: size for i, size in limits.items() if isinstance(size, int)}
    exported = jax.export.export(jitted, platforms=platforms)(*specs, batch)
    return _Traced(exported, batch, noted[-1], limits)


def _key_impl(array: jax.Array) -> Any:
    is_key = jnp.issubdtype(array.dtype, jax.dtypes.prng_key)
    return jax.random.key_impl(array) if is_key else None


def _rates(owned: Owned, platforms: Sequence[str]) -> jax.export.Exported:
    """Every group's learning rate, from numbers and step counts."""

    def rates(numbers: Arrays, steps: Arrays) -> Arrays:
        return [
            jnp.asarray(group_lr(spec, unpack(specs, vector)[spec.name], step))
            for specs, vector, step in zip(
                owned.plan.specs, numbers, steps, strict=True
            )
            for spec in specs
        ]

    numbers = [spec_of(vector) for vector in owned.optimizers.numbers]
    steps = [spec_of(held.counter) for held in owned.live.held]
    return jax.export.export(jax.jit(rates), platforms=platforms)(numbers, steps)
