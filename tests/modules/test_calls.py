"""Modules that are computed again for the gradients: the same numbers, less memory."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from graphlr.modules.calls import wrap
from graphlr.optim import SGD
from tests.models import Train, assert_close, linear, state_of

X = np.random.default_rng(0).normal(size=(16, 8)).astype(np.float32)


class Block(nnx.Module):
    """Statistics, random numbers, and arguments of every kind."""

    def __init__(self, seed):
        rngs = nnx.Rngs(seed)
        self.inner = linear(8, 8, seed=seed)
        self.bn = nnx.BatchNorm(8, rngs=rngs)
        self.drop = nnx.Dropout(0.2, rngs=rngs)

    def __call__(self, x, factor=1.0, *, mode="sum", mask=None):
        y = self.drop(jnp.tanh(self.bn(self.inner(x))))
        if mask is not None:
            y = y * mask
        return (x + factor * y if mode == "sum" else y), {"mode": mode}


class Net(nnx.Module):
    def __init__(self):
        self.blocks = nnx.List([Block(0), Block(1)])

    def __call__(self, x):
        for block in self.blocks:
            x, _ = block(x, 0.5, mode="sum", mask=jnp.ones(8))
        return x


def trained(remat, model=None):
    return Train(model or Net(), SGD("**", lr=0.1), remat=remat)


@pytest.fixture(scope="module")
def plain():
    """Losses of three steps, and the state after them."""
    graph = trained(None)
    return [float(graph(X)) for _ in range(3)], state_of(graph)


@pytest.mark.parametrize("remat", ["model.blocks.*", "blocks.0", "**"], ids=str)
def test_the_same_training(plain, remat):
    losses, state = plain
    graph = trained(remat)
    np.testing.assert_allclose([float(graph(X)) for _ in range(3)], losses, rtol=1e-6)
    assert_close(state_of(graph), state, atol=1e-6)
    assert graph.compiles.count == 1
    assert type(graph.model.blocks[0]) is Block  # the model is left as it is


@pytest.fixture(scope="module")
def text():
    """The step in which every block is computed again."""
    return trained("model.blocks.*").lower(X).as_text()


@pytest.mark.parametrize("remat", [Block, [Block, "blocks.1"]], ids=str)
def test_every_selector_of_them_gives_the_same_step(text, remat):
    assert trained(remat).lower(X).as_text() == text


def test_a_module_itself_is_a_selector(text):
    model = Net()
    one, none = (trained(remat, model).lower(X) for remat in (model.blocks[1], None))
    barriers = [
        step.count("optimization_barrier")
        for step in (none.as_text(), one.as_text(), text)
    ]
    assert barriers[0] < barriers[1] < barriers[2]


def test_less_memory():
    class Wide(nnx.Module):
        def __init__(self):
            self.inner, self.outer = linear(8, 512), linear(512, 8)

        def __call__(self, x):
            return x + self.outer(jnp.tanh(self.inner(x)))

    def cost(remat):
        model = nnx.Sequential(*(Wide() for _ in range(6)))
        return trained(remat, model).cost(np.ones((256, 8), np.float32))

    plain, again = cost(None), cost("model.layers.*")
    assert again["temporary_memory"] < 0.6 * plain["temporary_memory"]
    assert again["flops"] > plain["flops"]


def test_a_selector_that_selects_nothing():
    with pytest.raises(
        ValueError, match=r"remat: 'blocks' selects no|nearest"
    ) as caught:
        trained("layers.*")(X)
    assert "model.blocks.0" in str(caught.value)


def test_a_wrapped_module_keeps_its_name_and_one_that_is_not_called_its_class():
    def around(call):
        return lambda module, *args: 2 * call(module, *args)

    layer, holder = linear(), nnx.Dict(layer=linear())
    once = np.asarray(layer(X[:, :2]))
    wrap(layer, around), wrap(holder, around)
    np.testing.assert_array_equal(layer(X[:, :2]), 2 * once)
    assert type(layer).__name__ == "Linear"
    assert isinstance(layer, nnx.Linear)
    assert type(holder) is nnx.Dict
