"""The compiled steps of a graph, found by what they were made for."""

from __future__ import annotations

import logging
from collections.abc import Callable, ItemsView
from typing import NamedTuple

from graphlr.engine.compiles import Compile, Compiles
from graphlr.engine.program import Program
from graphlr.step.definition import Definition
from graphlr.step.signature import Signature, check_against
from graphlr.step.types import Batch

_log = logging.getLogger("graphlr")

FIRST = "first call"


class Asked(NamedTuple):
    """What is asked for: a step for some arguments.

    Attributes:
        definition: The graph as the user wrote it.
        signature: Of the arguments of one step.
        batch: The arrays among them, with a leading axis of `steps` if that isn't 0.
        steps: How many steps to do in one run; 0 for a plain call.
    """

    definition: Definition
    signature: Signature
    batch: Batch
    steps: int = 0


class Programs:
    """Compiled steps by signature and number of steps (0: one call).

    Attributes:
        compiles: Every compilation so far.
        on_compile: Called for each new one, with what it was made for; None: nobody
            asked.
    """

    def __init__(self) -> None:
        self.compiles = Compiles()
        self.on_compile: Callable[[Asked, Program], None] | None = None
        self._programs: dict[tuple[Signature, int], Program] = {}
        self._why = FIRST

    def clear(self, why: str) -> None:
        """Forget all of them; `why` is what makes the next compilation necessary."""
        self._programs, self._why = {}, why

    def find(self, what: Asked) -> Program | None:
        """The program for what is asked, if there is one."""
        return self._programs.get((what.signature, what.steps))

    @property
    def last(self) -> tuple[Signature, Program] | None:
        """The one that was compiled last, and what for."""
        if not self._programs:
            return None
        (signature, _), program = list(self._programs.items())[-1]
        return signature, program

    def items(self) -> ItemsView[tuple[Signature, int], Program]:
        """Each with its signature and number of steps."""
        return self._programs.items()

    def make(self, what: Asked, compile_now: Callable[[], Program]) -> Program:
        """Compile a step, note what made it necessary, and keep it.

        Args:
            what: What it is for.
            compile_now: Gives the program.

        Raises:
            TypeError: An argument that has always been an array is a constant.
        """
        name, build = what.definition.name, what.definition.build
        why = self._why_now(what)
        try:
            program = compile_now()
        except Exception as error:  # the user's own code, which says nothing of a graph
            given = what.signature.describe(build).items()
            listed = ", ".join(f"{key}: {kind}" for key, kind in given)
            if isinstance(error, AttributeError) and "backward" in str(error):
                error.add_note("in build() it is self.backward(loss)")
            error.add_note(
                f"while tracing {name}.build with {listed or 'no arguments'}"
            )
            raise
        traced, compiled = program.trace_seconds, program.compile_seconds
        self.compiles.records.append(Compile(why, traced, compiled, program.cached))
        self._programs[what.signature, what.steps] = program
        _log.info("compiled %s in %.1f s: %s", name, traced + compiled, why)
        if self.on_compile is not None:
            self.on_compile(what, program)
        return program

    def _why_now(self, what: Asked) -> str:
        if not self._programs:
            return self._why if self.compiles.count else FIRST
        last, steps = list(self._programs)[-1]
        check_against(what.signature, last, what.definition.build)
        if what.steps != steps:
            return (
                f"{what.steps} steps in one run" if what.steps else "one step in a run"
            )
        return what.signature.difference(last, what.definition.build)
