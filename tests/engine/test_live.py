"""A step's arrays: their memory is reused, but not under somebody who holds them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from graphlr.engine.live import Live
from graphlr.optim import SGD
from graphlr.optim.slots import Held
from graphlr.step.carried import Carried, Skips
from graphlr.step.signature import Signature
from graphlr.step.types import Found, OptimizerState, Report, Results, State
from tests.models import Train, linear, state_of

X = np.ones((4, 2), np.float32)


def trained(donate=True):
    return Train(linear(2, 3), SGD("**", lr=0.1, momentum=0.9), donate=donate)


@pytest.fixture(scope="module")
def graphs():
    """One that keeps its old arrays, one that donates them, and their first state."""
    kept, donated = trained(donate=False), trained()
    return kept, donated, state_of(kept)


@pytest.mark.parametrize("donate", [True, False])
def test_donation_is_a_choice(graphs, donate):
    graph = graphs[donate]
    graph(X)
    (alone,) = [graph.model.kernel.get_value()]
    pointer = alone.unsafe_buffer_pointer()
    del alone
    slot = graph.optimizers[0].held.slots[0]
    graph(X)
    assert not slot.is_deleted()  # we hold it
    assert graph.compiles.count == 1
    reused = graph.model.kernel.get_value().unsafe_buffer_pointer() == pointer
    assert reused or not donate


def test_donation_changes_no_number(graphs):
    *both, start = graphs
    for graph in both:
        graph.load_state_dict(start)
    kept, donated = both
    for _ in range(3):
        assert float(kept(X)) == float(donated(X))


@pytest.mark.parametrize(
    "view",
    [
        lambda array: array.addressable_shards[0].data,
        np.asarray,
    ],
)
def test_another_view_of_an_array_survives(graphs, view):
    """Each gives another object over the buffer that a step would like to reuse."""
    _, graph, _ = graphs
    graph(X)
    kept = view(graph.model.kernel.get_value())
    expected = np.array(kept)
    graph(X), graph(X)
    np.testing.assert_array_equal(kept, expected)


def live(skips=None):
    """One parameter, one extra, one optimizer with a slot."""
    param, extra = nnx.Param(jnp.ones(2)), nnx.BatchStat(jnp.zeros(2))
    return Live([param], [extra], [Held([jnp.zeros(2)], step=3)], Carried(skips=skips))


def one_more(state, inputs):
    """A step that adds one to everything."""
    state = jax.tree.map(lambda x: x + 1, state)
    found = Found(Signature(None, ()), (0,))
    extras = [inputs.extras[0] + inputs.batch[0]]
    return Results(state, [], extras, Report(), found)


def test_everything_is_given_back_to_its_owner():
    held = live()
    held.run(one_more, [], [5.0], steps=2)
    assert held.trained[0].get_value().tolist() == [2.0, 2.0]
    assert held.extras[0].get_value().tolist() == [5.0, 5.0]
    assert held.held[0].slots[0].tolist() == [1.0, 1.0]
    assert int(held.held[0].counter) == 4  # what the step says
    assert held.held[0].step == 5  # what the caller said: it need not wait for that


def test_a_step_that_may_skip_says_itself_how_many_updates_there_were():
    held = live(Skips(jnp.int32(0), jnp.int32(0)))
    held.run(one_more, [], [5.0], steps=2)
    assert held.held[0].step == 4
    assert int(held.carried.skips.total) == 1


def test_a_failed_step_changes_nothing():
    held = live()
    before = jax.tree.map(np.asarray, held.state())

    def fails(state, inputs):
        raise OSError("unplugged")

    with pytest.raises(OSError, match="unplugged"):
        held.run(fails, [], [5.0])
    jax.tree.map(np.testing.assert_array_equal, held.state(), before)


def test_a_failed_step_that_took_the_arrays_along_says_so():
    held = live()

    def takes(state, inputs):
        for array in jax.tree.leaves(state):
            array.delete()
        raise OSError("unplugged")

    with pytest.raises(RuntimeError, match=r"load_state_dict\(saved\) restores"):
        held.run(takes, [], [5.0])


def test_what_somebody_else_holds_is_copied():
    held = live(Skips(jnp.int32(0), jnp.int32(0)))
    kept = held.held[0].slots[0], held.carried.skips.total
    state = held.state()
    assert isinstance(state, State)
    assert isinstance(state.optimizers[0], OptimizerState)
    assert state.optimizers[0].slots[0] is not kept[0]
    assert state.carried.skips.total is not kept[1]
    assert state.trained[0] is held.trained[0].get_raw_value()
