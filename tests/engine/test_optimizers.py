"""More than one of a thing: losses, optimizers, graphs, threads, names of a model."""

import threading

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import graphlr as glr
from graphlr.optim import SGD, Adam, AdamW
from graphlr.optim import lr_scheduler as lrs

RNG = np.random.default_rng(0)
X, A, B = (RNG.normal(size=(8, n)).astype(np.float32) for n in (3, 1, 2))


class TwoHeads(nnx.Module):
    """A trunk and two heads."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.trunk = nnx.Linear(3, 4, rngs=rngs)
        self.a, self.b = nnx.Linear(4, 1, rngs=rngs), nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, x):
        x = nnx.tanh(self.trunk(x))
        return self.a(x), self.b(x)


class Tasks(glr.Graph):
    """A loss for each head."""

    def __init__(self, model, *optimizers):
        super().__init__()
        self.model = model
        for optimizer in optimizers:
            self.add_optimizer(optimizer)

    def build(self, x, a, b):
        to_a, to_b = self.model(x)
        losses = ((to_a - a) ** 2).mean(), jnp.abs(to_b - b).mean()
        for loss in losses:
            self.backward(loss)
        return losses


class Sum(glr.Graph):
    """A loss whose gradient is 1 for both weights, and a count of the calls."""

    def __init__(self, model, *optimizers):
        super().__init__()
        self.model = model
        for optimizer in optimizers:
            self.add_optimizer(optimizer)

    def build(self, x):
        self.model.calls.set_value(self.model.calls.get_value() + 1)
        self.backward(self.model.a + self.model.b)
        return self.model.a - self.model.b + x


class Weights(nnx.Module):
    """Two numbers that start at 0."""

    def __init__(self):
        self.a, self.b = nnx.Param(jnp.zeros(())), nnx.Param(jnp.zeros(()))
        self.calls = nnx.Variable(jnp.zeros((), jnp.int32))


def plain_linear(seed=0):
    return nnx.Linear(3, 1, rngs=nnx.Rngs(seed))


def values(model):
    """Copies of every parameter, by path."""
    state = nnx.to_flat_state(nnx.state(model, nnx.Param))
    return {".".join(path): np.array(value.get_value()) for path, value in state}


# --- losses and optimizers ------------------------------------------------------------


def test_three_optimizers_and_two_losses_are_three_loops():
    """The trunk moves by both losses, each head by its own."""
    model = TwoHeads()
    graph = Tasks(
        model,
        SGD([{"params": model.trunk}], lr=0.1, momentum=0.9),
        Adam([{"params": model.a, "lr_sch": lrs.ExponentialLR(0.5)}], lr=0.01),
        AdamW("**.b.*", lr=0.02, weight_decay=0.1),
    )
    graphdef, params = nnx.split(TwoHeads(), nnx.Param)
    params = nnx.to_pure_dict(params)
    rules = {
        "trunk": optax.sgd(0.1, momentum=0.9),
        "a": optax.adam(optax.exponential_decay(0.01, 1, 0.5)),
        "b": optax.adamw(0.02, weight_decay=0.1),
    }
    slots = {name: rule.init(params[name]) for name, rule in rules.items()}

    @jax.jit
    def losses(params):
        to_a, to_b = nnx.merge(graphdef, nnx.State(params))(X)
        return ((to_a - A) ** 2).mean(), jnp.abs(to_b - B).mean()

    for _ in range(4):
        np.testing.assert_allclose(graph(X, A, B), losses(params), rtol=1e-5)
        by_a, by_b = jax.jacrev(losses)(params)
        grads = {
            "trunk": jax.tree.map(jnp.add, by_a["trunk"], by_b["trunk"]),
            "a": by_a["a"],
            "b": by_b["b"],
        }
        for name, rule in rules.items():
            updates, slots[name] = rule.update(grads[name], slots[name], params[name])
            params[name] = optax.apply_updates(params[name], updates)
    for path, value in values(model).items():
        part, name = path.split(".")
        np.testing.assert_allclose(value, params[part][name], rtol=1e-4, atol=1e-6)
    assert (graph.step, graph.compiles.count) == (4, 1)


def test_optimizers_whose_groups_share_a_name():
    """Rates, numbers and slots stay apart, also in a saved state."""

    def make():
        model = TwoHeads()
        body = SGD([{"params": model.trunk}], lr=0.1, momentum=0.9)
        heads = Adam([{"params": ...}], lr=0.01)
        return Tasks(model, body, heads), body, heads

    graph, body, heads = make()
    graph(X, A, B)
    assert graph.lr == {"optimizer0.group0": 0.1, "optimizer1.group0": 0.01}
    body.param_groups[0]["lr"], heads.param_groups[0]["lr"] = 0.2, 0.02
    graph(X, A, B)
    other, *_ = make()
    other.load_state_dict(graph.state_dict())
    assert other.lr == {"optimizer0.group0": 0.2, "optimizer1.group0": 0.02}
    for one in (graph, other):
        one(X, A, B)
    np.testing.assert_equal(values(graph.model), values(other.model))
    assert graph.compiles.count == other.compiles.count == 1


def test_an_optimizer_that_no_loss_reaches_is_named_and_left_alone():
    class OnlyA(Tasks):
        def build(self, x, a):
            loss = ((self.model(x)[0] - a) ** 2).mean()
            self.backward(loss)

    model = TwoHeads()
    idle = AdamW([{"params": model.b, "name": "idle"}], lr=0.1, weight_decay=0.5)
    graph = OnlyA(model, SGD([{"params": ...}], lr=0.1), idle)
    before = values(model)
    with pytest.warns(UserWarning, match=r"no loss depends on model\.b\.bias, model\."):
        graph(X, A)
    moved = {k for k, value in values(model).items() if (value != before[k]).any()}
    assert moved == {"trunk.kernel", "trunk.bias", "a.kernel", "a.bias"}


def test_one_optimizer_in_two_graphs_that_name_its_model_otherwise():
    """In turn, each with its own loss: the momentum is one, and nothing compiles."""

    class Squares(glr.Graph):
        def __init__(self, model, optimizer):
            super().__init__()
            self.net = model
            self.add_optimizer(optimizer)

        def build(self, x):
            self.backward((self.net(x) ** 2).mean())

    class Sizes(glr.Graph):
        def __init__(self, model, optimizer):
            super().__init__()
            self.module = {"inside": model}
            self.add_optimizer(optimizer)

        def build(self, x):
            self.backward(jnp.abs(self.module["inside"](x)).mean())

    model, optimizer = plain_linear(), SGD("**", lr=0.1, momentum=0.9)
    graphs = Squares(model, optimizer), Sizes(model, optimizer)
    graphdef, params = nnx.split(plain_linear())
    losses = (
        lambda params: (nnx.merge(graphdef, params)(X) ** 2).mean(),
        lambda params: jnp.abs(nnx.merge(graphdef, params)(X)).mean(),
    )
    rule = optax.sgd(0.1, momentum=0.9)
    slots = rule.init(params)
    for _ in range(3):
        for graph, loss in zip(graphs, losses, strict=True):
            graph(X)
            updates, slots = rule.update(jax.grad(loss)(params), slots)
            params = optax.apply_updates(params, updates)
    for name in ("kernel", "bias"):
        np.testing.assert_allclose(
            values(model)[name], params[name].get_value(), rtol=1e-5, atol=1e-7
        )
    assert [graph.step for graph in graphs] == [6, 6]
    assert [graph.compiles.count for graph in graphs] == [1, 1]


# --- threads --------------------------------------------------------------------------


def at_once(*works):
    """Run every function in a thread of its own, all started together."""
    start, failures = threading.Barrier(len(works)), []

    def run(work):
        try:
            start.wait()
            work()
        except Exception as error:
            failures.append(error)

    threads = [
        threading.Thread(target=run, args=(work,), daemon=True) for work in works
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    assert not any(thread.is_alive() for thread in threads), "deadlock"
    return failures


def test_graphs_made_and_called_in_threads_over_one_model():
    """No step of either is lost: powers of two, so the sums are exact."""
    model, graphs, calls = Weights(), [], 40

    def work(lr):
        graph = Sum(model, SGD("**", lr=lr))
        graphs.append(graph)
        for _ in range(calls):
            assert float(graph(3.0)) == 3  # both weights are of one moment

    rates = 2.0**-6, 2.0**-8
    assert not at_once(*(lambda lr=lr: work(lr) for lr in rates))
    assert float(model.a.get_value()) == float(model.b.get_value())
    assert float(model.a.get_value()) == -calls * sum(rates)
    assert int(model.calls.get_value()) == 2 * calls
    assert [(graph.step, graph.compiles.count) for graph in graphs] == [(calls, 1)] * 2


def test_one_graph_called_by_several_threads():
    """The first call compiles, also where several are the first."""
    model = Weights()
    graph = Sum(model, SGD("**", lr=2.0**-6))

    def work():
        for _ in range(20):
            graph(0.0)

    assert not at_once(*[work] * 4)
    assert (graph.step, graph.compiles.count) == (80, 1)
    assert float(model.a.get_value()) == -80 * 2.0**-6


def test_graphs_of_different_models_in_threads():
    """As each alone."""

    def make(seed):
        model = plain_linear(seed)
        return Near(model, np.zeros((3, 1), np.float32), Adam("**", lr=0.01))

    def work(graph):
        for _ in range(20):
            graph(X)

    together, alone = ([make(seed) for seed in (0, 1)] for _ in range(2))
    assert not at_once(*(lambda graph=graph: work(graph) for graph in together))
    for graph in alone:
        work(graph)
    for a, b in zip(together, alone, strict=True):
        np.testing.assert_equal(values(a.model), values(b.model))


def test_a_state_read_during_training_is_of_one_moment():
    model = Weights()
    graph = Sum(model, SGD("**", lr=2.0**-6, momentum=0.5))
    done = threading.Event()

    def train():
        try:
            for _ in range(100):
                graph(0.0)
        finally:
            done.set()

    seen = []

    def read():
        while not done.is_set():
            seen.append(graph.state_dict())
            assert set(graph.lr) == {"group0"}

    assert not at_once(train, read)
    assert seen
    for state in [*seen, graph.state_dict()]:
        assert state["model.a"] == state["model.b"]
        assert int(state["model.calls"]) == int(state["step"])


def test_an_error_in_one_thread_lets_the_other_go_on():
    class Broken(Sum):
        def build(self, x):
            super().build(x)
            raise KeyError("user's own")

    model = Weights()
    broken = Broken(model, SGD("**", lr=1.0))
    graph = Sum(model, SGD("**", lr=2.0**-6))

    def work(graph):
        for _ in range(5):
            graph(0.0)

    failures = at_once(lambda: work(broken), lambda: work(graph))
    assert [type(error) for error in failures] == [KeyError]
    graph(0.0)  # and another thread than both
    assert float(model.a.get_value()) == -6 * 2.0**-6


# --- names of a model, and of arrays --------------------------------------------------


class Near(glr.Graph):
    """Trains a layer not to go far from `at`."""

    def __init__(self, model, at, *optimizers):
        super().__init__()
        self.model, self.at = model, at
        for optimizer in optimizers:
            self.add_optimizer(optimizer)

    def build(self, x):
        far = ((self.model.kernel - self.at) ** 2).sum()
        self.backward(self.model(x).sum() + far)
        return far


def test_an_array_changed_in_place_stays_what_it_was_at_the_first_call():
    table = np.ones((3, 1), np.float32)

    class Table(Near):
        def build(self, x):
            return super().build(x), self.at + 0, table + 0

    graph = Table(plain_linear(), table.copy(), SGD("**", lr=0.0))
    first = jax.device_get(graph(X))
    table[:], graph.at[:] = 5.0, 7.0
    for before, after in zip(first, graph(X), strict=True):
        np.testing.assert_array_equal(after, before)
    assert first[1][0] == first[2][0] == 1
    assert graph.compiles.count == 1


def test_where_a_model_started_may_be_captured():
    """The weights move on, and the array that they were stays a constant."""
    model = plain_linear()
    graph = Near(model, model.kernel.get_value(), SGD("**", lr=0.05))
    start = np.array(graph.at)
    far = [float(graph(X)) for _ in range(3)]
    assert far[0] == 0
    assert far[1] == pytest.approx(((0.05 * X.sum(0)) ** 2).sum(), rel=1e-4)
    assert far[2] > far[1]
    np.testing.assert_array_equal(graph.at, start)
    assert graph.compiles.count == 1


def by_another_name(optimizer):
    """A graph over a model with a norm whose `build` calls it as a global would be."""
    model = nnx.Sequential(plain_linear(), nnx.BatchNorm(1, rngs=nnx.Rngs(0)))
    head = nnx.Linear(1, 1, rngs=nnx.Rngs(1))

    class Global(glr.Graph):
        def __init__(self):
            super().__init__()
            self.model, self.head = model, head
            if optimizer:
                self.add_optimizer(optimizer)

        def build(self, x):
            loss = self.head(model.layers[0](x)).mean()
            if optimizer:
                self.backward(loss)
            return loss

    return Global()


@pytest.mark.parametrize("run", [glr.Graph.__call__, glr.Graph.compile])
@pytest.mark.parametrize(
    "optimizer",
    [
        SGD([{"params": "model.**", "frozen": True}, {"params": "head.*"}]),
        None,
    ],
    ids=["frozen", "eval"],
)
def test_a_model_by_another_name_is_an_error_where_it_is_not_trained_too(
    optimizer, run
):
    with pytest.raises(
        ValueError, match=r"uses model\.layers\.0\.bias, model\.layers\.0\.kernel as a "
    ):
        run(by_another_name(optimizer), X)
