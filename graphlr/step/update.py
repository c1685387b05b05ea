"""The update: gradients to new parameters, slots and averages, or to nothing at all."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax

from graphlr.optim.slots import Layout
from graphlr.optim.traced import GroupSpec, group_lr, transform, unpack
from graphlr.optim.transforms.gradients import clip_by_norm, norm
from graphlr.platforms import ordered_on_cpu
from graphlr.precision.scalers import Scaler
from graphlr.step import carried
from graphlr.step.config import Config
from graphlr.step.plan import OptimizerPlan, Plan
from graphlr.step.types import (
    Arrays,
    Forward,
    Inputs,
    Numbers,
    OptimizerState,
    Report,
    State,
)

Named = dict[str, jax.Array]


class Backward(NamedTuple):
    """What the backward pass leaves for the update.

    Attributes:
        grads: Of the scaled loss, one for each trained parameter.
        forward: What `build` left in the Variables, and the loss, unscaled.
        unused: Paths of parameters that no loss depends on.
    """

    grads: Arrays
    forward: Forward
    unused: Collection[str]


class Updated(NamedTuple):
    """What the update gives: the new state, the changed extras, what may be seen."""

    state: State
    extras: Arrays
    report: Report


def update(
    plan: Plan,
    config: Config,
    scaler: Scaler | None,
    state: State,
    inputs: Inputs,
    backward: Backward,
) -> Updated:
    """One update of everything that is trained.

    The order is part of what users may rely on: gradients are unscaled, then clipped
    all together, and only then does each group's own chain (centring, clip, rule, rate)
    see them. What is looked at for NaN and infinity is the unscaled gradient, before
    any clip; what `config.group_stats` shows of it likewise.

    Args:
        plan: What the Variables are for.
        config: Options.
        scaler: Has scaled the loss, or None.
        state: Before the step, to go back to if the batch is skipped.
        inputs: Of the step; of its extras those that `build` changed likewise.
        backward: Gradients, and what `build` left.
    """
    forward, grads = backward.forward, _unscaled(backward.grads, state)
    extras = [forward.extras[i] for i in forward.found.changed]
    # XLA for CPU then knows that nothing reads a parameter after its update, which is
    # written over it: otherwise it would copy each one first.
    trained, clipped, loss = ordered_on_cpu(
        forward.trained, _clip(grads, config), forward.loss
    )
    before = state._replace(trained=trained)
    new, stats = _run_optimizers(
        plan, config, before, inputs.numbers, clipped, backward.unused
    )
    report = Report(loss)
    if config.group_stats:
        rows = zip(_grad_norms(plan, grads), stats, strict=True)
        report = report._replace(stats=jnp.stack([jnp.stack([a, *b]) for a, b in rows]))
    if not carried.may_skip(config, scaler):
        return Updated(new, extras, report)

    finite = [jnp.isfinite(grad).all() for grad in grads]
    statistics = [x for x in extras if jnp.issubdtype(x.dtype, jnp.floating)]
    others = [jnp.isfinite(x).all() for x in (forward.loss, *statistics)]
    ok = jnp.stack([*finite, *others]).all()
    # Everything or nothing: a batch that is skipped leaves no trace but its count.
    kept, extras = jax.tree.map(
        lambda now, then: jnp.where(ok, now, then),
        (new, extras),
        (state, [inputs.extras[i] for i in forward.found.changed]),
    )
    outcome = carried.after_check(kept.carried, ok, scaler)
    report = report._replace(finite=jnp.stack(finite))
    return Updated(kept._replace(carried=outcome), extras, report)


def _unscaled(grads: Arrays, state: State) -> Arrays:
    scale = state.carried.loss_scale
    if scale is None:
        return grads
    return [(grad / scale.value).astype(grad.dtype) for grad in grads]


def _clip(grads: Arrays, config: Config) -> Arrays:
    """Gradients within the limits of `config`, over all groups and optimizers."""
    limit = config.clip_grad_value
    if limit is not None:
        grads = [jnp.clip(grad, -limit, limit) for grad in grads]
    if config.clip_grad_norm is None:
        return grads
    clip = clip_by_norm(config.clip_grad_norm, config.clip_grad_norm_type)
    return jax.tree.leaves(clip.update(grads, optax.EmptyState())[0])


def _run_optimizers(
    plan: Plan,
    config: Config,
    state: State,
    numbers: Numbers,
    grads: Arrays,
    unused: Collection[str],
) -> tuple[State, list[tuple[jax.Array, ...]]]:
    """Every optimizer's update of what it trains; update norms, ratios, rates."""
    params = dict(zip(plan.names, state.trained, strict=True))
    gradients = dict(zip(plan.names, grads, strict=True))
    new_params, optimizers, stats = dict(params), [], []
    for planned, old, vector in zip(
        plan.optimizers, state.optimizers, numbers, strict=True
    ):
        values = unpack(planned.specs, vector)
        tx = transform(planned.specs, values, planned.labels, old.counter)
        # Keyed by path, not in the shape of the model: so one `multi_transform` takes
        # parameters of several modules, and `labels` is a plain dict.
        mine = {path: params[path] for path in planned.labels}
        layout = planned.slot_plan.layout
        directions, slots = tx.update(
            {path: gradients[path] for path in planned.labels},
            jax.tree.unflatten(layout.tree, old.slots),
            mine,
        )
        updates = cast(Named, directions)  # optax returns what it is given
        changes = {path: updates[path] for path in planned.labels if path not in unused}
        new_params.update(_applied(params, changes))
        kept = _keep_unused(layout, old.slots, jax.tree.leaves(slots), unused)
        optimizers.append(OptimizerState(kept, old.counter + 1))
        for spec in planned.specs if config.group_stats else ():
            rate = group_lr(spec, values[spec.name], old.counter)
            stats.append((*_update_norms(spec, planned, mine, changes), rate))
    trained = [new_params[path] for path in plan.names]
    carried_on = carried.after_update(state.carried, new_params, config)
    return State(trained, optimizers, carried_on), stats


def _applied(params: Named, changes: Named) -> Named:
    return {
        path: (params[path] + change).astype(params[path].dtype)
        for path, change in changes.items()
    }


def _keep_unused(
    layout: Layout, old: Arrays, new: Arrays, unused: Collection[str]
) -> Arrays:
    """New slots in their old dtypes; those of unused parameters as they were.

    A rule that promotes 16 bits to 32 would give the next call other types than this
    one, and a second compilation.
    """
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


def _grad_norms(plan: Plan, grads: Arrays) -> Arrays:
    """The norm of every group's gradient, in the order of the groups."""
    gradients = dict(zip(plan.names, grads, strict=True))
    return [
        _norm([gradients[path] for path in _paths(planned, spec)])
        for planned in plan.optimizers
        for spec in planned.specs
    ]


def _update_norms(
    spec: GroupSpec, planned: OptimizerPlan, params: Named, changes: Named
) -> tuple[jax.Array, jax.Array]:
    """The norm of a group's update, and its ratio to that of its parameters."""
    paths = _paths(planned, spec)
    change = _norm([changes[path] for path in paths if path in changes])
    weight = _norm([params[path] for path in paths])
    return change, change / jnp.maximum(weight, 1e-12)


def _paths(planned: OptimizerPlan, spec: GroupSpec) -> list[str]:
    return [path for path, name in planned.labels.items() if name == spec.name]


def _norm(arrays: Arrays) -> jax.Array:
    return norm(arrays) if arrays else jnp.zeros(())
