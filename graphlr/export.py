"""A graph's step as one file that runs without the model's Python code.

`graph.export(path, ...)` writes the traced step as StableHLO over flat arrays, with its
state; `load(path)` gives an object that is called like the graph. The batch size is a
symbol, and one program serves several platforms.
"""

from __future__ import annotations

import importlib
import inspect
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.export
import jax.numpy as jnp

from graphlr import onnx, program, signature, structure
from graphlr import state as states
from graphlr.exported import FORMAT, write
from graphlr.exported import ExportedGraph as ExportedGraph
from graphlr.exported import load as load
from graphlr.groups import listing
from graphlr.modules import read
from graphlr.optim.compiled import group_lr, unpack
from graphlr.plan import Plan
from graphlr.runner import Runner
from graphlr.signature import Signature
from graphlr.specs import ExportError as ExportError
from graphlr.specs import Specs, names_of, requested, spec_of, with_batch_sizes
from graphlr.step import Findings, Inputs
from graphlr.structure import Array, Node
from graphlr.update import State

PLATFORMS = ("cpu", "cuda", "tpu")


def save(
    runner: Runner,
    path: str | os.PathLike[str],
    args: Any,
    kwargs: Any,
    symbolic: bool | None,
    platforms: Sequence[str],
) -> None:
    """Write a graph's step and state, or ONNX; see `Graph.export`."""
    if str(path).endswith(".onnx"):
        onnx.save(runner, path, args, kwargs, symbolic)
        return
    plan, optimizers = runner.ready(), runner.optimizers
    given = requested(runner, args, kwargs)

    def attempt(batch: Specs) -> _Traced:
        return _traced(runner, plan, given, batch, platforms)

    made = with_batch_sizes(runner, given, attempt, symbolic)
    programs = {"step.jax": bytes(made.step.serialize())}
    if optimizers:
        programs["lr.jax"] = bytes(_rates(runner, plan, platforms).serialize())
    versions = {
        name: importlib.import_module(name).__version__
        for name in ("graphlr", "jax", "flax")
    }
    kinds = [jax.typeof(spec).str_short() for spec in made.batch]
    manifest = {
        "format": FORMAT,
        "name": runner.name,
        "training": runner.training_mode,
        **versions,
        "calling_convention": made.step.calling_convention_version,
        "platforms": list(platforms),
        "wide": signature.wide(),
        "donate": bool(optimizers) and runner.config.donate,
        "arguments": dict(zip(names_of(runner, given), kinds, strict=True)),
        "parameters": _parameters(runner.build, given),
        "results": _results(made.found.outputs),
        "limits": [[i, size] for i, size in made.limits.items()],
        "places": _places(runner, plan, made.found),
    }
    write(path, manifest, programs, states.state_dict(plan, optimizers, runner.memory))


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
    found: Findings
    limits: dict[int, int]


def _traced(
    runner: Runner,
    plan: Plan,
    given: Signature,
    batch: Specs,
    platforms: Sequence[str],
) -> _Traced:
    step, found = runner.step(plan, given)
    optimizers = runner.optimizers
    slots = [optimizer.slots for optimizer in optimizers]
    steps = [optimizer.counter for optimizer in optimizers]
    state = State(read(plan.trained), slots, steps, runner.memory)
    inputs = runner.inputs(plan, batch)
    keys = [_key_impl(array) for array in inputs.extras]

    def flat(state: Any, extras: Any, numbers: Any, batch: Any) -> Any:
        pairs = zip(extras, keys, strict=True)
        wrap = jax.random.wrap_key_data
        extras = [wrap(x, impl=impl) if impl else x for x, impl in pairs]
        results = step(State(*state), Inputs(extras, numbers, batch))
        changed = [states.plain(array) for array in results.extras]
        return results.outputs, changed, tuple(results.state)

    extras = [jax.eval_shape(states.plain, array) for array in inputs.extras]
    specs = jax.tree.map(spec_of, (tuple(state), extras, [*inputs.numbers]))
    jitted = jax.jit(flat)
    traced = jitted.trace(*specs, batch)
    program.check_constants(traced.jaxpr.consts, state, inputs, plan)
    jaxpr = traced.jaxpr.jaxpr
    arrays = jaxpr.invars[len(jaxpr.invars) - len(batch) :]
    limits = signature.index_limits(jaxpr, {v: i for i, v in enumerate(arrays)})
    limits = {i: size for i, size in limits.items() if isinstance(size, int)}
    exported = jax.export.export(jitted, platforms=platforms)(*specs, batch)
    return _Traced(exported, batch, found, limits)


def _key_impl(array: Any) -> Any:
    is_key = jnp.issubdtype(array.dtype, jax.dtypes.prng_key)
    return jax.random.key_impl(array) if is_key else None


def _rates(runner: Runner, plan: Plan, platforms: Sequence[str]) -> jax.export.Exported:
    """Every group's learning rate, from numbers and step counts."""

    def rates(numbers: Any, steps: Any) -> list[jax.Array]:
        return [
            jnp.asarray(group_lr(spec, unpack(specs, vector)[spec.name], step))
            for specs, vector, step in zip(plan.specs, numbers, steps, strict=True)
            for spec in specs
        ]

    numbers = [spec_of(optimizer.numbers) for optimizer in runner.optimizers]
    steps = [spec_of(optimizer.counter) for optimizer in runner.optimizers]
    return jax.export.export(jax.jit(rates), platforms=platforms)(numbers, steps)


# --- the manifest ---------------------------------------------------------------------


def _parameters(build: Callable[..., Any], given: Signature) -> list[Any]:
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


def _places(runner: Runner, plan: Plan, found: Findings) -> dict[str, Any]:
    """Where each array of the flat step is in a state."""
    optimizers = runner.optimizers
    paths = dict(zip(map(id, plan.modules.variables), plan.modules.paths, strict=True))
    groups = zip(states.group_names(optimizers), plan.specs, strict=True)
    return {
        "trained": [paths[id(variable)] for variable in plan.trained],
        "extras": [paths[id(variable)] for variable in plan.extras],
        "changed": found.changed,
        "slots": [[list(slot) for slot in layout.slots] for layout in plan.layouts],
        "steps": states.step_keys(optimizers) if optimizers else [],
        "numbers": [
            [[name, spec.live] for name, spec in zip(names, specs, strict=True)]
            for names, specs in groups
        ],
    }
