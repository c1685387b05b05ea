"""One step as a pure function of flat lists: build, gradients, clip, update.

This is what gets compiled. It knows nothing of time, disk or screens, and what it finds
out while it is traced, beside its values, goes into `Findings`.
"""

from __future__ import annotations

import dataclasses
import enum
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from graphlr.groups import listing
from graphlr.optim.compiled import transform, unpack
from graphlr.optim.slots import Layout
from graphlr.optim.transforms import clip_by_norm
from graphlr.plan import Plan
from graphlr.signature import Constant, Signature, registered

Arrays = list[jax.Array]
# build bound to attributes that hold tracers: (attributes, losses) -> build
Bind = Callable[[dict[str, Any], list[jax.Array]], Callable[..., Any]]


_CONSTANTS = (str, bytes, bool, int, float, complex, enum.Enum)


class State(NamedTuple):
    """What a training step replaces.

    Attributes:
        trained: The trained parameters.
        slots: Optimizer state, a list for each optimizer.
        steps: Updates already applied, int32[] for each optimizer.
    """

    trained: Arrays
    slots: list[Arrays]
    steps: Arrays


class Inputs(NamedTuple):
    """What a step only reads.

    Attributes:
        extras: Every Variable that is not trained.
        numbers: Live numbers of each optimizer.
        batch: The arrays among the arguments.
    """

    extras: Arrays
    numbers: Arrays
    batch: Sequence[Any]


class Results(NamedTuple):
    """What a step gives.

    Attributes:
        outputs: The arrays among what `build` returned.
        extras: The extras that `build` changed.
        state: The new state.
    """

    outputs: Arrays
    extras: Arrays
    state: State


@dataclasses.dataclass
class Findings:
    """What tracing finds out.

    Attributes:
        outputs: How `Results.outputs` becomes what `build` returned.
        changed: Which extras `Results.extras` are.
        unused: Trained parameters that no loss depends on.
    """

    outputs: Signature = dataclasses.field(default_factory=lambda: Signature(None, ()))
    changed: list[int] = dataclasses.field(default_factory=list)
    unused: set[str] = dataclasses.field(default_factory=set)


def make_step(
    plan: Plan,
    bind: Bind,
    signature: Signature,
    *,
    training: bool,
    clip_grad_norm: float | None,
) -> tuple[Callable[[State, Inputs], Results], Findings]:
    """The step for one signature, and what tracing it will find out.

    Args:
        plan: What the Variables are for.
        bind: Makes `build` see given attributes and losses.
        signature: Of the arguments.
        training: Mode of the modules.
        clip_grad_norm: Norm to clip all gradients to, together, or None.
    """
    found = Findings()

    def forward(trained: Arrays, inputs: Inputs) -> tuple[Any, Any]:
        arrays = dict(zip(map(id, plan.trained), trained, strict=True))
        arrays |= zip(map(id, plan.extras), inputs.extras, strict=True)
        attributes = plan.modules.merge(arrays, training, plan.still)
        losses: list[jax.Array] = []
        args, kwargs = signature.fill(inputs.batch)
        result = bind(attributes, losses)(*args, **kwargs)
        outputs, found.outputs = _split(result)
        after = plan.modules.now(attributes)
        extras = _changed_extras(plan, found, arrays, after)
        assigned = [after[id(variable)] for variable in plan.trained]
        return _total(losses, plan), (outputs, extras, assigned)

    def step(state: State, inputs: Inputs) -> Results:
        if not plan.layouts:
            _, (outputs, extras, _) = forward(state.trained, inputs)
            return Results(outputs, extras, state)

        def loss(trained: Arrays) -> tuple[jax.Array, Any]:
            return forward(_noting_use(trained, plan.names, found), inputs)

        found.unused = set(plan.names)
        grads: Any
        grads, aux = jax.grad(loss, has_aux=True)(state.trained)
        outputs, extras, trained = aux  # build may assign, and nnx.remat always does
        state = state._replace(trained=trained)
        _warn_unused(found.unused, plan)
        if clip_grad_norm is not None:
            grads, _ = clip_by_norm(clip_grad_norm).update(grads, optax.EmptyState())
        return Results(outputs, extras, _update(plan, state, inputs, grads, found))

    return step, found


def _update(
    plan: Plan, state: State, inputs: Inputs, grads: Arrays, found: Findings
) -> State:
    """Every optimizer's update of the parameters it trains."""
    params = dict(zip(plan.names, state.trained, strict=True))
    gradients = dict(zip(plan.names, grads, strict=True))
    new_params, all_slots = dict(params), []
    for k, layout in enumerate(plan.layouts):
        specs, labels, old = plan.specs[k], plan.labels[k], state.slots[k]
        values = unpack(specs, inputs.numbers[k])
        tx = transform(specs, values, labels, state.steps[k])
        mine = {path: params[path] for path in labels}
        updates, slots = tx.update(
            {path: gradients[path] for path in labels},
            jax.tree.unflatten(layout.tree, old),
            mine,
        )
        new_params.update(_applied(mine, updates))
        all_slots.append(_keep_unused(layout, old, jax.tree.leaves(slots), found))
    trained = [
        params[path] if path in found.unused else new_params[path]
        for path in plan.names
    ]
    return State(trained, all_slots, [step + 1 for step in state.steps])


def _applied(params: dict[str, jax.Array], updates: Any) -> dict[str, jax.Array]:
    return {
        path: (param + updates[path]).astype(param.dtype)
        for path, param in params.items()
    }


def _keep_unused(layout: Layout, old: Arrays, new: Arrays, found: Findings) -> Arrays:
    """New slots in their old dtypes; those of unused parameters as they were."""
    kept = []
    for slot, before, after in zip(layout.slots, old, new, strict=True):
        unused = np.array([path in found.unused for path in slot.paths])
        if unused.all():
            kept.append(before)
        elif slot.kind == "each" and unused.any():
            kept.append(jnp.where(unused, before, after))
        else:
            kept.append(after.astype(before.dtype))
    return kept


def _noting_use(trained: Arrays, names: Sequence[str], found: Findings) -> Arrays:
    """`trained`; strikes from `found.unused` what the backward pass comes to."""
    zero = jax.custom_derivatives.SymbolicZero

    @jax.custom_vjp
    def note(arrays: Arrays) -> Arrays:
        return arrays

    def forward(arrays: Any) -> Any:
        return [array.value for array in arrays], None

    def backward(_: None, cotangents: Any) -> Any:
        for name, cotangent in zip(names, cotangents, strict=True):
            if not isinstance(cotangent, zero):
                found.unused.discard(name)
        dense = [
            jnp.zeros(array.shape, array.dtype) if isinstance(c, zero) else c
            for c, array in zip(cotangents, trained, strict=True)
        ]
        return (dense,)

    note.defvjp(forward, backward, symbolic_zeros=True)
    return note(trained)


def _warn_unused(unused: set[str], plan: Plan) -> None:
    if len(unused) == len(plan.names):
        raise ValueError(
            "the loss given to self.backward depends on no trained parameter: compute "
            "it from self's modules, logits = self.model(image)"
        )
    if unused:
        warnings.warn(
            f"no loss depends on {listing(sorted(unused))}: they get no gradient and "
            "stay as they are. Is a module misspelt or not called? Freeze them to say "
            "that it is meant, {'params': ..., 'frozen': True}",
            stacklevel=2,
        )


def _total(losses: list[jax.Array], plan: Plan) -> jax.Array | None:
    if not plan.layouts:
        return None
    if not losses:
        raise RuntimeError(
            "build() of a graph with an optimizer never called self.backward(loss): "
            "call it, or make the graph without add_optimizer to evaluate"
        )
    return sum(losses[1:], losses[0])


def _changed_extras(
    plan: Plan, found: Findings, before: dict[int, Any], after: dict[int, Any]
) -> Arrays:
    """New values of the extras that `build` assigned to."""
    ids = [id(variable) for variable in plan.extras]
    found.changed = [i for i, v in enumerate(ids) if after[v] is not before[v]]
    return [after[ids[i]] for i in found.changed]


def _split(result: Any) -> tuple[Arrays, Signature]:
    """The arrays of what `build` returned, and how to put them back."""
    leaves, tree = jax.tree.flatten(registered(result))
    arrays, kinds = [], []
    for leaf in leaves:
        if isinstance(leaf, jax.Array | np.ndarray | np.generic):
            arrays.append(jnp.asarray(leaf))
            kinds.append(None)
        elif isinstance(leaf, _CONSTANTS) or callable(leaf):
            kinds.append(Constant(type(leaf), leaf))
        else:
            raise TypeError(
                f"build() returned a {type(leaf).__name__}, which is no pytree: return "
                "arrays in tuples, lists, dicts or dataclasses"
            )
    return arrays, Signature(tree, tuple(kinds))
