"""More than one of a thing: losses, optimizers, graphs, threads."""

import threading

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from graphlr.engine.optimizers import Optimizers
from graphlr.optim import SGD, Adam, AdamW
from graphlr.optim import lr_scheduler as lrs
from tests.models import (
    Train,
    Weights,
    assert_close,
    assert_same,
    linear,
    quick,
    state_of,
    values,
)

RNG = np.random.default_rng(0)
X, A, B = (RNG.normal(size=(8, n)).astype(np.float32) for n in (2, 1, 2))


class TwoHeads(nnx.Module):
    """A trunk and two heads."""

    def __init__(self):
        self.trunk, self.a, self.b = linear(2, 2), linear(2, 1), linear(2, 2)

    def __call__(self, x):
        x = nnx.tanh(self.trunk(x))
        return self.a(x), self.b(x)


class Tasks(Train):
    """A loss for each head."""

    def build(self, x, a, b):
        to_a, to_b = self.model(x)
        losses = ((to_a - a) ** 2).mean(), jnp.abs(to_b - b).mean()
        for loss in losses:
            self.backward(loss)
        return losses


class Counted(Weights):
    """Two numbers that start at 0, and a count of the calls."""

    def __init__(self):
        super().__init__(a=0.0, b=0.0)
        self.calls = nnx.Variable(jnp.zeros((), jnp.int32))


class Sum(Train):
    """A loss whose gradient is 1 for both weights, and a count of the calls."""

    def build(self, x):
        self.model.calls.set_value(self.model.calls.get_value() + 1)
        self.backward(self.model.a + self.model.b)
        return self.model.a - self.model.b + x


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

    @quick
    def step(params, slots):
        def losses(params):
            to_a, to_b = nnx.merge(graphdef, nnx.State(params))(X)
            return ((to_a - A) ** 2).mean(), jnp.abs(to_b - B).mean()

        by_a, by_b = jax.jacrev(losses)(params)
        both = jax.tree.map(jnp.add, by_a["trunk"], by_b["trunk"])
        grads = {"trunk": both, "a": by_a["a"], "b": by_b["b"]}
        new = {}
        for name, rule in rules.items():
            updates, slots[name] = rule.update(grads[name], slots[name], params[name])
            new[name] = optax.apply_updates(params[name], updates)
        return losses(params), new, slots

    for _ in range(4):
        losses, params, slots = step(params, slots)
        np.testing.assert_allclose(graph(X, A, B), losses, rtol=1e-5)
    for path, value in values(model).items():
        part, name = path.split(".")
        np.testing.assert_allclose(value, params[part][name], rtol=1e-4, atol=1e-6)
    assert (graph.step, graph.compiles.count) == (4, 1)


def test_optimizers_whose_groups_share_a_name():
    """Rates, numbers and slots stay apart, also in a saved state."""

    def make():
        body, bias = (
            SGD("kernel", lr=0.1, momentum=0.9),
            Adam([{"params": ...}], lr=0.01),
        )
        return Train(linear(), body, bias)

    graph, other = make(), make()
    graph(X)
    assert graph.lr == {"optimizer0.group0": 0.1, "optimizer1.group0": 0.01}
    for optimizer, lr in zip(graph.optimizers, (0.2, 0.02), strict=True):
        optimizer.param_groups[0]["lr"] = lr
    graph(X)
    other.load_state_dict(graph.state_dict())
    assert other.lr == {"optimizer0.group0": 0.2, "optimizer1.group0": 0.02}
    graph(X), other(X)
    assert_same(values(graph.model), values(other.model))
    assert graph.compiles.count == other.compiles.count == 1


def test_an_optimizer_that_no_loss_reaches_is_named_and_left_alone():
    class OnlyA(Tasks):
        def build(self, x, a):
            self.backward(((self.model(x)[0] - a) ** 2).mean())

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

    class Sizes(Train):
        def __init__(self, model, optimizer):
            super().__init__({"inside": model}, optimizer)

        def loss(self, x):
            return jnp.abs(self.model["inside"](x)).mean()

    model, optimizer = linear(), SGD("**", lr=0.1, momentum=0.9)
    graphs = Train(model, optimizer), Sizes(model, optimizer)
    now = values(model)
    momentum = {name: np.zeros_like(value) for name, value in now.items()}
    for _ in range(3):
        for graph, slope in zip(graphs, (lambda y: 2 * y, np.sign), strict=True):
            graph(X)
            slopes = slope(X @ now["kernel"] + now["bias"]) / len(X)
            grads = {"kernel": X.T @ slopes, "bias": slopes.sum(0)}
            for name, grad in grads.items():
                momentum[name] = 0.9 * momentum[name] + grad
                now[name] = now[name] - 0.1 * momentum[name]
    assert_close(values(model), now, rtol=1e-5, atol=1e-7)
    assert [graph.step for graph in graphs] == [6, 6]
    assert [graph.compiles.count for graph in graphs] == [1, 1]


# --- as one thing ---------------------------------------------------------------------


def test_a_name_that_looks_numbered_gets_a_number_too():
    groups = [{"params": "b.*", "name": "optimizer0.group0"}, {"params": "c.*"}]
    both = Optimizers([SGD("a.*", lr=0.5), SGD(groups, lr=0.25)])
    assert both.lr == {
        "group0": 0.5,
        "optimizer1.optimizer0.group0": 0.25,
        "group1": 0.25,
    }
    assert [group.optimizer for group in both.groups] == [both[0], both[1], both[1]]
    assert both[:1] == [both[0]]


def test_their_step_is_that_of_the_one_that_took_most():
    optimizers = Optimizers([SGD("a.*"), SGD("b.*")])
    optimizers[1].step = 3
    assert (optimizers.step, Optimizers().step) == (3, 0)


def test_a_schedule_is_given_once():
    optimizers, schedule = Optimizers(), lrs.StepLR(1)
    optimizer = SGD("a.*")
    optimizers.add(optimizer, schedule)
    assert optimizer.lr_sch is schedule
    with pytest.raises(ValueError, match="in the graph already: add it once"):
        optimizers.add(optimizer, None)
    with pytest.raises(ValueError, match="schedule from another graph, StepLR"):
        Optimizers().add(optimizer, lrs.StepLR(2))
    with pytest.raises(ValueError, match="two schedules, StepLR"):
        optimizers.add(SGD("b.*", lr_sch=schedule), lrs.StepLR(1))


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
    model, graphs, calls = Counted(), [], 40

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
    model = Counted()
    graph = Sum(model, SGD("**", lr=2.0**-6))

    def work():
        for _ in range(20):
            graph(0.0)

    assert not at_once(*[work] * 4)
    assert (graph.step, graph.compiles.count) == (80, 1)
    assert float(model.a.get_value()) == -80 * 2.0**-6


def test_graphs_of_different_models_in_threads():
    """As each alone."""
    graphs = [Train(linear(seed=seed), Adam("**", lr=0.01)) for seed in (0, 1)]
    starts = list(map(state_of, graphs))

    def work(graph):
        for _ in range(20):
            graph(X)

    assert not at_once(*(lambda graph=graph: work(graph) for graph in graphs))
    for graph, start in zip(graphs, starts, strict=True):
        together = values(graph.model)
        graph.load_state_dict(start)
        work(graph)
        assert_same(values(graph.model), together)
        assert graph.compiles.count == 1


def test_a_state_read_during_training_is_of_one_moment():
    model = Counted()
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

    model = Counted()
    broken = Broken(model, SGD("**", lr=1.0))
    graph = Sum(model, SGD("**", lr=2.0**-6))

    def work(graph):
        for _ in range(5):
            graph(0.0)

    failures = at_once(lambda: work(broken), lambda: work(graph))
    assert [type(error) for error in failures] == [KeyError]
    graph(0.0)  # and another thread than both
    assert float(model.a.get_value()) == -6 * 2.0**-6
