"""K steps in one run equal K calls."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import graphlr as glr
from graphlr.optim.lr_scheduler import StepLR

K = 4
RNG = np.random.default_rng(0)
X = RNG.normal(size=(K, 8, 5)).astype(np.float32)
Y = RNG.integers(0, 3, (K, 8))


class Net(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.body = nnx.Linear(5, 6, rngs=rngs)
        self.bn = nnx.BatchNorm(6, rngs=rngs)
        self.drop = nnx.Dropout(0.3, rngs=rngs)
        self.head = nnx.Linear(6, 3, rngs=rngs)

    def __call__(self, x):
        return self.head(self.drop(nnx.relu(self.bn(self.body(x)))))


class Train(glr.Graph):
    def __init__(self, **config):
        super().__init__()
        self.model = Net()
        groups = [{"params": "**.bias", "lr_scale": 2.0}, {"params": ...}]
        self.optimizers = [glr.optim.AdamW(groups, lr=0.02)]
        self.add_optimizer(self.optimizers[0], lr_sch=StepLR(2, 0.5))
        for name, value in config.items():
            setattr(self.config, name, value)

    def build(self, x, y, weight=1.0):
        logits = self.model(x)
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()
        self.backward(loss * weight)
        return loss, {"logits": logits}


def same(a, b, **limits):
    for key, value in a.state_dict().items():
        np.testing.assert_allclose(
            np.asarray(b.state_dict()[key], float),
            np.asarray(value, float),
            err_msg=key,
            **limits,
        )


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"ema_decay": 0.9, "skip_nonfinite": True, "group_stats": True},
        {"gradient_accumulation_steps": 2, "clip_grad_norm": 0.5},
        {"amp": "bfloat16"},
    ],
    ids=str,
)
def test_scan_equals_calls(config):
    calls, scan = Train(**config), Train(**config)
    losses, logits = zip(*map(calls, X, Y), strict=True)
    logits = [output["logits"] for output in logits]
    loss, outputs = scan.scan(X, Y)
    np.testing.assert_allclose(loss, losses, rtol=1e-5)
    np.testing.assert_allclose(outputs["logits"], logits, rtol=1e-3, atol=1e-5)
    same(calls, scan, rtol=1e-4, atol=2e-6)
    assert (scan.step, scan.compiles.count) == (K, 1)
    assert scan.lr == calls.lr
    if "group_stats" in config:
        ours, theirs = scan.group_stats, calls.group_stats
        assert ours["group1"] == pytest.approx(theirs["group1"], rel=1e-3)


def test_scans_and_calls_share_all_state():
    mixed, calls = Train(), Train()
    mixed(X[0], Y[0])
    mixed.scan(X[1:3], Y[1:3])
    mixed(X[3], Y[3])
    for x, y in zip(X, Y, strict=True):
        calls(x, y)
    same(calls, mixed, rtol=1e-4, atol=2e-6)
    assert mixed.compiles.why == ["first call", "2 steps in one run"]


@pytest.mark.parametrize(
    "give",
    [
        lambda graph: graph.scan(X, Y),
        lambda graph: graph.scan((X, Y)),
        lambda graph: graph.scan(list(zip(X, Y, strict=True))),
        lambda graph: graph.scan(x=X, y=Y),
        lambda graph: graph.scan(X, y=jnp.asarray(Y)),
        lambda graph: graph.scan(X, Y, 1.0),
    ],
)
def test_every_way_to_give_batches(give):
    graph = Train()
    loss, _ = give(graph)
    assert loss.shape == (K,)
    assert graph.step == K


def test_an_eval_graph_scans_too():
    class Evaluate(glr.Graph):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def build(self, x):
            return self.model(x)

    model = Net()
    out = Evaluate(model).scan(X)
    single = Evaluate(model)
    np.testing.assert_allclose(out, [single(x) for x in X], rtol=1e-5, atol=1e-6)


def test_numbers_changed_between_scans_do_not_recompile():
    graph = Train()
    graph.scan(X, Y)
    graph.optimizers[0].scale_lr(0.0)
    before = np.asarray(graph.model.head.kernel.get_value())
    graph.scan(X, Y)
    np.testing.assert_array_equal(graph.model.head.kernel.get_value(), before)
    assert graph.compiles.count == 1


def test_faults():
    graph = Train()
    with pytest.raises(ValueError, match=r"a leading axis.*'x': 4, 'y': 3"):
        graph.scan(X, Y[:3])
    with pytest.raises(ValueError, match="missing"):
        graph.scan(1.0, 2)
    with pytest.raises(TypeError, match="missing 1 required positional argument"):
        graph.scan(X)


def test_convolutions_on_the_cpu_are_better_called():
    class Conv(glr.Graph):
        def __init__(self):
            super().__init__()
            self.model = nnx.Conv(3, 2, (3, 3), rngs=nnx.Rngs(0))

        def build(self, x):
            return self.model(x)

    graph = Conv()
    with pytest.warns(UserWarning, match=r"with convolutions \(model\)"):
        graph.scan(np.zeros((2, 1, 4, 4, 3), np.float32))
    graph.scan(np.zeros((2, 1, 4, 4, 3), np.float32))
