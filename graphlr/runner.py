"""How a graph's call works: plan, compile, run, write back.

A call is one run of a compiled program between two passes over flat lists: read the
Variables' arrays, run, write the new ones back. Modules, groups and optimizer state are
pytrees only while tracing.
"""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import jax
from flax import nnx
from jax.core import Tracer

from graphlr import memory as memories
from graphlr import signature as arguments
from graphlr.config import Config
from graphlr.memory import Memory
from graphlr.modules import own, read, write
from graphlr.optim.optimizer import Optimizer
from graphlr.plan import Plan, check_unchanged, make_plan
from graphlr.platforms import settled
from graphlr.precision import Scaler
from graphlr.program import (
    Compile,
    Compiles,
    Program,
    Step,
    Undisturbed,
    check_not_lost,
    check_ranges,
    compile_step,
)
from graphlr.runtime import garbage_collection_off
from graphlr.scan import scanned
from graphlr.signature import Signature
from graphlr.skips import SkipWatch
from graphlr.step import Bind, Findings, Inputs, make_step
from graphlr.update import Report, State

_log = logging.getLogger(__name__)

# A step takes a model's arrays and gives it others; two threads that do so with one
# model would take the same ones. Computing goes on after the lock is released.
one_at_a_time = threading.RLock()


class Runner:
    """The plan, the programs and the memory of one graph.

    Args:
        name: Of the graph, for messages.
        attributes: Gives the graph's own attributes.
        build: What is traced.
        bind: Makes `build` see given attributes and losses.

    Attributes:
        config: Options.
        training: Mode of the modules; None follows from whether there are optimizers.
        optimizers: In the order they were added.
        scaler: Scales the loss, or None.
        memory: What the step remembers beside parameters and slots.
        report: What was asked to be seen of the last update.
        compiles: Every compilation so far.
        programs: Compiled steps by signature and number of steps (0: one call).
        on_compile: Called with signature, number of steps and batch of a new program.
    """

    def __init__(
        self,
        name: str,
        attributes: Callable[[], dict[str, Any]],
        build: Callable[..., Any],
        bind: Bind,
    ) -> None:
        self.name, self.attributes, self.build, self.bind = (
            name,
            attributes,
            build,
            bind,
        )
        self.config = Config()
        self.training: bool | None = None
        self.optimizers: list[Optimizer] = []
        self.scaler: Scaler | None = None
        self.memory: Memory = {}
        self.report: Report = {}
        self.compiles = Compiles()
        self.programs: dict[tuple[Signature, int], Program] = {}
        self.plan: Plan | None = None
        self.on_compile: Callable[[Signature, int, Sequence[Any]], None] | None = None
        self._skips = SkipWatch(self)
        self._versions: list[Any] = []
        self._why = "first call"

    @property
    def training_mode(self) -> bool:
        """Whether modules are traced in train mode."""
        return bool(self.optimizers) if self.training is None else self.training

    # --- the plan ---

    def ready(self) -> Plan:
        """The plan of this step: the last one, unless a group's structure changed."""
        plan = self.plan
        if plan is None:
            return self._replan("first call")
        check_unchanged(plan)
        versions = [optimizer.version for optimizer in self.optimizers]
        if versions != self._versions:
            if plan.specs != [optimizer.specs for optimizer in self.optimizers]:
                return self._replan("the structure of a group changed")
            self._versions = versions
        for optimizer, layout in zip(self.optimizers, plan.layouts, strict=True):
            if optimizer.layout is not layout:
                return self._replan("another graph used the optimizer")
        return plan

    def _replan(self, why: str) -> Plan:
        """Make a plan; programs stay if it asks for the same step as the last one."""
        with garbage_collection_off():
            plan = make_plan(self.attributes(), self.optimizers)
        if self.plan is None or not plan.asks_same_step(self.plan):
            self.programs = {}
        if self.optimizers:
            params = dict(zip(plan.names, read(plan.trained), strict=True))
            fresh = memories.start(self.config, self.scaler, params)
            self.memory = memories.moved(self.memory, fresh)
        self._versions = [optimizer.version for optimizer in self.optimizers]
        self.plan, self._why = plan, why
        return plan

    # --- programs ---

    def step(self, plan: Plan, signature: Signature) -> tuple[Step, Findings]:
        """The step as a function to be traced."""
        return make_step(
            plan,
            self.bind,
            signature,
            training=self.training_mode,
            config=self.config,
            scaler=self.scaler,
        )

    def program(
        self, plan: Plan, signature: Signature, batch: Sequence[Any], steps: int = 0
    ) -> Program:
        """The compiled step for a signature, compiled now if there is none.

        Args:
            plan: What the Variables are for.
            signature: Of the arguments of one step.
            batch: The arrays, with a leading axis of `steps` if that isn't 0.
            steps: How many steps it does in one run; 0 for a plain call.
        """
        known = self.programs.get((signature, steps))
        return known or self._compile(plan, signature, batch, steps)

    def _compile(
        self, plan: Plan, signature: Signature, batch: Sequence[Any], steps: int
    ) -> Program:
        why = self._why
        if self.programs:
            last, length = list(self.programs)[-1]
            arguments.check_against(signature, last, self.build)
            why = signature.difference(last, self.build)
            if steps != length:
                why = f"{steps} steps in one run" if steps else "one step in a run"
        self.config.fix(training=bool(self.optimizers))
        if self.config.amp == "float16" and self.optimizers and self.scaler is None:
            warnings.warn(
                "config.amp = 'float16' without a loss scale: small gradients become "
                "zero. self.set_grad_scaler(glr.GradScaler()) in __init__, or "
                "'bfloat16', which needs none",
                stacklevel=4,
            )
        signature.check_parts(self.config.gradient_accumulation_steps, self.build)
        step, found = self.step(plan, signature)
        try:
            program = compile_step(
                scanned(step, found) if steps else step,
                found,
                self.state(plan),
                self.inputs(plan, batch),
                plan=plan,
                donate=bool(self.optimizers) and self.config.donate,
            )
        except Exception as error:
            given = signature.describe(self.build).items()
            listed = ", ".join(f"{key}: {kind}" for key, kind in given)
            if isinstance(error, AttributeError) and "backward" in str(error):
                error.add_note("in build() it is self.backward(loss)")
            error.add_note(
                f"while tracing {self.name}.build with {listed or 'no arguments'}"
            )
            raise
        record = Compile(why, *program.seconds, program.cached)
        self.compiles.records.append(record)
        self.programs[signature, steps] = program
        _log.info("compiled %s in %.1f s: %s", self.name, sum(program.seconds), why)
        if self.on_compile is not None:
            self.on_compile(signature, steps, batch)
        return program

    def prepared(self, args: Any, kwargs: Any) -> Program:
        """The compiled step for arguments like these; without any the last one."""
        plan = self.ready()
        if not (args or kwargs) and self.programs:
            return list(self.programs.values())[-1]
        return self.program(plan, *arguments.read(self.build, args, kwargs))

    def lowered(self, args: Any, kwargs: Any) -> jax.stages.Lowered:
        """The step for arguments like these as JAX lowered it."""
        plan = self.ready()
        signature, batch = arguments.read(self.build, args, kwargs)
        step, _ = self.step(plan, signature)
        state, inputs = self.state(plan), self.inputs(plan, batch)
        with settled((state, inputs)):
            return jax.jit(step).lower(state, inputs)

    def jaxpr(self, signature: Signature, batch: Sequence[Any]) -> Any:
        """The traced step."""
        plan = self.ready()
        step, _ = self.step(plan, signature)
        state, inputs = self.state(plan), self.inputs(plan, batch)
        with settled((state, inputs)):
            return jax.make_jaxpr(step)(state, inputs)

    # --- runs ---

    def call(self, args: Any, kwargs: Any) -> Any:
        """One step."""
        plan = self.ready()
        signature, batch = arguments.read(self.build, args, kwargs)
        known = self.programs.get((signature, 0))
        program = known or self.program(plan, signature, batch)
        if program.limits:
            check_ranges(program.limits, batch, signature, self.build)
        try:
            return self.run(plan, program.run, program.found, batch)
        except (TypeError, ValueError) as error:  # raised before anything runs
            if any(isinstance(array, Tracer) for array in batch):
                raise TypeError(
                    f"{self.name} is called inside jax.jit, jax.grad or a build(): a "
                    "graph is a whole step. Call its module there, self.model(x)"
                ) from error
            if not known:
                raise
        plan = self._replan("the dtype, shape or placement of a Variable changed")
        self.programs.clear()
        program = self.program(plan, signature, batch)
        return self.run(plan, program.run, program.found, batch)

    def eager(self, args: Any, kwargs: Any) -> Any:
        """One step, operation by operation."""
        plan = self.ready()
        signature, batch = arguments.read(self.build, args, kwargs)
        signature.check_parts(self.config.gradient_accumulation_steps, self.build)
        step, found = self.step(plan, signature)
        return self.run(plan, step, found, batch)

    def scan(self, args: Any, kwargs: Any) -> Any:
        """As many steps as the leading axis of the arrays is long, in one run."""
        plan = self.ready()
        whole, batch = arguments.read(self.build, args, kwargs)
        signature, steps = whole.of_one_step(self.build)
        if (signature, steps) not in self.programs:
            _warn_of_convolutions(plan)
        program = self.program(plan, signature, batch, steps)
        return self.run(plan, program.run, program.found, batch, steps=steps)

    def state(self, plan: Plan) -> State:
        """What the step replaces; copied where anybody else holds it too."""
        slots = [own(list(optimizer.slots)) for optimizer in self.optimizers]
        steps = own([optimizer.counter for optimizer in self.optimizers])
        memory = self.memory
        if memory:
            memory = dict(zip(memory, own(list(memory.values())), strict=True))
        return State(own(read(plan.trained)), slots, steps, memory)

    def inputs(self, plan: Plan, batch: Sequence[Any]) -> Inputs:
        """What the step only reads."""
        numbers = [optimizer.numbers for optimizer in self.optimizers]
        return Inputs(read(plan.extras), numbers, batch)

    def run(
        self,
        plan: Plan,
        run: Step,
        found: Findings,
        batch: Sequence[Any],
        *,
        steps: int = 1,
    ) -> Any:
        """Run a step and write what it gives back: everything or, on error, nothing."""
        self._skips.look()
        inputs = self.inputs(plan, batch)
        certain = not memories.may_skip(self.config, self.scaler)
        with Undisturbed():
            try:
                state, outputs, extras, report = run(self.state(plan), inputs)
            except Exception as error:
                check_not_lost(self._donated(plan), error)
                raise
            write([plan.extras[i] for i in found.changed], extras)
            write(plan.trained, state.trained)
            for k, optimizer in enumerate(self.optimizers):
                optimizer.advance(
                    state.slots[k], state.steps[k], steps if certain else None
                )
            self.memory, self.report = state.memory, report
        return found.outputs.fill(outputs)

    def _donated(self, plan: Plan) -> list[jax.Array]:
        slots = [array for optimizer in self.optimizers for array in optimizer.slots]
        steps = [optimizer.counter for optimizer in self.optimizers]
        return [*read(plan.trained), *slots, *steps, *self.memory.values()]


def _warn_of_convolutions(plan: Plan) -> None:
    kinds = (nnx.Conv, nnx.ConvTranspose)
    found = [n for n in plan.modules.nodes().values() if isinstance(n.value, kinds)]
    if found and jax.default_backend() == "cpu":
        warnings.warn(
            f"graph.scan on the CPU with convolutions ({found[0].path}): XLA runs them "
            "slower inside a loop, so calling the graph for each batch is faster here",
            stacklevel=4,
        )
