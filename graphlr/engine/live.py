"""A step's arrays at their owners: taken for a run, and given back after it.

Parameters and statistics belong to Variables, slots and step counts to what an
optimizer holds, averages and the loss scale to this object. A graph and an exported
graph run their steps through it, so this is where it is decided what may be donated,
and that a step changes everything or nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
from flax import nnx

from graphlr.engine.guards import check_not_lost, hold_interrupts
from graphlr.modules.variables import read, unshared, write
from graphlr.optim.slots import Held
from graphlr.step.carried import Carried
from graphlr.step.types import (
    Arrays,
    Batch,
    Inputs,
    Numbers,
    OptimizerState,
    Results,
    State,
    Step,
)


class Live:
    """The owners of a step's arrays.

    Args:
        trained: Variables of the trained parameters.
        extras: Every other Variable.
        held: What each optimizer holds.
        carried: What belongs to nobody else.

    Attributes:
        carried: As the last step left it.

    Example:
        >>> import jax.numpy as jnp
        >>> live = Live([nnx.Param(jnp.ones(2))], [], [Held(step=3)], Carried())
        >>> live.state()[:2]
        ([Array([1., 1.], dtype=float32)], [OptimizerState(slots=[], counter=Array(3, \
dtype=int32))])
    """

    def __init__(
        self,
        trained: Sequence[nnx.Variable],
        extras: Sequence[nnx.Variable],
        held: Sequence[Held],
        carried: Carried,
    ) -> None:
        self.trained, self.extras, self.held = trained, extras, held
        self.carried = carried

    def state(self) -> State:
        """What a step replaces, as it is now: a copy of what anybody else holds too.

        So all of it may be donated.
        """
        # `unshared` counts who refers to an array: its owner and the list that it is
        # given. So a list that is the owner's own must be copied, and a record of
        # named fields flattened, before they are asked for.
        optimizers = [
            OptimizerState(unshared(list(h.slots)), *unshared([h.counter]))
            for h in self.held
        ]
        carried = self.carried
        if any(carried):
            leaves, structure = jax.tree.flatten(carried)
            carried = jax.tree.unflatten(structure, unshared(leaves))
        return State(unshared(read(self.trained)), optimizers, carried)

    def inputs(self, numbers: Numbers, batch: Batch) -> Inputs:
        """What a step only reads."""
        return Inputs(read(self.extras), numbers, batch)

    def run(
        self, step: Step, numbers: Numbers, batch: Batch, *, steps: int = 1
    ) -> Results:
        """Run a compiled step and store what it gives: all or, on an error, nothing.

        Args:
            step: To be run.
            numbers: Live numbers of each optimizer.
            batch: The arrays among the arguments.
            steps: How many updates it makes.

        Raises:
            RuntimeError: It failed after its buffers had been donated.
        """
        inputs = self.inputs(numbers, batch)
        with hold_interrupts():
            try:
                results = step(self.state(), inputs)
            except Exception as error:
                check_not_lost(self._owned(), error)
                raise
            self.store(results, steps=steps)
        return results

    def store(self, results: Results, *, steps: int = 1) -> None:
        """Give the arrays that a step made to their owners.

        Nothing here can fail. But the old buffers may be gone: an interrupt between two
        of these lines would leave an owner without an array, so it must be held.

        Args:
            results: Of the step.
            steps: How many updates it made.
        """
        # A step that may skip tells on the device whether it made an update.
        updates = steps if self.carried.skips is None else None
        changed = [self.extras[i] for i in results.found.changed]
        write(changed, results.extras)
        write(self.trained, results.state.trained)
        for held, new in zip(self.held, results.state.optimizers, strict=True):
            held.advance(new.slots, new.counter, updates)
        self.carried = results.state.carried

    def _owned(self) -> Arrays:
        """Every array that a step may take along."""
        slots = [array for held in self.held for array in (*held.slots, held.counter)]
        return [*read(self.trained), *slots, *jax.tree.leaves(self.carried)]
