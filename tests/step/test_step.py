"""What one step returns, writes, and leaves alone."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from graphlr.optim import SGD, Adam, AdamW
from tests.models import Computes, Evaluate, Train, linear

X = np.ones((4, 2), np.float32)


class Model(nnx.Module):
    """A layer, a counter that its calls change, a cache that they only read."""

    def __init__(self):
        self.layer = linear()
        self.calls = nnx.Variable(jnp.zeros((), jnp.int32))
        self.cache = nnx.Cache(jnp.ones(1))

    def __call__(self, x):
        self.calls.set_value(self.calls.get_value() + 1)
        return self.layer(x) * self.cache


@pytest.fixture(scope="module")
def counted():
    """A graph after two steps."""
    graph = Train(Model(), Adam("**", lr=0.1))
    graph(X), graph(X)
    return graph


def test_what_build_changes_is_written(counted):
    assert int(counted.model.calls.get_value()) == counted.step == 2
    assert counted.compiles.count == 1


def test_what_build_only_reads_keeps_its_array():
    model = Model()
    cache = model.cache.get_value()
    Train(model, SGD("**")).eager(X)
    assert model.cache.get_value() is cache


def test_an_eval_graph_writes_too():
    graph = Evaluate(Model())
    kernel = graph.model.layer.kernel.get_value()
    graph(X), graph(X)
    assert int(graph.model.calls.get_value()) == 2
    assert graph.model.layer.kernel.get_value() is kernel


@dataclasses.dataclass
class Report:
    loss: object
    note: str


def test_every_kind_of_result():
    def kinds(x):
        constants = [None, True, 3, "s", np.float32(2), jax.random.key(0)]
        return Report(x.sum(), "sum"), constants, kinds

    results = Computes(kinds)(X)
    report, (nothing, flag, number, text, host, key), function = results
    assert (float(report.loss), report.note) == (8.0, "sum")
    assert (nothing, flag, number, text) == (None, True, 3, "s")
    assert function is kinds
    assert isinstance(host, jax.Array)
    assert jnp.issubdtype(key.dtype, jax.dtypes.prng_key)


@pytest.mark.parametrize("bad", [object(), {1}])
def test_a_result_that_is_no_pytree(bad):
    with pytest.raises(TypeError, match=rf"returned a {type(bad).__name__}, which is"):
        Computes(lambda x: {"x": x, "bad": bad})(X)


def test_a_frozen_target_follows_by_hand():
    class Follow(Train):
        def build(self, x):
            loss = super().build(x)
            mine, theirs = self.target.layer.kernel, self.model.layer.kernel
            mine.set_value(0.5 * mine.get_value() + 0.5 * theirs.get_value())
            return loss

    model, target = Model(), Model()
    groups = [{"params": target, "frozen": True}, {"params": model}]
    graph = Follow(model, SGD(groups, lr=0.1))
    graph.target = target
    before = np.array(target.layer.kernel.get_value())
    graph(X)
    np.testing.assert_array_equal(before, target.layer.kernel.get_value())  # equal yet
    current = np.array(model.layer.kernel.get_value())
    graph(X)
    np.testing.assert_allclose(
        target.layer.kernel.get_value(), (before + current) / 2, rtol=1e-6
    )


@pytest.mark.parametrize("transform", [nnx.jit, nnx.remat])
def test_a_transformed_module_call_is_no_assignment(transform):
    class Transformed(Train):
        def loss(self, x):
            call = transform(lambda model, x: model(x))
            return (call(self.model, x) ** 2).mean()

    graph = Transformed(Model(), SGD("**", lr=0.1))
    assert float(graph(X)) > float(graph(X))
    assert int(graph.model.calls.get_value()) == 2


def test_half_precision_stays_half():
    model = Model()
    for variable in (model.layer.kernel, model.layer.bias):
        variable.set_value(variable.get_value().astype(jnp.bfloat16))
    graph = Train(model, AdamW("**", lr=0.1))
    graph(X), graph(X)
    assert graph.compiles.count == 1
    assert model.layer.kernel.get_value().dtype == jnp.bfloat16
    state = graph.state_dict()
    assert state["slots.model.layer.kernel.exp_avg"].dtype == jnp.bfloat16
