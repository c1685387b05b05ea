"""What a file of an exported step says of itself, and how it holds a state."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from graphlr import keys
from graphlr.export import structure
from graphlr.export.batch_sizes import ExportError
from graphlr.export.structure import Array, Node
from graphlr.messages import listing
from graphlr.state import archive
from graphlr.state.state_dict import Owned, carried_entries, carried_from
from graphlr.step.signature import Build, Signature
from graphlr.step.types import Arrays, Found, OptimizerState, State

FORMAT = 1

# A step's state as an exported program takes and gives it: parameters, the slots of
# each optimizer, the steps of each, and what is carried, by the keys of a saved state.
FileState = tuple[Arrays, list[Arrays], Arrays, dict[str, jax.Array]]


def to_file(state: State) -> FileState:
    """`state` as an exported program has it."""
    slots = [optimizer.slots for optimizer in state.optimizers]
    steps = [optimizer.counter for optimizer in state.optimizers]
    return state.trained, slots, steps, carried_entries(state.carried)


def from_file(file: FileState) -> State:
    """The reverse of `to_file`."""
    trained, slots, steps, carried = file
    optimizers = map(OptimizerState, slots, steps)
    return State(trained, [*optimizers], carried_from(carried))


def write(
    path: str | os.PathLike[str],
    manifest: Mapping[str, Any],
    programs: Mapping[str, bytes],
    state: Mapping[str, Any],
) -> None:
    """Write an exported step: manifest, programs and every entry of its state."""
    arrays = {key: np.asarray(value) for key, value in state.items()}
    kinds = {
        key: {"dtype": str(array.dtype), "shape": list(array.shape)}
        for key, array in arrays.items()
    }

    def parts() -> Iterator[tuple[str, bytes]]:
        yield from programs.items()
        for key, array in arrays.items():
            yield f"{key}.npy", archive.pack(array)

    archive.write(path, {**manifest, "state": kinds}, parts())


def parameters(build: Build, given: Signature) -> list[Any]:
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


def results(outputs: Signature) -> Node:
    """The structure of what `build` returns."""
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


def places(owned: Owned, found: Found) -> dict[str, Any]:
    """Where each array of the flat step is in a state."""
    plan, _, optimizers = owned
    names = iter([name for name, _, _ in optimizers.groups])
    return {
        "trained": [keys.variable(plan.path_of(v)) for v in plan.trained],
        "extras": [keys.variable(plan.path_of(v)) for v in plan.extras],
        "changed": list(found.changed),
        "slots": [[list(slot) for slot in o.layout.slots] for o in plan.slot_plans],
        "steps": keys.steps(len(optimizers)),
        "numbers": [
            [[next(names), spec.live] for spec in specs] for specs in plan.specs
        ],
    }
