"""A batch with NaN or infinity leaves everything as it was, counted and named."""

import collections
import logging

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import graphlr as glr

RNG = np.random.default_rng(0)
X = RNG.normal(size=(8, 5)).astype(np.float32)
Y = RNG.integers(0, 3, 8)


class Net(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.bn = nnx.BatchNorm(5, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.head = nnx.Linear(5, 3, rngs=rngs)
        self.calls = nnx.Variable(jnp.zeros((), jnp.int32))

    def __call__(self, x):
        self.calls.set_value(self.calls.get_value() + 1)
        return self.head(self.drop(self.bn(x)))


class Train(glr.Graph):
    def __init__(self, limit=True, **config):
        super().__init__()
        self.model = Net()
        groups = [
            {"params": "bn.**", "name": "norm"},
            {"params": "head.**", "name": "head"},
        ]
        self.add_optimizer(glr.optim.Adam(groups, lr=0.1), lr_sch=[0.1, 0.2, 0.3])
        self.config.skip_nonfinite = limit
        self.config.ema_decay = 0.9
        for name, value in config.items():
            setattr(self.config, name, value)

    def build(self, x, y):
        logits = self.model(x)
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()
        self.backward(loss)
        return loss


def bad(value=np.nan):
    x = X.copy()
    x[3, 2] = value
    return x


def changed(before, after):
    return {k for k in before if not np.array_equal(before[k], after[k])}


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("parts", [1, 2])
def test_the_whole_state_stays_bit_for_bit(value, parts):
    graph = Train(gradient_accumulation_steps=parts)
    graph(X, Y)
    before = graph.state_dict()
    loss = graph(bad(value), Y)
    assert not np.isfinite(loss).all()
    assert changed(before, graph.state_dict()) == {"skipped.total", "skipped.in_a_row"}
    assert (graph.skipped, graph.step) == (1, 1)
    assert graph.lr == {"norm": 0.2, "head": 0.2}


def test_training_goes_on_as_if_the_batch_had_not_been():
    skipping, clean = Train(), Train()
    for x in (X, bad(), 2 * X, bad(np.inf), X):
        skipping(x, Y)
    for x in (X, 2 * X, X):
        clean(x, Y)
    uncounted = {"skipped.total", "skipped.in_a_row"}
    assert changed(skipping.state_dict(), clean.state_dict()) <= uncounted
    assert (skipping.skipped, skipping.compiles.count) == (2, 1)


def test_statistics_alone_may_be_bad():
    """The loss and all gradients are finite, and the running mean isn't."""

    class Peek(Train):
        def build(self, x, y):
            self.model.bn(jnp.where(x > 1e30, jnp.inf, x))
            loss = (self.model.head.kernel.get_value() ** 2).sum()
            self.backward(loss)
            return loss

    graph = Peek()
    with pytest.warns(UserWarning, match="no loss depends on"):
        graph(X, Y)
    before = graph.state_dict()
    graph(bad(1e31), Y)
    assert changed(before, graph.state_dict()) == {"skipped.total", "skipped.in_a_row"}


def test_too_many_in_a_row_stop_with_a_diagnosis():
    graph = Train(limit=3)
    graph(X, Y)
    for _ in range(2):
        graph(bad(), Y)
    graph(X, Y)  # not in a row
    before = graph.state_dict()
    # Reading `skipped` waits for the step: only one call in three does by itself.
    steps = ((graph(bad(), Y), graph.skipped) for _ in range(8))
    with pytest.raises(FloatingPointError) as caught:
        collections.deque(steps, 0)
    message = str(caught.value)
    assert "3 batches in a row" in message
    assert (
        "gradient of model.bn.bias (group 'norm') isn't finite, and 3 more" in message
    )
    assert "graph.eager" in message
    assert changed(before, graph.state_dict()) <= {"skipped.total"}
    graph(X, Y)  # after a remedy it goes on
    assert graph.step == 3


def test_skips_are_named_in_the_log(caplog):
    graph = Train()
    graph(X, Y)
    with caplog.at_level(logging.WARNING, "graphlr"):
        graph(bad(), Y)
        assert graph.skipped == 1
        graph(X, Y)
    assert (
        "Train: 1 skipped; the gradient of model.bn.bias (group 'norm')" in caplog.text
    )


def test_without_the_option_the_nan_goes_in():
    graph = Train(limit=False)
    graph(bad(), Y)
    assert np.isnan(graph.model.head.kernel.get_value()).all()
    assert graph.skipped == 0
