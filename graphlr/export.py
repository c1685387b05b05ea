"""A graph's step as one file that runs without the model's Python code.

`graph.export(path, ...)` writes the traced step as StableHLO over flat arrays, with its
state; `load(path)` gives an object that is called like the graph. The batch size is a
symbol, and one program serves several platforms.
"""

from __future__ import annotations

import importlib
import inspect
import os
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.export
import jax.numpy as jnp

from graphlr import keys, onnx, structure
from graphlr import state as states
from graphlr.exported import FORMAT, FileState, from_file, to_file, write
from graphlr.exported import ExportedGraph as ExportedGraph
from graphlr.exported import load as load
from graphlr.groups import listing
from graphlr.modules import as_arrays
from graphlr.optim.compiled import group_lr, unpack
from graphlr.program import trace_step
from graphlr.runtime import wide
from graphlr.signature import Build, Signature
from graphlr.specs import ExportError as ExportError
from graphlr.specs import Request as Request
from graphlr.specs import Specs, spec_of, with_batch_sizes
from graphlr.state import Owned
from graphlr.structure import Array, Node
from graphlr.types import Arrays, Batch, Found, Inputs

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
    manifest = {
        "format": FORMAT,
        "name": request.name,
        "training": runner.training_mode,
        **versions,
        "calling_convention": made.step.calling_convention_version,
        "platforms": list(platforms),
        "wide": wide(),
        "donate": bool(runner.optimizers) and runner.config.donate,
        "arguments": dict(zip(request.names(given), kinds, strict=True)),
        "parameters": _parameters(request.definition.build, given),
        "results": _results(made.found.outputs),
        "limits": [[i, size] for i, size in made.limits.items()],
        "places": _places(owned, made.found),
    }
    write(path, manifest, programs, states.state_dict(owned))


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
    step = request.runner.step(request.definition, plan, given)
    state = live.state()
    inputs = Inputs(as_arrays(plan.extras), optimizers.numbers, cast(Batch, batch))
    impls = [_key_impl(array) for array in inputs.extras]
    found: list[Found] = []

    def flat(file: FileState, extras: Arrays, numbers: Arrays, batch: Arrays) -> Any:
        pairs = zip(extras, impls, strict=True)
        wrap = jax.random.wrap_key_data
        extras = [wrap(x, impl=impl) if impl else x for x, impl in pairs]
        results = step(from_file(file), Inputs(extras, numbers, batch))
        found.append(results.found)  # while it is traced
        changed = [states.key_data(array) for array in results.extras]
        return results.outputs, changed, to_file(results.state)

    extras = [jax.eval_shape(states.key_data, array) for array in inputs.extras]
    specs = jax.tree.map(spec_of, (to_file(state), extras, inputs.numbers))
    jitted = jax.jit(flat)
    limits = trace_step(lambda: jitted.trace(*specs, batch), plan, state, inputs).limits
    limits = {i: size for i, size in limits.items() if isinstance(size, int)}
    exported = jax.export.export(jitted, platforms=platforms)(*specs, batch)
    return _Traced(exported, batch, found[-1], limits)


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


# --- the manifest ---------------------------------------------------------------------


def _parameters(build: Build, given: Signature) -> list[Any]:
    """Name, kind, whether it may be left out, and structure of each of `build`'s."""
    arrays = [Array(i) for i in range(len(given.kinds_as_leaves()))]
    args, kwargs = given.fill(arrays)
    bound = inspect.signature(build).bind(*args, **kwargs)
    explicit = {*bound.arguments}
    bound.apply_defaults()
    nodes = {name: structure.describe(x) for name, x in bound.arguments.items()}
    _check_complete([*nodes.values()], len(arrays), "build() takes")
    return [
        [name, parameter.kind.name, name not in explicit, nodes[name]]
        for name, parameter in bound.signature.parameters.items()
    ]


def _results(outputs: Signature) -> Node:
    arrays = [Array(i) for i in range(len(outputs.kinds_as_leaves()))]
    node = structure.describe(outputs.fill(arrays))
    _check_complete([node], len(arrays), "build() returns")
    strange = _constants([node])
    if strange:
        raise ExportError(
            f"build() returns {listing(strange)}, which a file can't hold: return "
            "arrays, strings and numbers"
        )
    return node


def _check_complete(nodes: Sequence[Node], arrays: int, what: str) -> None:
    inside = [inner for node in nodes for inner in structure.nodes(node)]
    if sum(isinstance(inner, int) for inner in inside) < arrays:
        raise ExportError(
            f"{what} arrays in {listing(_constants(nodes))}, which a file can't hold: "
            "use tuples, lists, dicts, named tuples or dataclasses"
        )


def _constants(nodes: Sequence[Node]) -> list[str]:
    inside = [inner for node in nodes for inner in structure.nodes(node)]
    return [n["constant"] for n in inside if isinstance(n, dict) and "constant" in n]


def _places(owned: Owned, found: Found) -> dict[str, Any]:
    """Where each array of the flat step is in a state."""
    plan, _, optimizers = owned
    names = iter([name for name, _, _ in optimizers.groups])
    return {
        "trained": [keys.variable(plan.path_of(v)) for v in plan.trained],
        "extras": [keys.variable(plan.path_of(v)) for v in plan.extras],
        "changed": list(found.changed),
        "slots": [[list(slot) for slot in o.layout.slots] for o in plan.slots],
        "steps": keys.steps(len(optimizers)),
        "numbers": [
            [[next(names), spec.live] for spec in specs] for specs in plan.specs
        ],
    }
