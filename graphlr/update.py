"""The update: gradients to new parameters, slots and memory, or to nothing at all."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from graphlr import memory as memories
from graphlr.config import Config
from graphlr.memory import Memory, may_skip
from graphlr.optim.compiled import GroupSpec, group_lr, transform, unpack
from graphlr.optim.slots import Layout
from graphlr.optim.transforms import clip_by_norm, norm
from graphlr.plan import Plan
from graphlr.platforms import ordered_on_cpu
from graphlr.precision import Scaler

Arrays = list[jax.Array]
Report = dict[str, Any]
Named = dict[str, jax.Array]

STATS = ("grad_norm", "update_norm", "update_ratio", "lr")


class State(NamedTuple):
    """What a training step replaces.

    Attributes:
        trained: The trained parameters.
        slots: Optimizer state, a list for each optimizer.
        steps: Updates already applied, int32[] for each optimizer.
        memory: Averages, loss scale, skipped batches.
    """

    trained: Arrays
    slots: list[Arrays]
    steps: Arrays
    memory: Memory


def update(
    plan: Plan,
    state: State,
    numbers: Sequence[jax.Array],
    grads: Arrays,
    *,
    unused: Collection[str],
    config: Config,
    scaler: Scaler | None,
    before: tuple[Arrays, Arrays],
    extras: Arrays,
    loss: Any,
) -> tuple[State, Arrays, Report]:
    """One update of everything that is trained.

    Args:
        plan: What the Variables are for.
        state: Before the update, with what `build` assigned to parameters.
        numbers: Live numbers of each optimizer.
        grads: Of the scaled loss, one for each trained parameter.
        unused: Parameters without gradient, which stay as they are.
        config: Options.
        scaler: Has scaled the loss, or None.
        before: Trained parameters and changed extras before the step, to go back to.
        extras: The changed extras.
        loss: Their loss, unscaled.

    Returns:
        The new state, the changed extras, and what was asked to be seen: `finite`
        (bool[n], for each trained parameter), `stats` (float[groups, 4], see `STATS`).
    """
    if scaler is not None:
        scale = state.memory["scaler.scale"]
        grads = [(g / scale).astype(g.dtype) for g in grads]
    report: Report = {}
    finite = [jnp.isfinite(g).all() for g in grads] if may_skip(config, scaler) else []
    new, stats = _updated(plan, state, numbers, _clipped(grads, config), unused, config)
    if config.group_stats:
        norms = _norms(plan, grads)
        report["stats"] = jnp.stack(
            [jnp.stack([a, *b]) for a, b in zip(norms, stats, strict=True)]
        )
    if not finite:
        return new, extras, report
    report["finite"] = jnp.stack(finite)
    floats = [x for x in extras if jnp.issubdtype(x.dtype, jnp.floating)]
    ok = jnp.stack([*finite, *(jnp.isfinite(x).all() for x in (loss, *floats))]).all()
    old = state._replace(trained=before[0])
    kept, extras = jax.tree.map(
        lambda now, then: jnp.where(ok, now, then), (new, extras), (old, before[1])
    )
    counted = memories.counted(kept.memory, ok, scaler)
    return kept._replace(memory=counted), extras, report


def _clipped(grads: Arrays, config: Config) -> Any:
    limit = config.clip_grad_value
    if limit is not None:
        grads = [jnp.clip(g, -limit, limit) for g in grads]
    if config.clip_grad_norm is None:
        return grads
    clip = clip_by_norm(config.clip_grad_norm, config.clip_grad_norm_type)
    return clip.update(grads, optax.EmptyState())[0]


def _updated(
    plan: Plan,
    state: State,
    numbers: Sequence[jax.Array],
    grads: Arrays,
    unused: Collection[str],
    config: Config,
) -> tuple[State, list[tuple[Any, ...]]]:
    """Every optimizer's update of what it trains; update norms, ratios, rates."""
    # XLA for CPU then knows that nothing reads a parameter after its update, which is
    # written over it: it would else copy each one first.
    trained, grads = ordered_on_cpu(state.trained, grads)
    params = dict(zip(plan.names, trained, strict=True))
    gradients = dict(zip(plan.names, grads, strict=True))
    new_params, all_slots, stats = dict(params), [], []
    for k, layout in enumerate(plan.layouts):
        specs, labels, old = plan.specs[k], plan.labels[k], state.slots[k]
        values = unpack(specs, numbers[k])
        tx = transform(specs, values, labels, state.steps[k])
        mine = {path: params[path] for path in labels}
        updates: Any
        updates, slots = tx.update(
            {path: gradients[path] for path in labels},
            jax.tree.unflatten(layout.tree, old),
            mine,
        )
        updates = {path: updates[path] for path in labels if path not in unused}
        new_params.update(_applied(params, updates))
        all_slots.append(_keep_unused(layout, old, jax.tree.leaves(slots), unused))
        for spec in specs if config.group_stats else ():
            rate = group_lr(spec, values[spec.name], state.steps[k])
            stats.append((*_sizes(spec, labels, mine, updates), rate))
    trained = [new_params[path] for path in plan.names]
    memory = memories.advanced(state.memory, new_params, config)
    return State(trained, all_slots, [step + 1 for step in state.steps], memory), stats


def _applied(params: Named, updates: Named) -> Named:
    return {
        path: (params[path] + change).astype(params[path].dtype)
        for path, change in updates.items()
    }


def _keep_unused(
    layout: Layout, old: Arrays, new: Arrays, unused: Collection[str]
) -> Arrays:
    """New slots in their old dtypes; those of unused parameters as they were."""
    kept = []
    for slot, before, after in zip(layout.slots, old, new, strict=True):
        idle = np.array([path in unused for path in slot.paths])
        if idle.all():
            kept.append(before)
        elif slot.kind == "each" and idle.any():
            kept.append(jnp.where(idle, before, after))
        else:
            kept.append(after.astype(before.dtype))
    return kept


# --- what a user may want to see ------------------------------------------------------


def _norms(plan: Plan, grads: Arrays) -> list[jax.Array]:
    """The norm of every group's gradient, in the order of the groups."""
    gradients = dict(zip(plan.names, grads, strict=True))
    return [
        _norm([gradients[p] for p, name in labels.items() if name == spec.name])
        for specs, labels in zip(plan.specs, plan.labels, strict=True)
        for spec in specs
    ]


def _sizes(
    spec: GroupSpec, labels: dict[str, str], params: Named, updates: Named
) -> tuple[jax.Array, jax.Array]:
    """The norm of a group's update, and its ratio to that of its parameters."""
    paths = [path for path, name in labels.items() if name == spec.name]
    change = _norm([updates[path] for path in paths if path in updates])
    weight = _norm([params[path] for path in paths])
    return change, change / jnp.maximum(weight, 1e-12)


def _norm(arrays: Arrays) -> jax.Array:
    return norm(arrays) if arrays else jnp.zeros(())
