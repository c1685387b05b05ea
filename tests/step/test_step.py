"""What one step returns, writes, and leaves alone."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import graphlr as glr

X = np.ones((4, 2), np.float32)


class Model(nnx.Module):
    """A layer, a counter that its calls change, a cache that they only read."""

    def __init__(self, *, idle=False):
        self.layer = nnx.Linear(2, 1, rngs=nnx.Rngs(0))
        self.calls = nnx.Variable(jnp.zeros((), jnp.int32))
        self.cache = nnx.Cache(jnp.ones(1))
        if idle:
            self.idle = nnx.Linear(2, 1, rngs=nnx.Rngs(1))

    def __call__(self, x):
        self.calls.set_value(self.calls.get_value() + 1)
        return self.layer(x) * self.cache


class Train(glr.Graph):
    def __init__(self, model, optimizer, target=None):
        super().__init__()
        self.model, self.target = model, target
        self.add_optimizer(optimizer)

    def build(self, x):
        loss = (self.model(x) ** 2).mean()
        self.backward(loss)
        return loss


class Evaluate(glr.Graph):
    def __init__(self, model):
        super().__init__()
        self.model = model


@pytest.fixture(scope="module")
def counted():
    """A graph after two steps."""
    graph = Train(Model(), glr.optim.Adam("**", lr=0.1))
    graph(X), graph(X)
    return graph


def test_what_build_changes_is_written(counted):
    assert int(counted.model.calls.get_value()) == counted.step == 2
    assert counted.compiles.count == 1


def test_what_build_only_reads_keeps_its_array():
    model = Model()
    cache = model.cache.get_value()
    graph = Train(model, glr.optim.SGD("**"))
    graph.eager(X)
    assert model.cache.get_value() is cache


def test_an_eval_graph_writes_too():
    class Count(Evaluate):
        def build(self, x):
            return self.model(x)

    graph = Count(Model())
    kernel = graph.model.layer.kernel.get_value()
    graph(X), graph(X)
    assert int(graph.model.calls.get_value()) == 2
    assert graph.model.layer.kernel.get_value() is kernel


@dataclasses.dataclass
class Report:
    loss: object
    note: str


def test_every_kind_of_result():
    class Kinds(Evaluate):
        def build(self, x):
            report = Report(x.sum(), "sum")
            return report, [None, True, 3, "s", np.float32(2), jax.random.key(0)], build

    def build():
        """A function is a constant."""

    report, (nothing, flag, number, text, host, key), function = Kinds(Model())(X)
    assert (float(report.loss), report.note) == (8.0, "sum")
    assert (nothing, flag, number, text) == (None, True, 3, "s")
    assert function is build
    assert isinstance(host, jax.Array)
    assert jnp.issubdtype(key.dtype, jax.dtypes.prng_key)


@pytest.mark.parametrize("bad", [object(), {1}])
def test_a_result_that_is_no_pytree(bad):
    class Bad(Evaluate):
        def build(self, x):
            return {"x": x, "bad": bad}

    with pytest.raises(TypeError, match=rf"returned a {type(bad).__name__}, which is"):
        Bad(Model())(X)


def test_losses_add_up():
    class Twice(Train):
        def build(self, x):
            self.backward(super().build(x) * 2)

    once, thrice = (
        kind(Model(), glr.optim.SGD("**", lr=lr))
        for kind, lr in ((Train, 0.3), (Twice, 0.1))
    )
    once.eager(X), thrice.eager(X)
    np.testing.assert_allclose(
        once.model.layer.kernel.get_value(),
        thrice.model.layer.kernel.get_value(),
        rtol=1e-5,
    )


def test_slots_of_an_unused_parameter_are_untouched():
    graph = Train(Model(idle=True), glr.optim.Adam("**", weight_decay=0.1))
    with pytest.warns(UserWarning, match=r"model\.idle\.kernel"):
        graph(X)
    for key, value in graph.state_dict().items():
        if key.startswith("slots."):
            moved = bool(np.any(value))
            assert moved == (".idle." not in key), key


def test_a_frozen_target_follows_by_hand():
    class Follow(Train):
        def build(self, x):
            loss = super().build(x)
            mine, theirs = self.target.layer.kernel, self.model.layer.kernel
            mine.set_value(0.5 * mine.get_value() + 0.5 * theirs.get_value())
            return loss

    model, target = Model(), Model(idle=True)
    groups = [{"params": target, "frozen": True}, {"params": model}]
    graph = Follow(model, glr.optim.SGD(groups, lr=0.1), target)
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
        def build(self, x):
            call = transform(lambda model, x: model(x))
            loss = (call(self.model, x) ** 2).mean()
            self.backward(loss)
            return loss

    graph = Transformed(Model(), glr.optim.SGD("**", lr=0.1))
    assert float(graph(X)) > float(graph(X))
    assert int(graph.model.calls.get_value()) == 2


def test_backward_inside_a_transformation_is_an_error_that_says_so():
    class Inside(Train):
        def build(self, x):
            def loss(x):
                self.backward((self.model.layer(x) ** 2).mean())
                return x

            jax.checkpoint(loss)(x)
            self.backward((self.model.layer(x) ** 2).mean())

    with pytest.raises((RuntimeError, ValueError, TypeError), match="backward"):
        Inside(Model(), glr.optim.SGD("**"))(X)


def test_half_precision_stays_half():
    model = Model()
    for variable in (model.layer.kernel, model.layer.bias):
        variable.set_value(variable.get_value().astype(jnp.bfloat16))
    graph = Train(model, glr.optim.AdamW("**", lr=0.1))
    graph(X), graph(X)
    assert graph.compiles.count == 1
    assert model.layer.kernel.get_value().dtype == jnp.bfloat16
    state = graph.state_dict()
    assert state["slots.model.layer.kernel.exp_avg"].dtype == jnp.bfloat16
