"""What goes into a step, and what comes out of it: flat lists of arrays."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jax.typing import ArrayLike

from graphlr.step.carried import Carried
from graphlr.step.signature import Signature

Arrays = list[jax.Array]
Batch = Sequence[ArrayLike]  # the arrays among the arguments of a call
Numbers = Sequence[jax.Array | np.ndarray]  # live, float[n] of each optimizer


class OptimizerState(NamedTuple):
    """What a step replaces of one optimizer.

    Attributes:
        slots: The leaves of its state.
        counter: Updates already applied, int32[].
    """

    slots: Arrays
    counter: jax.Array


class State(NamedTuple):
    """What a step replaces; its buffers are reused for the new state.

    Attributes:
        trained: The trained parameters.
        optimizers: What it replaces of each optimizer.
        carried: Averages, loss scale, skipped batches.
    """

    trained: Arrays
    optimizers: list[OptimizerState]
    carried: Carried


class Inputs(NamedTuple):
    """What a step only reads.

    Attributes:
        extras: Every Variable that is not trained.
        numbers: Live numbers of each optimizer.
        batch: The arrays among the arguments.
    """

    extras: Arrays
    numbers: Numbers
    batch: Batch


class Report(NamedTuple):
    """What may be seen of a step; a field is None if it wasn't asked for.

    Attributes:
        loss: The sum of what `backward` was given, float[]; the mean over the parts of
            a batch that is divided; float[steps] of several steps.
        finite: Whether the gradient of each trained parameter was finite, bool[n].
        stats: `STATS` of every group, float[groups, 4].
    """

    loss: jax.Array | None = None
    finite: jax.Array | None = None
    stats: jax.Array | None = None


STATS = ("grad_norm", "update_norm", "update_ratio", "lr")


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Found:
    """What tracing finds out: no array, but a part of the structure of the results.

    So it passes through `jax.jit`, `jax.grad` and `jax.lax.scan` with them.

    Attributes:
        outputs: How `Results.outputs` becomes what `build` returned.
        changed: Which of the extras `build` changed.
    """

    outputs: Signature
    changed: tuple[int, ...]


class Forward(NamedTuple):
    """What a run of `build` leaves.

    Attributes:
        trained: The trained parameters, which `build` may assign to.
        extras: All extras.
        outputs: The arrays among what it returned.
        loss: The sum of the losses, float[]; 0 in a graph without optimizer.
        found: What tracing found out.
    """

    trained: Arrays
    extras: Arrays
    outputs: Arrays
    loss: jax.Array
    found: Found


class Results(NamedTuple):
    """What a step gives.

    The state comes first: jax gives each donated buffer to the first result of its
    shape, and a result in another's buffer costs a copy.

    Attributes:
        state: The new state.
        outputs: The arrays among what `build` returned.
        extras: The extras that `build` changed.
        report: What may be seen of the step.
        found: What tracing found out.
    """

    state: State
    outputs: Arrays
    extras: Arrays
    report: Report
    found: Found


Step = Callable[[State, Inputs], Results]
