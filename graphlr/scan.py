"""Several steps in one run of one program: `lax.scan` over a step."""

from __future__ import annotations

import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from graphlr.program import Step
from graphlr.step import Findings, Inputs, Results
from graphlr.update import State


def scanned(step: Step, found: Findings) -> Step:
    """A step over batches with a leading axis; one of arrays without axes stays.

    Args:
        step: One step.
        found: What tracing it finds out.

    Returns:
        A function like `step` whose outputs have the leading axis too, and whose report
        is the last step's.
    """

    def many(state: State, inputs: Inputs) -> Results:
        def body(carry: Any, arrays: list[Any]) -> Any:
            state, extras = carry
            fresh = iter(arrays)
            batch = [x if np.ndim(x) == 0 else next(fresh) for x in inputs.batch]
            state, outputs, changed, report = step(
                state, Inputs(extras, inputs.numbers, batch)
            )
            extras = list(extras)
            for i, new in zip(found.changed, changed, strict=True):
                extras[i] = new
            return (state, extras), (outputs, report)

        arrays = [x for x in inputs.batch if np.ndim(x)]
        (state, extras), (outputs, reports) = jax.lax.scan(
            body, (state, list(inputs.extras)), arrays
        )
        report = jax.tree.map(lambda x: x[-1], reports)
        return Results(state, outputs, [extras[i] for i in found.changed], report)

    return many


def stacked(build: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
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
