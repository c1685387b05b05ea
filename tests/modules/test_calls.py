"""Modules that are computed again for the gradients: the same numbers, less memory."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import graphlr as glr

X = np.random.default_rng(0).normal(size=(64, 16)).astype(np.float32)


class Block(nnx.Module):
    def __init__(self, width, rngs):
        self.inner = nnx.Linear(16, width, rngs=rngs)
        self.bn = nnx.BatchNorm(width, rngs=rngs)
        self.drop = nnx.Dropout(0.2, rngs=rngs)
        self.outer = nnx.Linear(width, 16, rngs=rngs)

    def __call__(self, x, factor=1.0, *, mode="sum", mask=None):
        y = self.outer(self.drop(jnp.tanh(self.bn(self.inner(x)))))
        if mask is not None:
            y = y * mask
        return (x + factor * y if mode == "sum" else y), {"mode": mode}


class Net(nnx.Module):
    def __init__(self, depth=3, width=8):
        self.blocks = nnx.List([Block(width, nnx.Rngs(i)) for i in range(depth)])

    def __call__(self, x):
        for block in self.blocks:
            x, _ = block(x, 0.5, mode="sum", mask=jnp.ones(16))
        return x


class Train(glr.Graph):
    def __init__(self, model, remat=None):
        super().__init__()
        self.model = model
        self.config.remat = remat
        self.add_optimizer(glr.optim.SGD(model, lr=0.1))

    def build(self, x):
        loss = (self.model(x) ** 2).mean()
        self.backward(loss)
        return loss


def states(remat):
    graph = Train(Net(), remat(Net) if isinstance(remat, type(states)) else remat)
    losses = [float(graph(X)) for _ in range(3)]
    return losses, graph


@pytest.fixture(scope="module")
def plain():
    return states(None)


@pytest.mark.parametrize(
    "remat", ["model.blocks.*", "blocks.0", Block, "**", [Block, "blocks.1"]], ids=str
)
def test_the_same_training(plain, remat):
    losses, graph = states(remat)
    np.testing.assert_allclose(losses, plain[0], rtol=1e-6)
    for key, value in plain[1].state_dict().items():
        np.testing.assert_allclose(
            np.asarray(graph.state_dict()[key], float),
            np.asarray(value, float),
            atol=1e-6,
            err_msg=key,
        )
    assert graph.compiles.count == 1


def test_a_module_itself_is_a_selector():
    model = Net()
    text = str(Train(model, model.blocks[1]).lower(X).as_text())
    plain = str(Train(Net()).lower(X).as_text())
    assert text.count("optimization_barrier") > plain.count("optimization_barrier")


def test_less_memory():
    plain, remat = (
        Train(Net(depth=8, width=512), selector)
        for selector in (None, "model.blocks.*")
    )
    before, after = (g.cost(X)["temporary_memory"] for g in (plain, remat))
    assert after < 0.6 * before
    assert remat.cost(X)["flops"] > plain.cost(X)["flops"]


def test_the_model_itself_is_left_as_it_is():
    model = Net()
    kind = type(model.blocks[0])
    Train(model, "**")(X)
    assert type(model.blocks[0]) is kind is Block


def test_a_selector_that_selects_nothing():
    with pytest.raises(
        ValueError, match=r"remat: 'blocks' selects no|nearest"
    ) as caught:
        Train(Net(), "layers.*")(X)
    assert "model.blocks.0" in str(caught.value)
