"""One step as a pure function of flat lists: build, gradients, update.

This is what gets compiled. It knows nothing of time, disk, screens or signals, and
changes nothing that it is given. In this order:

    Task        what is constant in the step of one signature
    make_step   that step
    _train      gradients of the batch, or of all its parts; then the update
    _evaluate   in place of it, without optimizer
    _forward    one run of `build`, on copies of the modules
    _split      what `build` returned: arrays, and how to put them back

Everything from `_train` on is Python that runs while the step is traced: once for each
signature, and at every call of `graph.eager`. Compiled are the operations on arrays
that it leads to, and nothing else of it.
"""

from __future__ import annotations

import dataclasses
import enum
import functools

import jax
import jax.numpy as jnp
import numpy as np

from graphlr.groups.selectors import select_modules
from graphlr.modules import calls
from graphlr.modules.tree import Edit
from graphlr.precision import casting
from graphlr.precision.scalers import Scaler
from graphlr.step.config import Config
from graphlr.step.definition import Definition
from graphlr.step.loops import accumulate
from graphlr.step.losses import Losses
from graphlr.step.plan import Plan
from graphlr.step.signature import Constant, Signature, registered
from graphlr.step.types import (
    Arrays,
    Batch,
    Forward,
    Found,
    Inputs,
    Report,
    Results,
    State,
    Step,
)
from graphlr.step.unused import Use
from graphlr.step.update import Backward, update

_CONSTANTS = (str, bytes, bool, int, float, complex, enum.Enum)


@dataclasses.dataclass(frozen=True)
class Task:
    """Everything that a step is made from and that is constant in it.

    Attributes:
        plan: What the Variables are for.
        definition: The graph as the user wrote it.
        signature: Of the arguments.
        training: Mode of the modules.
        config: Options.
        scaler: Scales the loss, or None.
    """

    plan: Plan
    definition: Definition
    signature: Signature
    training: bool
    config: Config
    scaler: Scaler | None

    @functools.cached_property
    def edits(self) -> list[Edit]:
        """What is changed in the copies of the modules before `build` sees them.

        Raises:
            ValueError: A selector of `config` selects no module.
        """
        nodes, config = self.plan.modules.nodes(), self.config
        float32 = select_modules(nodes, config.amp_float32, "config.amp_float32")
        again = select_modules(nodes, config.remat, "config.remat")
        modules = {path: node.value for path, node in nodes.items()}
        return [
            *self.plan.norm_edits,
            *casting.edits(modules, config.amp, float32),
            *((path, calls.recompute) for path in again),
        ]


def make_step(task: Task) -> Step:
    """The step for one signature: `(state, inputs) -> results`."""
    run = _train if task.plan.optimizers else _evaluate

    def step(state: State, inputs: Inputs) -> Results:
        return run(task, state, inputs)

    return step


def _evaluate(task: Task, state: State, inputs: Inputs) -> Results:
    done = _forward(task, state.trained, inputs.extras, inputs.batch)
    changed = [done.extras[i] for i in done.found.changed]
    return Results(state, done.outputs, changed, Report(), done.found)


def _train(task: Task, state: State, inputs: Inputs) -> Results:
    use, scale = Use(task.plan.names), state.carried.loss_scale
    parts = task.config.gradient_accumulation_steps

    def gradients(
        trained: Arrays, extras: Arrays, batch: Batch
    ) -> tuple[Arrays, Forward]:
        def loss(trained: Arrays) -> tuple[jax.Array, Forward]:
            done = _forward(task, use.noting(trained), extras, batch)
            return done.loss if scale is None else done.loss * scale.value, done

        return jax.grad(loss, has_aux=True)(trained)

    # The extras that `build` changes are results of the run that is differentiated, not
    # side effects of it: `jax.grad` hands them on beside the gradients.
    if parts == 1:
        grads, done = gradients(state.trained, inputs.extras, inputs.batch)
    else:
        grads, done = accumulate(gradients, parts, state.trained, inputs)
    use.check()  # the backward pass is traced now: all that is used was noted
    new, extras, report = update(
        task.plan,
        task.config,
        task.scaler,
        state,
        inputs,
        Backward(grads, done, use.unused),
    )
    return Results(new, done.outputs, extras, report, done.found)


def _forward(task: Task, trained: Arrays, extras: Arrays, batch: Batch) -> Forward:
    """Run `build` on copies of the modules that hold these arrays."""
    plan, definition = task.plan, task.definition
    arrays = dict(zip(map(id, plan.trained), trained, strict=True))
    arrays |= zip(map(id, plan.extras), extras, strict=True)
    attributes = plan.modules.merge(arrays, task.training, task.edits)
    # An edit may have put a parameter into 16 bits: a Variable then holds another
    # tracer than what was put in, without `build` having assigned to it.
    held = plan.modules.now(attributes) if task.config.amp else arrays
    losses = Losses(training=bool(plan.optimizers))
    args, kwargs = task.signature.fill(batch)
    result = definition.bind(attributes, losses)(*args, **kwargs)
    outputs, structure = _split(result)
    # What `build` changed shows itself by identity: a Variable that nobody assigned to
    # still holds the very tracer that was put in.
    after = plan.modules.now(attributes)
    ids = [id(variable) for variable in plan.extras]
    changed = tuple(i for i, v in enumerate(ids) if after[v] is not held[v])
    return Forward(
        [_assigned(arrays[v], held[v], after[v]) for v in map(id, plan.trained)],
        [_assigned(arrays[v], held[v], after[v]) for v in ids],
        outputs,
        losses.total(),
        Found(structure, changed),
    )


def _assigned(given: jax.Array, held: jax.Array, after: jax.Array) -> jax.Array:
    """What a Variable holds after `build`, in the dtype of what it was given.

    Args:
        given: What went into the step.
        held: What its copy held when `build` began: the same, or that in 16 bits.
        after: What its copy holds now; a change in 16 bits is added to `given`.
    """
    if after is held:
        return given
    return after if held is given else given + (after - held).astype(given.dtype)


def _split(result: object) -> tuple[Arrays, Signature]:
    """The arrays of what `build` returned, and how to put them back."""
    leaves, tree = jax.tree.flatten(registered(result))
    arrays, kinds = [], []
    for leaf in leaves:
        if isinstance(leaf, jax.Array | np.ndarray | np.generic):
            arrays.append(jnp.asarray(leaf))
            kinds.append(jax.typeof(leaf))
        elif isinstance(leaf, _CONSTANTS) or callable(leaf):
            kinds.append(Constant(type(leaf), leaf))
        else:
            raise TypeError(
                f"build() returned a {type(leaf).__name__}, which is no pytree: return "
                "arrays in tuples, lists, dicts or dataclasses"
            )
    return arrays, Signature(tree, tuple(kinds))
