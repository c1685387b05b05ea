"""What goes into a step and comes out: trees that pass through JAX whole."""

import jax
import jax.numpy as jnp

from graphlr.step.carried import Carried
from graphlr.step.signature import Signature
from graphlr.step.types import Found, OptimizerState, Report, Results, State


def results(x):
    """What a step might give, with what was found out while tracing."""
    found = Found(Signature(jax.tree.structure((0, 0)), ()), (2, 0))
    state = State([x], [OptimizerState([x], jnp.int32(1))], Carried())
    return Results(state, [x, x], [], Report(loss=x.sum()), found)


def test_what_tracing_finds_out_comes_through_jit_and_a_loop():
    expected = results(jnp.ones(2)).found
    assert jax.jit(results)(jnp.ones(2)).found == expected
    _, looped = jax.lax.scan(lambda c, x: (c, results(x)), 0, jnp.ones((3, 2)))
    assert looped.found == expected
    assert looped.report.loss.tolist() == [2.0] * 3
    _, aux = jax.grad(lambda x: (x.sum(), results(x)), has_aux=True)(jnp.ones(2))
    assert aux.found == expected


def test_what_is_off_is_no_array_of_the_program():
    leaves = jax.tree.leaves(jax.eval_shape(results, jnp.ones(2)))
    assert len(leaves) == 3 + 2 + 1  # the state, outputs, the loss


def test_the_state_comes_first():
    """Its donated buffers are then given to the new state and to nothing else."""
    first = jax.tree.leaves(results(jnp.ones(2)))[:3]
    assert [leaf.shape for leaf in first] == [(2,), (2,), ()]
