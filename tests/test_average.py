"""Averages of the weights: exponential and SWA, in a graph and in closed form."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import graphlr as glr

X = np.ones((4, 3), np.float32)


def trained(decay, steps=7, lr=0.1):
    """A graph over one matrix, and the weights after each step."""

    class Train(glr.Graph):
        def __init__(self):
            super().__init__()
            self.model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
            self.add_optimizer(glr.optim.SGD(self.model, lr=lr))
            self.config.ema_decay = decay

        def build(self, x):
            loss = (self.model(x) ** 2).sum()
            self.backward(loss)
            return loss

    graph, weights = Train(), []
    for _ in range(steps):
        graph(X)
        weights.append(np.asarray(graph.model.kernel.get_value()))
    assert graph.compiles.count == 1
    return graph, weights


def average(graph):
    return np.asarray(graph.ema_state["model.kernel"])


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.99])
def test_exponential(decay):
    graph, weights = trained(decay)
    expected = weights[0]
    for weight in weights[1:]:
        expected = decay * expected + (1 - decay) * weight
    np.testing.assert_allclose(average(graph), expected, atol=1e-6)


def test_swa_is_the_mean():
    graph, weights = trained(glr.average.swa())
    np.testing.assert_allclose(average(graph), np.mean(weights, 0), rtol=1e-5)


def test_swa_from_a_start_and_once_in_a_while():
    graph, weights = trained(glr.average.swa(start=2, every=2))
    np.testing.assert_allclose(average(graph), np.mean(weights[2::2], 0), rtol=1e-5)
    graph, weights = trained(glr.average.swa(start=20))
    np.testing.assert_allclose(average(graph), weights[-1], rtol=1e-6)


def test_half_precision_parameters_average_in_float32_and_stay_half():
    params = [jnp.ones(2, jnp.bfloat16)]
    now = glr.average.averaged(params, [jnp.zeros(2, jnp.bfloat16)], 0.5, jnp.int32(1))
    assert now[0].dtype == jnp.bfloat16
    assert now[0].tolist() == [0.5, 0.5]


def test_an_eval_graph_uses_the_averages():
    graph, _ = trained(0.5)

    class Evaluate(glr.Graph):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def build(self, x):
            return self.model(x)

    live, averaged = Evaluate(graph.model), Evaluate(nnx.clone(graph.model))
    averaged.load_state_dict(graph.ema_state)
    expected = X @ average(graph) + np.asarray(graph.ema_state["model.bias"])
    np.testing.assert_allclose(averaged(X), expected, rtol=1e-5)
    assert np.abs(live(X) - averaged(X)).max() > 1e-4
    graph(X)
    averaged.load_state_dict(graph.ema_state)
    assert averaged.compiles.count == 1


def test_averages_are_saved_and_resumed():
    whole, _ = trained(0.9, steps=3)
    other, _ = trained(0.9, steps=1)
    other.load_state_dict(whole.state_dict())
    for graph in (whole, other):
        graph(X)
    np.testing.assert_array_equal(average(whole), average(other))
    assert int(other.state_dict()["ema.taken"]) == 4


def test_a_parameter_unfrozen_later_joins():
    model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))

    class Train(glr.Graph):
        def __init__(self):
            super().__init__()
            self.model = model
            groups = [{"params": "bias", "frozen": True}, {"params": ...}]
            optimizer = glr.optim.SGD(groups, lr=0.1)
            self.groups = optimizer.param_groups
            self.add_optimizer(optimizer)
            self.config.ema_decay = 0.5

        def build(self, x):
            loss = (self.model(x) ** 2).sum()
            self.backward(loss)
            return loss

    graph = Train()
    graph(X)
    kept = average(graph)
    assert "ema.model.bias" not in graph.state_dict()
    graph.groups[0]["frozen"] = False
    graph(X)
    assert "ema.model.bias" in graph.state_dict()
    expected = 0.5 * kept + 0.5 * np.asarray(model.kernel.get_value())
    np.testing.assert_allclose(average(graph), expected, rtol=1e-6)


def test_faults():
    with pytest.raises(ValueError, match="start is -1, not an int >= 0"):
        glr.average.swa(start=-1)
    with pytest.raises(ValueError, match="every is 0"):
        glr.average.swa(every=0)
    graph, _ = trained(None, steps=1)
    with pytest.raises(RuntimeError, match=r"needs config.ema_decay = 0.999"):
        print(graph.ema_state)
