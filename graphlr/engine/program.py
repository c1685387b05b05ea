"""A step compiled ahead of time, for one signature."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax

from graphlr.engine.guards import check_constants
from graphlr.platforms import for_platform_of
from graphlr.runtime import cache_use, compiler_options, garbage_collection_off
from graphlr.step.indices import index_limits
from graphlr.step.plan import Plan
from graphlr.step.types import Inputs, Results, State, Step


class OtherTypesError(Exception):
    """A program was given arrays of other types than it is compiled for; nothing ran.

    Attributes:
        mismatch: What JAX says of them.
    """

    def __init__(self, mismatch: TypeError | ValueError) -> None:
        super().__init__(str(mismatch))
        self.mismatch = mismatch


class Program(NamedTuple):
    """A step for one signature.

    Attributes:
        compiled: What XLA made of it.
        limits: `{position in the batch: size}` of what integer arrays index.
        trace_seconds: Time to trace and lower.
        compile_seconds: Time that XLA took.
        cached: Whether it was read from the cache; None without one.
    """

    compiled: jax.stages.Compiled
    limits: Mapping[int, int]
    trace_seconds: float
    compile_seconds: float
    cached: bool | None

    def run(self, state: State, inputs: Inputs) -> Results:
        """Run it; a `Step`.

        Raises:
            OtherTypesError: These arrays aren't what it is compiled for.
        """
        try:
            return self.compiled(state, inputs)
        except (TypeError, ValueError) as error:
            # JAX looks at the arguments before it runs anything. An error of the run
            # itself, also of a callback in it, is a JaxRuntimeError.
            raise OtherTypesError(error) from error


class TracedStep(NamedTuple):
    """A step that is traced, and checked for what tracing shows.

    Attributes:
        traced: By `jax.jit`.
        limits: `{position in the batch: size}` of what integer arrays index.
    """

    traced: jax.stages.Traced
    limits: dict[int, int]


def trace_step(
    trace: Callable[[], jax.stages.Traced], plan: Plan, state: State, inputs: Inputs
) -> TracedStep:
    """Trace a step.

    Args:
        trace: Traces it; the arrays of the batch are its last arguments.
        plan: What the Variables are for.
        state: What it replaces: its arrays, so that a captured one is recognised.
        inputs: What it reads.

    Raises:
        ValueError: The step uses a parameter as a constant.
    """
    traced = trace()
    variables = [*plan.trained, *plan.extras]
    arrays = [*state.trained, *inputs.extras]
    known = plan.modules.path_of
    paths = {id(a): known[id(v)] for a, v in zip(arrays, variables, strict=True)}
    check_constants(traced.jaxpr.consts, paths, known)
    jaxpr = traced.jaxpr.jaxpr
    batch = jaxpr.invars[len(jaxpr.invars) - len(inputs.batch) :]
    limits = index_limits(jaxpr, {variable: i for i, variable in enumerate(batch)})
    return TracedStep(traced, limits)


def compile_step(
    step: Step, plan: Plan, state: State, inputs: Inputs, *, donate: bool
) -> Program:
    """Trace and compile `step` for arrays like these.

    Args:
        step: What to compile.
        plan: What the Variables are for.
        state: What it replaces.
        inputs: What it reads.
        donate: Whether it may reuse the memory of `state`.

    Raises:
        ValueError: The step uses a parameter as a constant.
    """
    start = time.perf_counter()
    jitted = jax.jit(step, donate_argnums=(0,) if donate else ())
    with garbage_collection_off(), for_platform_of((state, inputs)):
        made = trace_step(lambda: jitted.trace(state, inputs), plan, state, inputs)
        lowered = made.traced.lower()
    middle = time.perf_counter()
    with cache_use() as use:
        compiled = lowered.compile(compiler_options())
    end = time.perf_counter()
    return Program(compiled, made.limits, middle - start, end - middle, use.get("hit"))


def cost_of(program: Program) -> dict[str, float]:
    """FLOPs, bytes and memory of a compiled step, what of them the platform tells."""
    counted = program.compiled.cost_analysis() or {}
    numbers = {"flops": counted.get("flops"), "bytes": counted.get("bytes accessed")}
    memory = program.compiled.memory_analysis()
    if memory is not None:
        arguments, outputs, temporary, shared = (
            getattr(memory, f"{kind}_size_in_bytes")
            for kind in ("argument", "output", "temp", "alias")
        )
        numbers |= {
            "peak_memory": arguments + outputs - shared + temporary,
            "temporary_memory": temporary,
            "argument_memory": arguments,
            "output_memory": outputs,
        }
    return {name: float(value) for name, value in numbers.items() if value is not None}
