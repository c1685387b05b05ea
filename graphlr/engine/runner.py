"""How a graph's call works: plan, compile, run, write back.

A call is one run of a compiled program between two passes over flat lists: read the
Variables' arrays, run, write the new ones back. Modules, groups and optimizer state are
pytrees only while tracing.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Hashable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.core import Tracer

from graphlr.engine.guards import check_ranges, hold_interrupts
from graphlr.engine.live import Live
from graphlr.engine.optimizers import Optimizers
from graphlr.engine.program import OtherTypesError, Program, compile_step
from graphlr.engine.programs import FIRST, Asked, Programs
from graphlr.engine.skips import SkipWatch, why_skipped
from graphlr.modules.variables import as_arrays
from graphlr.platforms import for_platform_of
from graphlr.precision.scalers import Scaler
from graphlr.runtime import garbage_collection_off
from graphlr.step import carried
from graphlr.step.carried import Carried
from graphlr.step.config import Config
from graphlr.step.definition import Definition
from graphlr.step.loops import scanned
from graphlr.step.plan import Plan, check_unchanged, make_plan
from graphlr.step.signature import Signature, read_arguments
from graphlr.step.step import Task, make_step
from graphlr.step.types import STATS, Report, Results, Step

_log = logging.getLogger("graphlr")

Args = tuple[Any, ...]
Kwargs = dict[str, Any]


def asked(definition: Definition, args: Args, kwargs: Kwargs) -> Asked:
    """One step for these arguments."""
    return Asked(definition, *read_arguments(definition.build, args, kwargs))


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
        reported: What may be seen of the last step, and the plan that it had.
        programs: Every compiled step, and the record of compilations.
    """

    def __init__(self) -> None:
        self.config = Config()
        self.training: bool | None = None
        self.optimizers = Optimizers()
        self.scaler: Scaler | None = None
        self.plan: Plan | None = None
        self.live = Live((), (), (), Carried())
        self.reported: tuple[Report, Plan] | None = None
        self.programs = Programs()
        self._skips = SkipWatch()
        self._version: Sequence[Hashable] | None = None

    @property
    def training_mode(self) -> bool:
        """Whether modules are traced in train mode."""
        return bool(self.optimizers) if self.training is None else self.training

    def group_stats(self) -> dict[str, dict[str, float]]:
        """What the last step did to every group; waits for the device.

        Raises:
            RuntimeError: That was not asked for, or there was no step.
        """
        report, plan = self.reported or (Report(), None)
        if report.stats is None or plan is None:
            raise RuntimeError(
                "graph.group_stats needs config.group_stats = True and a call"
            )
        # Of the groups that there were: since then others may have been added.
        names = {(id(o), group.name): name for name, group, o in self.optimizers.groups}
        reported = [
            names[id(optimizer), spec.name]
            for optimizer, specs in zip(self.optimizers, plan.specs, strict=True)
            for spec in specs
        ]
        rows = jax.device_get(report.stats).tolist()
        return {
            name: dict(zip(STATS, row, strict=True))
            for name, row in zip(reported, rows, strict=True)
        }

    # --- the plan ---

    def ready(self, definition: Definition) -> Plan:
        """The plan of the next step, carried out: every optimizer has its slots."""
        plan = self._planned(definition)
        if plan is not self.plan:
            self.adopt(plan)
        return plan

    def peek(self, definition: Definition) -> tuple[Plan, Live]:
        """The plan of the next step and its arrays, for readers: changes nothing."""
        plan = self._planned(definition)
        if plan is self.plan:
            return plan, self.live
        slots = self.optimizers.slots_for(plan.slot_plans)
        held = [
            held.with_slots(own)
            for held, own in zip(self.optimizers.held, slots, strict=True)
        ]
        return plan, Live(plan.trained, plan.extras, held, self._carried_for(plan))

    def adopt(self, plan: Plan) -> None:
        """Carry a plan out: from now on the step is the one that it asks for.

        Programs stay if it asks for the same step as the last one.
        """
        # What may raise comes before what changes anything. The slots that optimizers
        # hold now are asked for before they adopt others, and averages start from what
        # the Variables hold as arrays.
        slots = self.optimizers.slots_for(plan.slot_plans)
        plan.modules.store_arrays()
        carried_over = self._carried_for(plan)
        if self.plan is None or not plan.asks_same_step(self.plan):
            self.programs.clear(self._why_planned(plan))
        self.optimizers.adopt(plan.slot_plans, slots)
        self.live = Live(plan.trained, plan.extras, self.optimizers.held, carried_over)
        self._version = self.optimizers.version
        self.plan = plan

    def _why_planned(self, plan: Plan) -> str:
        """Why the last plan isn't right any more."""
        if self.plan is None:
            return FIRST
        if plan.specs != self.plan.specs:
            return "the structure of a group changed"
        return "another graph used the optimizer"

    def _planned(self, definition: Definition) -> Plan:
        """The last plan if it still is right, or a new one."""
        plan = self.plan
        if plan is None:
            return self._make_plan(definition)
        # Three things can make the last plan wrong, and each is looked at before every
        # call, the cheapest way: other modules, other groups, and another graph that
        # has since trained something else with the same optimizer.
        check_unchanged(plan)
        version = self.optimizers.version
        if version != self._version:
            if plan.specs != self.optimizers.specs:
                return self._make_plan(definition)
            self._version = version  # only numbers did: don't compare them again
        if not self.optimizers.have_adopted(plan.slot_plans):
            return self._make_plan(definition)
        return plan

    def _make_plan(self, definition: Definition) -> Plan:
        with garbage_collection_off():  # it makes many objects, and none is garbage
            return make_plan(definition.attributes(), self.optimizers)

    def _carried_for(self, plan: Plan) -> Carried:
        """What a step by `plan` carries, with what the last one carried of it."""
        if not self.optimizers:
            return Carried()
        params = dict(zip(plan.names, as_arrays(plan.trained), strict=True))
        fresh = carried.start(self.config, self.scaler, params)
        return carried.moved(self.live.carried, fresh)

    # --- programs ---

    def step_for(
        self, definition: Definition, plan: Plan, signature: Signature
    ) -> Step:
        """The step as a function to be traced."""
        training, config, scaler = self.training_mode, self.config, self.scaler
        return make_step(Task(plan, definition, signature, training, config, scaler))

    def prepared(self, definition: Definition, args: Args, kwargs: Kwargs) -> Program:
        """The compiled step for arguments like these; without any the last one."""
        plan, last = self.ready(definition), self.programs.last
        if not (args or kwargs) and last is not None:
            return last[1]
        return self._program(plan, asked(definition, args, kwargs))

    def traced(self, what: Asked) -> jax.stages.Traced:
        """The step as JAX traces it; changes nothing."""
        plan, live = self.peek(what.definition)
        state, inputs = live.state(), live.inputs(self.optimizers.numbers, what.batch)
        with for_platform_of((state, inputs)):
            return jax.jit(self._one_or_several(plan, what)).trace(state, inputs)

    def _one_or_several(self, plan: Plan, what: Asked) -> Step:
        """One step, or as many as are asked for in one run."""
        step = self.step_for(what.definition, plan, what.signature)
        return scanned(step) if what.steps else step

    def _program(self, plan: Plan, what: Asked) -> Program:
        """The compiled step, compiled now if there is none."""
        known = self.programs.find(what)
        if known is not None:
            return known
        self._check_options(what)

        def compile_now() -> Program:
            return compile_step(
                self._one_or_several(plan, what),
                plan,
                self.live.state(),
                self.live.inputs(self.optimizers.numbers, what.batch),
                donate=bool(self.optimizers) and self.config.donate,
            )

        return self.programs.make(what, compile_now)

    def _check_options(self, what: Asked) -> None:
        """Refuse impossible options and lock the others: they are compiled in."""
        config = self.config
        config.fix(training=bool(self.optimizers))
        if config.amp == "float16" and self.optimizers and self.scaler is None:
            warnings.warn(
                "config.amp = 'float16' without a loss scale: small gradients become "
                "zero. self.set_grad_scaler(glr.GradScaler()) in __init__, or "
                "'bfloat16', which needs none",
                stacklevel=5,
            )
        what.signature.check_parts(
            config.gradient_accumulation_steps, what.definition.build
        )

    # --- runs ---

    def call(self, definition: Definition, args: Args, kwargs: Kwargs) -> Any:
        """One step."""
        plan = self.ready(definition)
        return self._run_compiled(plan, asked(definition, args, kwargs))

    def eager(self, definition: Definition, args: Args, kwargs: Kwargs) -> Any:
        """One step, operation by operation."""
        plan = self.ready(definition)
        what = asked(definition, args, kwargs)
        parts = self.config.gradient_accumulation_steps
        what.signature.check_parts(parts, definition.build)
        self._look_for_skips(what.definition.name)
        step, live = self.step_for(definition, plan, what.signature), self.live
        # Nothing is donated, so all but the last line may be interrupted.
        results = step(live.state(), live.inputs(self.optimizers.numbers, what.batch))
        with hold_interrupts():
            live.store(results)
        return self._returned(plan, results)

    def scan(self, definition: Definition, args: Args, kwargs: Kwargs) -> Any:
        """As many steps as the leading axis of the arrays is long, in one run."""
        plan = self.ready(definition)
        whole = asked(definition, args, kwargs)
        signature, steps = whole.signature.of_one_step(definition.build)
        what = whole._replace(signature=signature, steps=steps)
        if self.programs.find(what) is None:
            _warn_of_convolutions(plan)
        return self._run_compiled(plan, what)

    def _run_compiled(self, plan: Plan, what: Asked) -> Any:
        """Run the program for what is asked, made anew if it doesn't fit any more."""
        known = self.programs.find(what)
        program = known or self._program(plan, what)
        if program.limits:
            build = what.definition.build
            check_ranges(program.limits, what.batch, what.signature, build)
        try:
            return self._run(plan, program, what)
        except OtherTypesError as error:
            mismatch = error.mismatch
        if any(isinstance(array, Tracer) for array in what.batch):
            raise TypeError(
                f"{what.definition.name} is called inside jax.jit, jax.grad or a "
                "build(): a graph is a whole step. Call its module there, "
                "self.model(x)"
            ) from mismatch
        if not known:  # it was just made for these very arrays
            raise mismatch
        # The arguments are the ones of the signature, so a Variable must have changed,
        # and its slots may have to.
        plan = self._make_plan(what.definition)
        self.adopt(plan)
        self.programs.clear("the dtype, shape or placement of a Variable changed")
        return self._run(plan, self._program(plan, what), what)

    def _run(self, plan: Plan, program: Program, what: Asked) -> Any:
        """Run a program; what `build` returned."""
        self._look_for_skips(what.definition.name)
        numbers, steps = self.optimizers.numbers, what.steps or 1
        results = self.live.run(program.run, numbers, what.batch, steps=steps)
        return self._returned(plan, results)

    def _returned(self, plan: Plan, results: Results) -> Any:
        """What `build` returned, once its arrays are there."""
        self.reported = results.report, plan
        return results.found.outputs.fill(results.outputs)

    def _look_for_skips(self, name: str) -> None:
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
        why = why_skipped(*self.reported) if news.in_a_row and self.reported else ""
        if news.are_new:
            level = logging.WARNING if limit else logging.INFO
            text = f"; {why}" if why else ""
            _log.log(level, "%s: %d skipped%s", name, news.total, text)
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
    convs = [n for n in plan.modules.nodes().values() if isinstance(n.value, kinds)]
    if convs and jax.default_backend() == "cpu":
        warnings.warn(
            f"graph.scan on the CPU with convolutions ({convs[0].path}): XLA runs them "
            "slower inside a loop, so calling the graph for each batch is faster here",
            stacklevel=4,
        )
