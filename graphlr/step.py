"""One step as a pure function of flat lists: build, gradients, update.

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
from jax.core import Tracer

from graphlr import calls, precision
from graphlr.config import Config
from graphlr.groups import listing, select_modules
from graphlr.modules import Edit
from graphlr.plan import Plan
from graphlr.precision import Scaler
from graphlr.signature import Constant, Signature, registered
from graphlr.update import Report, State, update

Arrays = list[jax.Array]
# build bound to attributes that hold tracers: (attributes, losses) -> build
Bind = Callable[[dict[str, Any], list[jax.Array]], Callable[..., Any]]


_CONSTANTS = (str, bytes, bool, int, float, complex, enum.Enum)


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

    The state comes first: jax gives each donated buffer to the first result of its
    shape, and a result in another's buffer costs a copy.

    Attributes:
        state: The new state.
        outputs: The arrays among what `build` returned.
        extras: The extras that `build` changed.
        report: What was asked to be seen of the update.
    """

    state: State
    outputs: Arrays
    extras: Arrays
    report: Report


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


class _Pass(NamedTuple):
    """What one run of `build` leaves.

    Attributes:
        trained: The trained parameters, which `build` may assign to.
        extras: All extras.
        outputs: The arrays among what it returned.
        loss: The sum of the losses, or None in a graph without optimizer.
    """

    trained: Arrays
    extras: Arrays
    outputs: Arrays
    loss: jax.Array | None


def make_step(
    plan: Plan,
    bind: Bind,
    signature: Signature,
    *,
    training: bool,
    config: Config,
    scaler: Scaler | None = None,
) -> tuple[Callable[[State, Inputs], Results], Findings]:
    """The step for one signature, and what tracing it will find out.

    Args:
        plan: What the Variables are for.
        bind: Makes `build` see given attributes and losses.
        signature: Of the arguments.
        training: Mode of the modules.
        config: Options.
        scaler: Scales the loss, or None.
    """
    found = Findings()
    edits = [*plan.still, *_edits(plan, config)]

    def forward(trained: Arrays, extras: Arrays, batch: Sequence[Any]) -> _Pass:
        arrays = dict(zip(map(id, plan.trained), trained, strict=True))
        arrays |= zip(map(id, plan.extras), extras, strict=True)
        attributes = plan.modules.merge(arrays, training, edits)
        held = plan.modules.now(attributes) if config.amp else arrays
        losses: list[jax.Array] = []
        args, kwargs = signature.fill(batch)
        result = bind(attributes, losses)(*args, **kwargs)
        outputs, found.outputs = _split(result)
        after = plan.modules.now(attributes)
        ids = [id(variable) for variable in plan.extras]
        found.changed = [i for i, v in enumerate(ids) if after[v] is not held[v]]
        return _Pass(
            [_assigned(arrays[v], held[v], after[v]) for v in map(id, plan.trained)],
            [_assigned(arrays[v], held[v], after[v]) for v in ids],
            outputs,
            _total(losses, plan),
        )

    def one_part(
        trained: Arrays, extras: Arrays, batch: Sequence[Any], scale: Any
    ) -> tuple[Arrays, _Pass]:
        def loss(trained: Arrays) -> tuple[Any, _Pass]:
            done = forward(_noting_use(trained, plan.names, found), extras, batch)
            assert done.loss is not None
            return done.loss if scale is None else done.loss * scale, done

        return jax.grad(loss, has_aux=True)(trained)

    def step(state: State, inputs: Inputs) -> Results:
        if not plan.layouts:
            done = forward(state.trained, inputs.extras, inputs.batch)
            changed = [done.extras[i] for i in found.changed]
            return Results(state, done.outputs, changed, {})
        found.unused = set(plan.names)
        parts = config.gradient_accumulation_steps
        scale = state.memory.get("scaler.scale")
        if parts == 1:
            grads, done = one_part(state.trained, inputs.extras, inputs.batch, scale)
        else:
            grads, done = _accumulated(one_part, parts, state.trained, inputs, scale)
        _warn_unused(found.unused, plan)
        before = [inputs.extras[i] for i in found.changed]
        after = [done.extras[i] for i in found.changed]
        new, extras, report = update(
            plan,
            state._replace(trained=done.trained),
            inputs.numbers,
            grads,
            unused=found.unused,
            config=config,
            scaler=scaler,
            before=(state.trained, before),
            extras=after,
            loss=done.loss,
        )
        return Results(new, done.outputs, extras, report)

    return step, found


def _edits(plan: Plan, config: Config) -> list[Edit]:
    """What the options change in the traced copies of modules."""
    nodes = plan.modules.nodes()
    float32 = select_modules(nodes, config.amp_float32, "config.amp_float32")
    again = select_modules(nodes, config.remat, "config.remat")
    modules = {place: node.value for place, node in nodes.items()}
    return [
        *precision.edits(modules, config.amp, float32),
        *((place, calls.recompute) for place in again),
    ]


def _assigned(given: Any, held: Any, after: Any) -> Any:
    """What a Variable that was `given` is now, where its copy `held` it in 16 bits."""
    if after is held:
        return given
    return after if held is given else given + (after - held).astype(given.dtype)


# --- a batch in parts -----------------------------------------------------------------


def _accumulated(
    one_part: Callable[..., tuple[Arrays, _Pass]],
    parts: int,
    trained: Arrays,
    inputs: Inputs,
    scale: Any,
) -> tuple[Arrays, _Pass]:
    """The mean of the gradients of all parts, and what the parts leave."""
    split = [
        jnp.reshape(x, (parts, -1, *np.shape(x)[1:]))
        for x in inputs.batch
        if np.ndim(x)
    ]

    def body(carry: Any, part: Sequence[Any]) -> Any:
        trained, extras, sums = carry
        entries = iter(part)
        batch = [x if np.ndim(x) == 0 else next(entries) for x in inputs.batch]
        grads, done = one_part(trained, extras, batch, scale)
        sums = [total + grad for total, grad in zip(sums, grads, strict=True)]
        return (done.trained, done.extras, sums), (done.outputs, done.loss)

    zeros = [jnp.zeros_like(x) for x in trained]
    start = (trained, list(inputs.extras), zeros)
    carry, (outputs, losses) = _loop(body, start, split, parts)
    trained, extras, sums = carry
    joined = [x if x.ndim == 1 else x.reshape(-1, *x.shape[2:]) for x in outputs]
    grads = [total / parts for total in sums]
    return grads, _Pass(trained, extras, joined, losses.mean())


def _loop(body: Callable[..., Any], carry: Any, arrays: Arrays, length: int) -> Any:
    """`lax.scan`, written out where that is faster or where Python is to see it all."""
    if isinstance(carry[0][0], Tracer):
        # XLA's CPU compiler makes slow code of a convolution inside a loop.
        written_out = jax.default_backend() == "cpu"
        return jax.lax.scan(body, carry, arrays, length, unroll=written_out)
    given = []
    for i in range(length):
        carry, out = body(carry, [x[i] for x in arrays])
        given.append(out)
    return carry, jax.tree.map(lambda *parts: jnp.stack(parts), *given)


# --- what no loss depends on ----------------------------------------------------------


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
