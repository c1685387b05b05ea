"""K steps in one run equal K calls."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from graphlr.optim import SGD, AdamW
from graphlr.optim.lr_scheduler import StepLR
from tests.models import Classify, Evaluate, Net, assert_close, linear, state_of

K = 4
RNG = np.random.default_rng(0)
X = RNG.normal(size=(K, 8, 4)).astype(np.float32)
Y = RNG.integers(0, 3, (K, 8))


class Weighted(Classify):
    """Gives its logits back too."""

    def build(self, x, y, weight=1.0):
        logits = self.model(x)
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()
        self.backward(loss * weight)
        return loss, {"logits": logits}


GROUPS = [{"params": "**.bias", "lr_scale": 2.0}, {"params": ...}]


def normed():
    return nnx.Sequential(nnx.BatchNorm(4, rngs=nnx.Rngs(0)), linear(4, 3))


@pytest.fixture(scope="module")
def compiled():
    """A graph compiled for a call and for K steps, and its state before any."""
    graph = Weighted(Net(), AdamW(GROUPS, lr=0.02), lr_sch=StepLR(2, 0.5))
    start = state_of(graph)
    graph(X[0], Y[0]), graph.scan(X, Y)
    return graph, start


@pytest.fixture
def graph(compiled):
    """It, as it was before its first step."""
    graph, start = compiled
    graph.load_state_dict(start)
    return graph


@pytest.fixture
def called(graph, compiled):
    """What K calls of it give, its state and its rates after them."""
    losses, outputs = zip(*map(graph, X, Y), strict=True)
    logits = np.stack([output["logits"] for output in outputs])
    after = np.asarray(losses), logits, state_of(graph), graph.lr
    graph.load_state_dict(compiled[1])
    return after


def test_scan_equals_calls(graph, called):
    losses, logits, state, lr = called
    loss, outputs = graph.scan(X, Y)
    np.testing.assert_allclose(loss, losses, rtol=1e-5)
    np.testing.assert_allclose(outputs["logits"], logits, rtol=1e-3, atol=1e-5)
    assert_close(state_of(graph), state, rtol=1e-4, atol=2e-6)
    assert graph.step == K
    assert graph.lr == lr
    assert graph.compiles.why[:2] == ["first call", "4 steps in one run"]


@pytest.mark.parametrize(
    "config",
    [
        {"ema_decay": 0.9, "skip_nonfinite": True, "group_stats": True},
        {"gradient_accumulation_steps": 2, "clip_grad_norm": 0.5},
        {"amp": "bfloat16"},
    ],
    ids=str,
)
def test_scan_equals_calls_with_options(config):
    calls, scan = (
        Weighted(normed(), optimizer, lr_sch=StepLR(2, 0.5), **config)
        for optimizer in (SGD(GROUPS, lr=0.02, momentum=0.9) for _ in range(2))
    )
    losses, logits = zip(*map(calls, X, Y), strict=True)
    logits = [output["logits"] for output in logits]
    loss, outputs = scan.scan(X, Y)
    np.testing.assert_allclose(loss, losses, rtol=1e-5)
    np.testing.assert_allclose(outputs["logits"], logits, rtol=1e-3, atol=1e-5)
    assert_close(state_of(scan), state_of(calls), rtol=1e-4, atol=2e-6)
    assert (scan.step, scan.compiles.count) == (K, 1)
    assert scan.lr == calls.lr
    if "group_stats" in config:
        ours, theirs = scan.group_stats, calls.group_stats
        assert ours["group1"] == pytest.approx(theirs["group1"], rel=1e-3)


def test_scans_and_calls_share_all_state(graph, called):
    *_, state, _ = called
    before = graph.compiles.count
    graph(X[0], Y[0])
    graph.scan(X[1:3], Y[1:3])
    graph(X[3], Y[3])
    assert_close(state_of(graph), state, rtol=1e-4, atol=2e-6)
    assert graph.compiles.why[before:] == ["2 steps in one run"]


def test_numbers_changed_between_scans_do_not_recompile(graph):
    before = graph.compiles.count
    graph.scan(X, Y)
    graph.optimizers[0].scale_lr(0.0)
    kernel = np.asarray(graph.model.classifier.kernel.get_value())
    graph.scan(X, Y)
    np.testing.assert_array_equal(graph.model.classifier.kernel.get_value(), kernel)
    assert graph.compiles.count == before


def test_every_way_to_give_batches():
    graph = Weighted(linear(4, 3), SGD("**", lr=0.1))
    start = state_of(graph)
    ways = [
        lambda: graph.scan(X, Y),
        lambda: graph.scan((X, Y)),
        lambda: graph.scan(list(zip(X, Y, strict=True))),
        lambda: graph.scan(x=X, y=Y),
        lambda: graph.scan(X, y=jnp.asarray(Y)),
        lambda: graph.scan(X, Y, 1.0),
    ]
    losses = []
    for give in ways:
        graph.load_state_dict(start)
        loss, _ = give()
        losses.append(loss)
        assert loss.shape == (K,)
        assert graph.step == K
    np.testing.assert_allclose(losses, [losses[0]] * len(ways), rtol=1e-6)


def test_an_eval_graph_scans_too():
    graph = Evaluate(normed())
    np.testing.assert_allclose(
        graph.scan(X), [graph(x) for x in X], rtol=1e-5, atol=1e-6
    )


def test_faults(graph):
    with pytest.raises(ValueError, match=r"a leading axis.*'x': 4, 'y': 3"):
        graph.scan(X, Y[:3])
    with pytest.raises(ValueError, match="missing"):
        graph.scan(1.0, 2)
    with pytest.raises(TypeError, match="missing 1 required positional argument"):
        graph.scan(X)


def test_convolutions_on_the_cpu_are_better_called():
    graph = Evaluate(nnx.Conv(3, 2, (1, 1), rngs=nnx.Rngs(0)))
    with pytest.warns(UserWarning, match=r"with convolutions \(model\)"):
        graph.scan(np.zeros((2, 1, 4, 4, 3), np.float32))
    graph.scan(np.zeros((2, 1, 4, 4, 3), np.float32))
