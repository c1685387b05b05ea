"""A step made ready to run: compiled ahead of time, and run without losing anything."""

from __future__ import annotations

import functools
import gc
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from types import FrameType
from typing import Any, NamedTuple

import jax
from flax import nnx

from graphlr.groups import listing
from graphlr.plan import Plan
from graphlr.platforms import settled
from graphlr.runtime import cache_use, garbage_collection_off
from graphlr.signature import Constant, Signature, check_range, index_limits
from graphlr.step import Findings, Inputs, Results
from graphlr.update import State

Step = Callable[[State, Inputs], Results]

# For XLA's CPU compiler. The pass that is left out removes optimization barriers: then
# what is computed twice on purpose is shared, and a gradient is computed again at every
# kernel position. LLVM's third level makes depthwise convolutions a tenth slower.
_CPU: dict[str, str | bool | int] = {
    "xla_disable_hlo_passes": "cse_barrier_expander",
    "xla_backend_optimization_level": 1,
}


class Compile(NamedTuple):
    """One compilation.

    Attributes:
        why: What made it necessary.
        trace_seconds: Time to trace and lower.
        compile_seconds: Time that XLA took.
        cached: Whether `glr.runtime.compile_cache` had it; None without a cache.
    """

    why: str
    trace_seconds: float
    compile_seconds: float
    cached: bool | None = None


class Compiles:
    """Every compilation of a graph so far.

    Attributes:
        records: Each, in order.

    Example:
        >>> compiles = Compiles([Compile("first call", 0.5, 1.5)])
        >>> compiles.count, compiles.seconds, compiles.why
        (1, 2.0, ['first call'])
        >>> compiles
        1 compiled in 2.0 s: first call
    """

    def __init__(self, records: Sequence[Compile] = ()) -> None:
        self.records = list(records)

    @property
    def count(self) -> int:
        """How many."""
        return len(self.records)

    @property
    def seconds(self) -> float:
        """Trace and compile time of all together."""
        return sum(r.trace_seconds + r.compile_seconds for r in self.records)

    @property
    def hits(self) -> int:
        """How many were read from `glr.runtime.compile_cache`."""
        return sum(record.cached is True for record in self.records)

    @property
    def misses(self) -> int:
        """How many the cache did not have."""
        return sum(record.cached is False for record in self.records)

    @property
    def why(self) -> list[str]:
        """What made each necessary."""
        return [record.why for record in self.records]

    def __len__(self) -> int:
        return len(self.records)

    def __int__(self) -> int:
        return len(self.records)

    def __repr__(self) -> str:
        why = "; ".join(self.why)
        hits = f" ({self.hits} from the cache)" if self.hits else ""
        text = f"{self.count} compiled in {self.seconds:.1f} s{hits}"
        return f"{text}: {why or 'nothing yet'}"


class Program(NamedTuple):
    """A step for one signature.

    Attributes:
        run: The compiled step.
        found: What tracing found out.
        limits: `{position in the batch: size}` of what integer arrays index.
        seconds: Time to trace and to compile.
        cached: Whether it was read from the cache; None without one.
    """

    run: Step
    found: Findings
    limits: dict[int, int]
    seconds: tuple[float, float]
    cached: bool | None


def compile_step(
    step: Step,
    found: Findings,
    state: State,
    inputs: Inputs,
    *,
    plan: Plan,
    donate: bool,
) -> Program:
    """Trace and compile `step` for arrays like these.

    Args:
        step: What to compile.
        found: What tracing it finds out.
        state: What it replaces.
        inputs: What it reads.
        plan: What the Variables are for.
        donate: Whether it may reuse the memory of `state`.

    Raises:
        ValueError: The step uses a parameter as a constant.
    """
    start = time.perf_counter()
    jitted = jax.jit(step, donate_argnums=(0,) if donate else ())
    with garbage_collection_off(), settled((state, inputs)):
        traced = jitted.trace(state, inputs)
        lowered = traced.lower()
    check_constants(traced.jaxpr.consts, state, inputs, plan)
    jaxpr = traced.jaxpr.jaxpr
    batch = jaxpr.invars[len(jaxpr.invars) - len(inputs.batch) :]
    limits = index_limits(jaxpr, {v: i for i, v in enumerate(batch)})
    middle = time.perf_counter()
    with cache_use() as use:
        run = lowered.compile(compiler_options())
    end = time.perf_counter()
    seconds = (middle - start, end - middle)
    return Program(run, found, limits, seconds, use.get("hit"))


def compiler_options() -> Any:
    """What XLA is told: measured settings on CPU, nothing elsewhere."""
    return _CPU if jax.default_backend() == "cpu" else None


def cost_of(program: Program) -> dict[str, float]:
    """FLOPs, bytes and memory of a compiled step, what of them the platform tells."""
    compiled: Any = program.run
    counted = compiled.cost_analysis() or {}
    found = {"flops": counted.get("flops"), "bytes": counted.get("bytes accessed")}
    memory = compiled.memory_analysis()
    if memory is not None:
        arguments, outputs, temporary, shared = (
            getattr(memory, f"{kind}_size_in_bytes")
            for kind in ("argument", "output", "temp", "alias")
        )
        found |= {
            "peak_memory": arguments + outputs - shared + temporary,
            "temporary_memory": temporary,
            "argument_memory": arguments,
            "output_memory": outputs,
        }
    return {name: float(value) for name, value in found.items() if value is not None}


def check_constants(
    constants: Sequence[Any], state: State, inputs: Inputs, plan: Plan
) -> None:
    """Refuse a model that `build` reads through a name other than self's."""
    names = dict(zip(map(id, plan.modules.variables), plan.modules.paths, strict=True))
    pairs = (
        *zip(state.trained, plan.trained, strict=True),
        *zip(inputs.extras, plan.extras, strict=True),
    )
    arrays = {id(array): names[id(variable)] for array, variable in pairs}
    captured = sorted(arrays[id(c)] for c in constants if id(c) in arrays)
    if captured:
        raise ValueError(
            f"build() uses {listing(captured)} as a constant, because it reaches the "
            "module by a name other than self's; it would neither train nor change. "
            "Hold the module as an attribute and write self.model(image)"
        )
    loose = [c for c in constants if isinstance(c, jax.Array)]
    held = gc.get_referrers(*loose) if loose else []  # it looks at every object
    strangers = [v for v in held if isinstance(v, nnx.Variable) and id(v) not in names]
    if strangers:
        warnings.warn(
            f"build() uses {len(strangers)} Variables of modules that no attribute of "
            "the graph holds as constants: they don't train, and later changes of them "
            "are not seen. self.teacher = teacher in __init__",
            stacklevel=2,
        )


def check_ranges(
    limits: dict[int, int],
    batch: Sequence[Any],
    signature: Signature,
    build: Callable[..., Any],
) -> None:
    """Refuse host arrays whose values are visibly out of range as indices.

    Arrays on a device are not read: that would wait for them.

    Raises:
        ValueError: Names the argument, the value and its place.
    """

    def name(i: int) -> str:
        kinds = zip(signature.kinds, signature.names(build), strict=True)
        return [name for kind, name in kinds if not isinstance(kind, Constant)][i]

    for i, size in limits.items():
        if not isinstance(batch[i], jax.Array):
            check_range(batch[i], size, functools.partial(name, i))


def check_not_lost(arrays: Iterable[jax.Array], error: Exception) -> None:
    """After a step failed with `error`, say so if it took its donated buffers along.

    Raises:
        RuntimeError: The state is lost; says how to restore it.
    """
    if any(array.is_deleted() for array in arrays):
        raise RuntimeError(
            "a step failed after its buffers were donated, so parameters and slots are "
            "lost: graph.load_state_dict(saved) restores what graph.state_dict() gave "
            "before. With config.donate = False a failed step costs nothing, and every "
            "step costs the memory of a second copy."
        ) from error


# The function behind `signal.signal`, which takes 15 us to translate handlers to enums.
_set_handler = sys.modules.get("_signal", signal).signal


class Undisturbed:
    """Holds Ctrl-C back until a step's results are written, then lets it through.

    Between the call that donates the old buffers and the write of the new ones an
    exception would leave Variables without arrays.
    """

    def __enter__(self) -> None:
        self._held: list[tuple[int, FrameType | None]] = []
        self._main = threading.current_thread() is threading.main_thread()
        if self._main:
            self._handler = _set_handler(
                signal.SIGINT, lambda number, frame: self._held.append((number, frame))
            )

    def __exit__(self, *error: object) -> None:
        if not self._main:
            return
        _set_handler(signal.SIGINT, self._handler)
        if self._held and callable(self._handler):
            self._handler(*self._held[0])
