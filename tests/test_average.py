"""Averages of the weights: exponential and SWA, in a graph and in closed form."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from graphlr.average import averaged, swa
from graphlr.optim import SGD
from tests.models import Evaluate, Train, linear

X = np.ones((4, 2), np.float32)


def made(decay):
    return Train(linear(), SGD("**", lr=0.1), ema_decay=decay)


def trained(decay, steps=7, *, eager=False):
    """A graph over one matrix, and the weights after each step."""
    graph, weights = made(decay), []
    for _ in range(steps):
        (graph.eager if eager else graph)(X)
        weights.append(np.asarray(graph.model.kernel.get_value()))
    assert graph.compiles.count == (not eager)
    return graph, weights


def average(graph):
    return np.asarray(graph.ema_state["model.kernel"])


@pytest.fixture(scope="module")
def half():
    """A graph whose averages have a decay of one half, and the weights of its steps."""
    return trained(0.5)


def exponential(decay, weights):
    expected = weights[0]
    for weight in weights[1:]:
        expected = decay * expected + (1 - decay) * weight
    return expected


def test_exponential(half):
    graph, weights = half
    np.testing.assert_allclose(average(graph), exponential(0.5, weights), atol=1e-6)


@pytest.mark.parametrize("decay", [0.0, 0.99])
def test_exponential_with_any_decay(decay):
    graph, weights = trained(decay, eager=True)
    np.testing.assert_allclose(average(graph), exponential(decay, weights), atol=1e-6)


def test_swa_is_the_mean():
    graph, weights = trained(swa())
    np.testing.assert_allclose(average(graph), np.mean(weights, 0), rtol=1e-5)


def test_swa_from_a_start_and_once_in_a_while():
    graph, weights = trained(swa(start=2, every=2), eager=True)
    np.testing.assert_allclose(average(graph), np.mean(weights[2::2], 0), rtol=1e-5)
    graph, weights = trained(swa(start=20), eager=True)
    np.testing.assert_allclose(average(graph), weights[-1], rtol=1e-6)


def test_half_precision_parameters_average_in_float32_and_stay_half():
    params = [jnp.ones(2, jnp.bfloat16)]
    now = averaged(params, [jnp.zeros(2, jnp.bfloat16)], 0.5, jnp.int32(1))
    assert now[0].dtype == jnp.bfloat16
    assert now[0].tolist() == [0.5, 0.5]


def test_an_eval_graph_uses_the_averages(half):
    graph, _ = half
    live, own = Evaluate(graph.model), Evaluate(nnx.clone(graph.model))
    own.load_state_dict(graph.ema_state)
    expected = X @ average(graph) + np.asarray(graph.ema_state["model.bias"])
    np.testing.assert_allclose(own(X), expected, rtol=1e-5)
    assert np.abs(live(X) - own(X)).max() > 1e-4
    graph(X)
    own.load_state_dict(graph.ema_state)
    assert own.compiles.count == 1


def test_averages_are_saved_and_resumed(half):
    whole, _ = half
    other, _ = trained(0.5, steps=1)
    other.load_state_dict(whole.state_dict())
    taken = int(whole.state_dict()["ema.taken"])
    assert taken == whole.step >= 7
    for graph in (whole, other):
        graph(X)
    np.testing.assert_array_equal(average(whole), average(other))
    assert int(other.state_dict()["ema.taken"]) == taken + 1


def test_a_parameter_unfrozen_later_joins():
    groups = [{"params": "bias", "frozen": True}, {"params": ...}]
    graph = Train(linear(), SGD(groups, lr=0.1), ema_decay=0.5)
    graph(X)
    kept = average(graph)
    assert "ema.model.bias" not in graph.state_dict()
    graph.optimizers[0].param_groups[0]["frozen"] = False
    graph(X)
    assert "ema.model.bias" in graph.state_dict()
    expected = 0.5 * kept + 0.5 * np.asarray(graph.model.kernel.get_value())
    np.testing.assert_allclose(average(graph), expected, rtol=1e-6)


def test_faults():
    with pytest.raises(ValueError, match="start is -1, not an int >= 0"):
        swa(start=-1)
    with pytest.raises(ValueError, match="every is 0"):
        swa(every=0)
    with pytest.raises(RuntimeError, match=r"needs config.ema_decay = 0.999"):
        print(made(None).ema_state)
