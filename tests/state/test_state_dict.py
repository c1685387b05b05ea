"""A graph's whole state, given."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from graphlr.optim import SGD, Adam
from tests.models import Train, X, assert_same, linear


def made():
    dropout = nnx.Dropout(0.5, rngs=nnx.Rngs(0))
    model = nnx.Sequential(dropout, linear())
    return Train(model, Adam("**", lr=0.1))


@pytest.fixture(scope="module")
def trained():
    """A graph's state after two steps, a copy of it, and its state after a third."""
    graph = made()
    graph(X), graph(X)
    state = graph.state_dict()
    copy = {key: np.array(value) for key, value in state.items()}
    graph(X)
    return state, copy, graph.state_dict()


def test_keys_are_dotted_paths(trained):
    state, *_ = trained
    variables = {key for key in state if key.startswith("model.")}
    assert variables == {
        "model.layers.0.rngs.key",
        "model.layers.0.rngs.count",
        "model.layers.1.kernel",
        "model.layers.1.bias",
    }
    slots_and_numbers = {"slots.model.layers.1.bias.steps", "groups.group0.lr", "step"}
    assert slots_and_numbers <= state.keys()
    assert state["step"] == 2


def test_everything_in_it_is_plain(trained):
    """Any format that stores arrays and numbers can store it."""
    state, *_ = trained
    for key, value in state.items():
        assert np.asarray(value).dtype.kind in "fiub", key


def test_a_saved_state_is_not_touched_by_later_steps(trained):
    state, copy, later = trained
    assert_same({key: np.array(value) for key, value in state.items()}, copy)
    assert not np.array_equal(
        later["model.layers.1.kernel"], state["model.layers.1.kernel"]
    )


def test_a_state_before_the_first_call_is_complete(trained):
    graph = made()
    state = graph.state_dict()
    assert state["step"] == 0
    assert "slots.model.layers.1.kernel.exp_avg" in state
    assert state.keys() == trained[0].keys()
    assert graph.compiles.count == 0


def test_plain_values_in_variables_are_part_of_it():
    """A Variable may hold a Python number until a step writes an array."""
    graph = made()
    graph.model.scale = nnx.Variable(2.0)
    state = graph.state_dict()
    assert float(state["model.scale"]) == 2.0
    graph.load_state_dict({**state, "model.scale": jnp.float32(3.0)})
    assert float(graph.model.scale.get_value()) == 3.0


def test_each_optimizer_keeps_its_own_count():
    """One that two graphs share has taken more steps than the other."""
    shared, own = (SGD(f"model.{name}.*", lr=0.1) for name in ("a", "b"))
    graph = Train({"a": linear(), "b": linear()}, shared, own)
    shared.step, own.step = 6, 1
    state = graph.state_dict()
    shared.step = own.step = 0
    graph.load_state_dict(state)
    assert (shared.step, own.step) == (6, 1)
