"""How a graph's call works: plan, compile, run, write back.

A call is one run of a compiled program between two passes over flat lists: read the
Variables' arrays, run, write the new ones back. Modules, groups and optimizer state are
pytrees only while tracing.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.core import Tracer
from jax.extend.core import ClosedJaxpr

from graphlr.engine.compiles import Compile, Compiles
from graphlr.engine.guards import check_ranges
from graphlr.engine.live import Live
from graphlr.engine.optimizers import Optimizers
from graphlr.engine.program import OtherTypesError, Program, compile_step
from graphlr.engine.skips import SkipWatch, why_skipped
from graphlr.modules.variables import as_arrays
from graphlr.platforms import for_platform_of
from graphlr.precision.scalers import Scaler
from graphlr.runtime import garbage_collection_off
from graphlr.step import carried
from graphlr.step.carried import Carried
from graphlr.step.config import Config
from graphlr.step.loops import scanned
from graphlr.step.losses import Definition
from graphlr.step.plan import Plan, check_unchanged, make_plan
from graphlr.step.signature import Signature, check_against, read_arguments
from graphlr.step.step import make_step
from graphlr.step.types import Batch, Report, Step

_log = logging.getLogger(__name__)

Args = tuple[Any, ...]
Kwargs = dict[str, Any]

_FIRST, _REGROUPED = "first call", "the structure of a group changed"


class Runner:
    """The plan, the programs and the arrays of one graph.

    It is given the graph's definition with every call, and keeps nothing of it.

    Attributes:
        config: Options.
        training: Mode of the modules; None follows from whether there are optimizers.
        optimizers: In the order they were added.
        scaler: Scales the loss, or None.
        plan: What the last call was planned for; None: nothing was called yet.
        live: The arrays of the next step at their owners.
        report: What may be seen of the last step.
        compiles: Every compilation so far.
        programs: Compiled steps by signature and number of steps (0: one call).
        on_compile: Called with definition, signature, number of steps and batch of a
            new program.
    """

    def __init__(self) -> None:
        self.config = Config()
        self.training: bool | None = None
        self.optimizers = Optimizers()
        self.scaler: Scaler | None = None
        self.plan: Plan | None = None
        self.live = Live((), (), (), Carried())
        self.report = Report()
        self.compiles = Compiles()
        self.programs: dict[tuple[Signature, int], Program] = {}
        self.on_compile: Callable[[Definition, Signature, int, Batch], None] | None = (
            None
        )
        self._skips = SkipWatch()
        self._version: Sequence[Hashable] | None = None
        self._why = _FIRST

    @property
    def training_mode(self) -> bool:
        """Whether modules are traced in train mode."""
        return bool(self.optimizers) if self.training is None else self.training

    # --- the plan ---

    def ready(self, definition: Definition) -> Plan:
        """The plan of the next step, carried out: every optimizer has its slots."""
        plan, why = self._planned(definition)
        if plan is not self.plan:
            self.adopt(plan, why)
        return plan

    def peek(self, definition: Definition) -> tuple[Plan, Live]:
        """The plan of the next step and its arrays, for readers: changes nothing."""
        plan, _ = self._planned(definition)
        if plan is self.plan:
            return plan, self.live
        slots = self.optimizers.slots_for(plan.slots)
        held = [
            held.with_slots(own)
            for held, own in zip(self.optimizers.held, slots, strict=True)
        ]
        return plan, Live(plan.trained, plan.extras, held, self._carried_for(plan))

    def adopt(self, plan: Plan, why: str | None = None) -> None:
        """Carry a plan out: from now on the step is the one that it asks for.

        Programs stay if it asks for the same step as the last one.

        Args:
            plan: From `make_plan`.
            why: What made it necessary, for the record of the next compilation; None:
                it is the first, or the structure of a group changed.
        """
        if why is None:
            why = _FIRST if self.plan is None else _REGROUPED
        slots = self.optimizers.slots_for(plan.slots)  # may raise: so it comes first
        plan.modules.store_arrays()
        carried_over = self._carried_for(plan)
        if self.plan is None or not plan.asks_same_step(self.plan):
            self.programs = {}
        self.optimizers.adopt(plan.slots, slots)
        self.live = Live(plan.trained, plan.extras, self.optimizers.held, carried_over)
        self._version = self.optimizers.version
        self.plan, self._why = plan, why

    def _planned(self, definition: Definition) -> tuple[Plan, str]:
        """The last plan if it still is right, or a new one; and why it is new."""
        plan = self.plan
        if plan is None:
            return self._make_plan(definition), _FIRST
        check_unchanged(plan)
        version = self.optimizers.version
        if version != self._version:
            if plan.specs != self.optimizers.specs:
                return self._make_plan(definition), _REGROUPED
            self._version = version  # only numbers did: don't compare them again
        if not self.optimizers.have_adopted(plan.slots):
            return self._make_plan(definition), "another graph used the optimizer"
        return plan, self._why

    def _make_plan(self, definition: Definition) -> Plan:
        with garbage_collection_off():
            return make_plan(definition.attributes, self.optimizers)

    def _carried_for(self, plan: Plan) -> Carried:
        if not self.optimizers:
            return Carried()
        params = dict(zip(plan.names, as_arrays(plan.trained), strict=True))
        fresh = carried.start(self.config, self.scaler, params)
        return carried.moved(self.live.carried, fresh)

    # --- programs ---

    def step(self, definition: Definition, plan: Plan, signature: Signature) -> Step:
        """The step as a function to be traced."""
        return make_step(
            plan,
            definition,
            signature,
            training=self.training_mode,
            config=self.config,
            scaler=self.scaler,
        )

    def program(
        self,
        definition: Definition,
        plan: Plan,
        signature: Signature,
        batch: Batch,
        steps: int = 0,
    ) -> Program:
        """The compiled step for a signature, compiled now if there is none.

        Args:
            definition: The graph as the user wrote it.
            plan: What the Variables are for.
            signature: Of the arguments of one step.
            batch: The arrays, with a leading axis of `steps` if that isn't 0.
            steps: How many steps it does in one run; 0 for a plain call.
        """
        known = self.programs.get((signature, steps))
        if known is not None:
            return known
        program = self._compile(definition, plan, signature, batch, steps)
        self.programs[signature, steps] = program
        if self.on_compile is not None:
            self.on_compile(definition, signature, steps, batch)
        return program

    def _compile(
        self,
        definition: Definition,
        plan: Plan,
        signature: Signature,
        batch: Batch,
        steps: int,
    ) -> Program:
        name, build = definition.name, definition.build
        why = self._why_compiling(definition, signature, steps)
        self.config.fix(training=bool(self.optimizers))
        self._warn_of_float16()
        signature.check_parts(self.config.gradient_accumulation_steps, build)
        step = self.step(definition, plan, signature)
        state = self.live.state()
        inputs = self.live.inputs(self.optimizers.numbers, batch)
        try:
            program = compile_step(
                scanned(step) if steps else step,
                plan,
                state,
                inputs,
                donate=bool(self.optimizers) and self.config.donate,
            )
        except Exception as error:
            given = signature.describe(build).items()
            listed = ", ".join(f"{key}: {kind}" for key, kind in given)
            if isinstance(error, AttributeError) and "backward" in str(error):
                error.add_note("in build() it is self.backward(loss)")
            error.add_note(
                f"while tracing {name}.build with {listed or 'no arguments'}"
            )
            raise
        record = Compile(
            why, program.trace_seconds, program.compile_seconds, program.cached
        )
        self.compiles.records.append(record)
        seconds = record.trace_seconds + record.compile_seconds
        _log.info("compiled %s in %.1f s: %s", name, seconds, why)
        return program

    def _why_compiling(
        self, definition: Definition, signature: Signature, steps: int
    ) -> str:
        if not self.programs:
            return self._why
        last, length = list(self.programs)[-1]
        check_against(signature, last, definition.build)
        if steps != length:
            return f"{steps} steps in one run" if steps else "one step in a run"
        return signature.difference(last, definition.build)

    def _warn_of_float16(self) -> None:
        half = self.config.amp == "float16"
        if half and self.optimizers and self.scaler is None:
            warnings.warn(
                "config.amp = 'float16' without a loss scale: small gradients become "
                "zero. self.set_grad_scaler(glr.GradScaler()) in __init__, or "
                "'bfloat16', which needs none",
                stacklevel=5,
            )

    def prepared(self, definition: Definition, args: Args, kwargs: Kwargs) -> Program:
        """The compiled step for arguments like these; without any the last one."""
        plan = self.ready(definition)
        if not (args or kwargs) and self.programs:
            return list(self.programs.values())[-1]
        signature, batch = read_arguments(definition.build, args, kwargs)
        return self.program(definition, plan, signature, batch)

    def lowered(
        self, definition: Definition, args: Args, kwargs: Kwargs
    ) -> jax.stages.Lowered:
        """The step for arguments like these as JAX lowered it."""
        signature, batch = read_arguments(definition.build, args, kwargs)
        return self._traced(definition, signature, batch).lower()

    def jaxpr(
        self, definition: Definition, signature: Signature, batch: Batch
    ) -> ClosedJaxpr:
        """The traced step."""
        return self._traced(definition, signature, batch).jaxpr

    def _traced(
        self, definition: Definition, signature: Signature, batch: Batch
    ) -> jax.stages.Traced:
        plan, live = self.peek(definition)
        state, inputs = live.state(), live.inputs(self.optimizers.numbers, batch)
        with for_platform_of((state, inputs)):
            step = self.step(definition, plan, signature)
            return jax.jit(step).trace(state, inputs)

    # --- runs ---

    def call(self, definition: Definition, args: Args, kwargs: Kwargs) -> Any:
        """One step."""
        plan = self.ready(definition)
        signature, batch = read_arguments(definition.build, args, kwargs)
        return self._run_compiled(definition, plan, signature, batch)

    def eager(self, definition: Definition, args: Args, kwargs: Kwargs) -> Any:
        """One step, operation by operation."""
        plan = self.ready(definition)
        signature, batch = read_arguments(definition.build, args, kwargs)
        parts = self.config.gradient_accumulation_steps
        signature.check_parts(parts, definition.build)
        step = self.step(definition, plan, signature)
        return self._run(definition, plan, step, batch)

    def scan(self, definition: Definition, args: Args, kwargs: Kwargs) -> Any:
        """As many steps as the leading axis of the arrays is long, in one run."""
        plan = self.ready(definition)
        whole, batch = read_arguments(definition.build, args, kwargs)
        signature, steps = whole.of_one_step(definition.build)
        if (signature, steps) not in self.programs:
            _warn_of_convolutions(plan)
        return self._run_compiled(definition, plan, signature, batch, steps)

    def _run_compiled(
        self,
        definition: Definition,
        plan: Plan,
        signature: Signature,
        batch: Batch,
        steps: int = 0,
    ) -> Any:
        """Run the program for a signature, compiled anew if it doesn't fit any more."""
        known = self.programs.get((signature, steps))
        program = known or self.program(definition, plan, signature, batch, steps)
        if program.limits:
            check_ranges(program.limits, batch, signature, definition.build)
        try:
            return self._run(definition, plan, program.run, batch, steps=steps or 1)
        except OtherTypesError as error:
            mismatch = error.mismatch
        if any(isinstance(array, Tracer) for array in batch):
            raise TypeError(
                f"{definition.name} is called inside jax.jit, jax.grad or a build(): a "
                "graph is a whole step. Call its module there, self.model(x)"
            ) from mismatch
        if not known:  # it was just made for these very arrays
            raise mismatch
        # The arguments are the ones of the signature, so a Variable must have changed.
        plan = self._make_plan(definition)
        self.adopt(plan, "the dtype, shape or placement of a Variable changed")
        self.programs = {}
        program = self.program(definition, plan, signature, batch, steps)
        return self._run(definition, plan, program.run, batch, steps=steps or 1)

    def _run(
        self,
        definition: Definition,
        plan: Plan,
        step: Step,
        batch: Batch,
        *,
        steps: int = 1,
    ) -> Any:
        """Run a step; what `build` returned."""
        self._look_for_skips(definition, plan)
        numbers = self.optimizers.numbers
        results = self.live.run(step, numbers, batch, steps=steps)
        self.report = results.report
        return results.found.outputs.fill(results.outputs)

    def _look_for_skips(self, definition: Definition, plan: Plan) -> None:
        """Log skips of the steps before.

        Raises:
            FloatingPointError: Too many in a row; names the first bad parameter.
        """
        skips = self.live.carried.skips
        if skips is None:
            return
        limit = self.config.skip_nonfinite
        news = self._skips.look(skips, limit)
        if news is None:
            return
        why = why_skipped(self.report, plan) if news.in_a_row else ""
        if news.are_new:
            level = logging.WARNING if limit else logging.INFO
            text = f"; {why}" if why else ""
            _log.log(level, "%s: %d skipped%s", definition.name, news.total, text)
        if limit and news.in_a_row >= limit:
            fresh = skips._replace(in_a_row=jnp.zeros_like(skips.in_a_row))
            self.live.carried = self.live.carried._replace(skips=fresh)
            raise FloatingPointError(
                f"{news.in_a_row} batches in a row gave a NaN or an infinity and were "
                f"skipped (config.skip_nonfinite = {limit}): {why}. Everything "
                "is as it was before them. Look at the batch, lower the learning rate, "
                "or call graph.eager(...) under jax.debug_nans(True) to find where"
            )


def _warn_of_convolutions(plan: Plan) -> None:
    kinds = (nnx.Conv, nnx.ConvTranspose)
    found = [n for n in plan.modules.nodes().values() if isinstance(n.value, kinds)]
    if found and jax.default_backend() == "cpu":
        warnings.warn(
            f"graph.scan on the CPU with convolutions ({found[0].path}): XLA runs them "
            "slower inside a loop, so calling the graph for each batch is faster here",
            stacklevel=4,
        )
