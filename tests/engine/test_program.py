"""A compiled step: what it costs, and what it refuses to run with."""

import jax.numpy as jnp
import numpy as np
import pytest

from graphlr.engine.program import OtherTypesError, compile_step, cost_of
from graphlr.step.carried import Carried
from graphlr.step.plan import make_plan
from graphlr.step.signature import Signature
from graphlr.step.types import Found, Inputs, Report, Results, State

NOTHING = State([], [], Carried())


def double(state, inputs):
    (x,) = inputs.batch
    return Results(state, [2 * x], [], Report(), Found(Signature(None, ()), ()))


def inputs(*batch):
    return Inputs([], [], batch)


@pytest.fixture(scope="module")
def program():
    batch = inputs(np.ones((4, 3), np.float32))
    return compile_step(double, make_plan({}, []), NOTHING, batch, donate=False)


def test_it_runs_with_arrays_like_those_it_was_compiled_for(program):
    results = program.run(NOTHING, inputs(jnp.full((4, 3), 2.0)))
    assert results.outputs[0].tolist() == [[4.0] * 3] * 4
    assert results.found.changed == ()


@pytest.mark.parametrize("other", [jnp.ones((4, 2)), jnp.ones((4, 3), jnp.int32)])
def test_it_runs_with_no_others(program, other):
    with pytest.raises(OtherTypesError, match="compiled") as caught:
        program.run(NOTHING, inputs(other))
    assert isinstance(caught.value.mismatch, TypeError | ValueError)


def test_what_it_costs(program):
    cost = cost_of(program)
    assert cost["flops"] == 12
    assert cost["argument_memory"] == cost["output_memory"] == 48
    assert program.trace_seconds > 0
    assert program.cached is None
