"""Loops in a step: over the parts of a batch, and over several steps in one run."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from graphlr.step.signature import Build
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

_Carry = TypeVar("_Carry")
_Given = TypeVar("_Given")


# --- the parts of a batch -------------------------------------------------------------

# (trained, extras, part of the batch) -> gradients, and what the part leaves
Gradients = Callable[[Arrays, Arrays, Batch], tuple[Arrays, Forward]]


def accumulate(
    gradients: Gradients, parts: int, trained: Arrays, inputs: Inputs
) -> tuple[Arrays, Forward]:
    """The mean of the gradients of all parts, and what the last one leaves.

    Every part sees what the parts before it left in the Variables. Outputs are joined
    along their first axis, a scalar becomes one for each part; the loss is the mean.

    Args:
        gradients: Of one part.
        parts: How many to divide each array of the batch into; numbers stay.
        trained: The trained parameters.
        inputs: With the whole batch.
    """

    def one_part(
        carry: tuple[Arrays, Arrays, Arrays], part: Arrays
    ) -> tuple[tuple[Arrays, Arrays, Arrays], Forward]:
        trained, extras, sums = carry
        grads, done = gradients(trained, extras, _with_numbers(part, inputs.batch))
        sums = [total + grad for total, grad in zip(sums, grads, strict=True)]
        left = done._replace(trained=[], extras=[])
        return (done.trained, done.extras, sums), left

    divided = [
        jnp.reshape(x, (parts, -1, *np.shape(x)[1:]))
        for x in inputs.batch
        if np.ndim(x)
    ]
    start = (trained, list(inputs.extras), [jnp.zeros_like(x) for x in trained])
    (trained, extras, sums), left = _loop(one_part, start, divided, parts)
    outputs = [x if x.ndim == 1 else x.reshape(-1, *x.shape[2:]) for x in left.outputs]
    grads = [total / parts for total in sums]
    return grads, Forward(trained, extras, outputs, left.loss.mean(), left.found)


def _with_numbers(entries: Sequence[jax.Array], batch: Batch) -> list[Any]:
    """`batch` with these in place of its arrays; what has no axis stays."""
    fresh = iter(entries)
    return [x if np.ndim(x) == 0 else next(fresh) for x in batch]


def _loop(
    body: Callable[[_Carry, Arrays], tuple[_Carry, _Given]],
    carry: _Carry,
    arrays: Arrays,
    length: int,
) -> tuple[_Carry, _Given]:
    """`lax.scan`, written out where that is faster or where Python is to see it all."""
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(carry)):
        # XLA's CPU compiler makes slow code of a convolution inside a loop.
        written_out = jax.default_backend() == "cpu"
        return jax.lax.scan(body, carry, arrays, length, unroll=written_out)
    given = []
    for i in range(length):  # `graph.eager`: every part can be looked at
        carry, out = body(carry, [x[i] for x in arrays])
        given.append(out)
    columns = zip(*map(jax.tree.leaves, given), strict=True)
    last = jax.tree.structure(given[-1])
    return carry, jax.tree.unflatten(last, [jnp.stack(column) for column in columns])


# --- several steps in one run ---------------------------------------------------------


def scanned(step: Step) -> Step:
    """A step over batches with a leading axis; one of arrays without axes stays.

    Args:
        step: One step.

    Returns:
        A step whose outputs and loss have the leading axis too; of the rest of its
        report it gives what the last step had.
    """

    def many(state: State, inputs: Inputs) -> Results:
        def one_step(
            carry: tuple[State, Arrays], arrays: Arrays
        ) -> tuple[tuple[State, Arrays], tuple[Arrays, Report, Found]]:
            state, extras = carry
            batch = _with_numbers(arrays, inputs.batch)
            done = step(state, Inputs(extras, inputs.numbers, batch))
            # A step gives only the extras that it changed; a loop carries all of them.
            extras = list(extras)
            for i, new in zip(done.found.changed, done.extras, strict=True):
                extras[i] = new
            return (done.state, extras), (done.outputs, done.report, done.found)

        arrays = [jnp.asarray(x) for x in inputs.batch if np.ndim(x)]
        start = (state, list(inputs.extras))
        (state, extras), given = jax.lax.scan(one_step, start, arrays)
        outputs, reports, found = given  # `found` is static: it has no axis of steps
        last: Report = jax.tree.map(lambda x: x[-1], reports)
        report = last._replace(loss=reports.loss)
        changed = [extras[i] for i in found.changed]
        return Results(state, outputs, changed, report, found)

    return many


def stacked(
    build: Build, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments of `scan` with the leading axis, however the batches were given."""
    if kwargs or len(args) != 1 or not isinstance(args[0], list | tuple):
        return args, kwargs
    (batches,) = args
    if isinstance(batches, list):
        batches = [b if isinstance(b, tuple) else (b,) for b in batches]
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *batches), kwargs
    try:
        inspect.signature(build).bind(*args)
    except TypeError:
        return batches, kwargs
    return args, kwargs
