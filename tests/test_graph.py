"""Graph: what a user writes, calls and reads, and everything that can go wrong."""

import dataclasses
import os
import signal
import sys
import threading
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import graphlr as glr
from graphlr.optim import SGD, Adam, AdamW, lr_scheduler
from tests.models import (
    IMAGE,
    LABEL,
    Classify,
    Evaluate,
    Net,
    Regress,
    Train,
    X,
    Y,
    assert_close,
    assert_same,
    chain,
    linear,
    state_of,
    values,
)


@pytest.fixture(scope="module")
def compiled():
    """A graph that is compiled once for many tests, and its state before any step."""
    model = Net()
    groups = [
        {"params": model.features, "name": "features", "lr_scale": 0.5},
        {"params": ..., "name": "rest"},
    ]
    graph = Classify(model, SGD(groups, lr=0.1, momentum=0.9))
    graph.compile(IMAGE, LABEL)
    return graph, state_of(graph)


@pytest.fixture
def graph(compiled):
    """That graph as it was at first; no test makes it compile anything more."""
    graph, start = compiled
    graph.load_state_dict(start)
    graph.model.train()
    yield graph
    assert graph.compiles.count == 1


@pytest.fixture(scope="module")
def evaluate(compiled):
    """A forward pass of that graph's model, compiled once too."""
    graph = Evaluate(compiled[0].model)
    yield graph
    assert graph.compiles.count == 1


@pytest.fixture(scope="module")
def two_steps(compiled):
    """The losses of that graph's first two steps, and its parameters after them."""
    graph, start = compiled
    graph.load_state_dict(start)
    losses = [float(graph(IMAGE, LABEL)) for _ in range(2)]
    return losses, values(graph.model)


def slots(graph):
    return [key for key in graph.state_dict() if key.startswith("slots.")]


# --- training and evaluation ----------------------------------------------------------


def test_one_step_is_the_closed_form():
    """w -= lr(0) * lr_scale * gradient, of exactly the group's parameters."""
    model = linear()
    groups = [{"params": "kernel", "lr_scale": 0.5}, {"params": "bias"}]
    graph = Regress(model, SGD(groups, lr=0.1))
    before = values(model)
    error = X @ before["kernel"] + before["bias"] - Y
    by_kernel, by_bias = 2 * X.T @ error / len(X), 2 * error.mean(0)
    np.testing.assert_allclose(graph(X, Y), (error**2).mean(), rtol=1e-6)
    after = {
        "kernel": before["kernel"] - 0.05 * by_kernel,
        "bias": before["bias"] - 0.1 * by_bias,
    }
    assert_close(values(model), after, rtol=1e-6)


def test_it_learns_and_compiles_once(graph):
    losses = [float(graph(IMAGE, LABEL)) for _ in range(60)]
    assert losses[-1] < 0.7 * losses[0]
    assert graph.compiles.count == 1
    assert graph.step == 60


def test_train_and_eval_graphs_share_the_model(graph, evaluate):
    before = np.asarray(evaluate(IMAGE))
    graph(IMAGE, LABEL)
    after = np.asarray(evaluate(IMAGE))
    assert not np.array_equal(before, after)
    graph.model.eval()  # plain Python sees the same arrays
    np.testing.assert_allclose(graph.model(IMAGE), after, rtol=1e-5, atol=1e-6)
    assert evaluate.compiles.count == 1


def test_modes_need_no_reminder(graph, evaluate):
    """Training drops out and moves statistics whatever the modules' own mode is."""
    graph.model.eval()
    mean = np.array(graph.model.norm.mean.get_value())
    count = int(graph.model.dropout.rngs.count.get_value())
    graph(IMAGE, LABEL)
    assert not np.array_equal(mean, graph.model.norm.mean.get_value())
    assert int(graph.model.dropout.rngs.count.get_value()) == count + 1
    graph.model.train()
    before = values(graph.model)
    np.testing.assert_array_equal(evaluate(IMAGE), evaluate(IMAGE))
    assert_same(before, values(graph.model))


def test_training_overrides_the_mode():
    class Calibrate(glr.Graph):
        def __init__(self, model):
            super().__init__(training=True)
            self.model = model

        def build(self, image):
            return self.model(image)

    model = nnx.BatchNorm(4, rngs=nnx.Rngs(0))
    mean = np.array(model.mean.get_value())
    Calibrate(model)(IMAGE)  # no optimizer, and the statistics move
    assert not np.array_equal(mean, model.mean.get_value())


def test_a_value_written_by_hand_is_used_by_the_next_step(graph, evaluate):
    graph(IMAGE, LABEL)
    classifier = graph.model.classifier
    classifier.kernel.set_value(jnp.zeros_like(classifier.kernel.get_value()))
    expected = np.broadcast_to(classifier.bias.get_value(), (16, 3))
    np.testing.assert_allclose(evaluate(IMAGE), expected, rtol=1e-6)


def test_arrays_kept_from_before_a_step_stay_readable(graph):
    """The step donates its buffers, but not under somebody who still holds them."""
    kept = graph.model.features.kernel.get_value()
    copy = np.array(kept)
    view = np.asarray(graph.model.classifier.kernel.get_value())
    view_copy = view.copy()
    for _ in range(3):
        graph(IMAGE, LABEL)
    np.testing.assert_array_equal(kept, copy)
    np.testing.assert_array_equal(view, view_copy)


def test_one_array_in_two_variables_is_no_trouble():
    class Twins(nnx.Module):
        def __init__(self):
            array = jnp.ones((2, 1))
            self.a, self.b = nnx.Param(array), nnx.Param(array)

        def __call__(self, x):
            return x @ self.a + x @ self.b

    model = Twins()
    graph = Regress(model, SGD("**", lr=0.1))
    graph(X, Y)
    graph(X, Y)
    np.testing.assert_array_equal(model.a.get_value(), model.b.get_value())


def test_eager_gives_the_same_step():
    def make():
        norm, rngs = nnx.BatchNorm(4, rngs=nnx.Rngs(0)), nnx.Rngs(1)
        model = nnx.Sequential(norm, nnx.Dropout(0.5, rngs=rngs), linear(4, 3))
        groups = [{"params": norm, "lr_scale": 0.5}, {"params": ...}]
        return Train(model, SGD(groups, lr=0.1, momentum=0.9))

    compiled, eager = make(), make()
    for _ in range(3):
        np.testing.assert_allclose(compiled(IMAGE), eager.eager(IMAGE), rtol=1e-5)
    assert_close(values(eager.model), values(compiled.model), rtol=1e-4, atol=1e-6)
    assert eager.compiles.count == 0
    assert eager.step == 3


# --- arguments and results ------------------------------------------------------------


class Pair(NamedTuple):
    first: object
    second: object


@dataclasses.dataclass
class Batch:
    image: object
    name: str = "batch"


class Echo(glr.Graph):
    def __init__(self):
        super().__init__()
        self.scale = 2.0

    def build(self, *args, **kwargs):
        return args, kwargs


def test_any_pytree_in_and_out():
    echo = Echo()
    batch = Batch(np.ones(2, np.float32))
    (pair, nested, nothing, text, flag, number), named = echo(
        Pair(jnp.ones(2), np.arange(3)),
        [{"x": np.float32(1.5)}, (2,)],
        None,
        "text",
        True,
        3.5,
        batch=batch,
        function=jnp.tanh,
    )
    assert isinstance(pair, Pair)
    assert isinstance(pair.first, jax.Array)
    assert pair.second.tolist() == [0, 1, 2]
    assert float(nested[0]["x"]) == 1.5
    assert int(nested[1][0]) == 2
    assert nothing is None
    assert (text, flag, float(number)) == ("text", True, 3.5)
    assert named["batch"].image.tolist() == [1.0, 1.0]
    assert named["batch"].name == "batch"
    assert named["function"] is jnp.tanh


def test_build_may_return_nothing():
    class Silent(Train):
        def build(self, x):
            super().build(x)

    graph = Silent(linear(), SGD("**", lr=0.1))
    assert graph(X) is None
    assert graph.step == 1


def test_numpy_and_jax_arrays_are_one_signature(graph):
    graph(IMAGE, LABEL)
    graph(jnp.asarray(IMAGE), jnp.asarray(LABEL))
    graph(IMAGE.astype(np.float64), LABEL.astype(np.int64))  # JAX has them as 32 bits
    graph(np.asfortranarray(IMAGE), LABEL[::1])
    assert graph.compiles.count == 1


def test_modules_inside_containers():
    class Many(glr.Graph):
        def __init__(self):
            super().__init__()
            self.layers = [linear(4, 8), linear(8, 3)]
            self.extra = {"temperature": nnx.Param(jnp.ones(())), "word": "x"}
            self.rngs = nnx.Rngs(7)
            groups = [{"params": "layers.0.*"}, {"params": ...}]
            self.add_optimizer(SGD(groups, lr=0.1))

        def build(self, x):
            for layer in self.layers:
                x = layer(x)
            noise = jax.random.bits(self.rngs.noise())
            self.backward(((x * self.extra["temperature"]) ** 2).mean())
            return noise

    graph = Many()
    first, second = graph(IMAGE), graph(IMAGE)
    assert int(first) != int(second)  # the stream moves on
    assert float(graph.extra["temperature"].get_value()) != 1.0
    assert graph.compiles.count == 1


# --- numbers that are live ------------------------------------------------------------


def test_editing_numbers_never_recompiles_and_acts_at_once():
    model, optimizer = linear(), AdamW("**", lr=0.1)
    graph = Regress(model, optimizer)
    graph(X, Y)
    group = optimizer.param_groups[0]
    for key, value in {
        "lr": 0.0,
        "lr_scale": 0.0,
        "weight_decay": 0.5,
        "betas": (0.5, 0.6),
        "eps": 1e-3,
    }.items():
        group[key] = value
        graph(X, Y)
    assert graph.compiles.count == 1
    before = values(model)
    graph(X, Y)  # lr is 0
    assert_same(before, values(model))
    group.update({"lr": 0.1, "lr_scale": 1.0})
    graph(X, Y)
    assert not np.array_equal(before["kernel"], model.kernel.get_value())
    assert graph.compiles.count == 1


def test_edited_numbers_equal_numbers_given_at_the_start():
    edited = SGD("**", lr=1.0, momentum=0.1, weight_decay=0.9)
    a = Regress(linear(), edited)
    a.compile(X, Y)
    edited.param_groups[0].update({"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01})
    b = Regress(linear(), SGD("**", lr=0.1, momentum=0.9, weight_decay=0.01))
    for _ in range(3):
        a(X, Y), b(X, Y)
    assert_same(values(a.model), values(b.model))


def test_momentum_from_zero_traces_once_more():
    optimizer = SGD("**", lr=0.1)
    graph = Regress(linear(), optimizer)
    graph(X, Y)
    assert not any(key.endswith("momentum") for key in slots(graph))
    optimizer.param_groups[0]["momentum"] = 0.9
    graph(X, Y)
    optimizer.param_groups[0]["momentum"] = 0.5
    graph(X, Y)
    assert graph.compiles.count == 2
    assert any(key.endswith("momentum") for key in slots(graph))


def test_lr_is_schedule_times_scale():
    model = chain(4, 8, 3)
    groups = [
        {"params": model.layers[0], "name": "features", "lr_scale": 0.5},
        {"params": model.layers[1].kernel, "name": "head", "lr": 1.0},
        {"params": ..., "name": "rest", "lr_sch": lr_scheduler.ConstantLR(0.5, 1)},
    ]
    graph = Train(model, SGD(groups, lr=0.1), lr_sch=lr_scheduler.StepLR(2, gamma=0.5))
    assert graph.lr == {"features": 0.05, "head": 1.0, "rest": 0.05}  # before any step
    for _ in range(2):
        graph(IMAGE)
    assert graph.lr == pytest.approx({"features": 0.025, "head": 0.5, "rest": 0.1})


def test_optax_schedules_and_arrays_are_accepted():
    graph = Regress(linear(), SGD("**", lr=optax.linear_schedule(0.4, 0.0, 4)))
    graph(X, Y)
    assert graph.lr["group0"] == pytest.approx(0.3)
    graph = Regress(linear(), SGD("**"), lr_sch=np.array([0.3, 0.2]))
    assert graph.lr["group0"] == 0.3
    for _ in range(3):
        graph(X, Y)
    assert graph.lr["group0"] == 0.2


def test_scale_lr(graph):
    (optimizer,) = graph.optimizers
    optimizer.param_groups["features"].update({"lr": 0.5, "lr_scale": 1.0})
    graph(IMAGE, LABEL)
    optimizer.scale_lr(0.1)
    assert graph.lr == pytest.approx({"features": 0.05, "rest": 0.01})
    graph(IMAGE, LABEL)
    assert graph.compiles.count == 1


# --- freezing, adding, several optimizers ---------------------------------------------


def test_frozen_groups_stay_and_their_statistics_too():
    norm = nnx.BatchNorm(8, rngs=nnx.Rngs(0))
    body = nnx.Dict(linear=linear(4, 8), norm=norm)

    class Model(nnx.Module):
        def __init__(self):
            self.body, self.head = body, linear(8, 3)

        def __call__(self, x):
            return self.head(nnx.relu(self.body.norm(self.body.linear(x))))

    model = Model()
    groups = [
        {"params": [body.linear, norm], "name": "body", "frozen": True},
        {"params": ..., "name": "head"},
    ]
    optimizer = AdamW(groups, lr=0.1, weight_decay=0.5)
    graph = Train(model, optimizer)
    before = values(model)
    graph(IMAGE)
    after = values(model)
    for key in before:
        moved = not np.array_equal(before[key], after[key])
        assert moved == key.startswith("head"), key
    assert not any("body" in key for key in slots(graph))

    optimizer.param_groups["body"]["frozen"] = False
    graph(IMAGE)
    assert graph.compiles.count == 2
    assert "structure of a group" in graph.compiles.why[1]
    state = graph.state_dict()
    assert int(state["slots.model.body.linear.kernel.steps"]) == 1  # its own count
    assert int(state["slots.model.head.kernel.steps"]) == 2
    assert not np.array_equal(after["body.norm.mean"], norm.mean.get_value())


def test_add_param_group_in_mid_training():
    model = chain(4, 8, 3)
    groups = [
        {"params": "layers.1.*"},
        {"params": "layers.0.*", "frozen": True, "name": "frozen"},
    ]
    optimizer = Adam(groups, lr=0.1)
    graph = Train(model, optimizer)
    graph(IMAGE)
    optimizer.param_groups["frozen"]["params"] = "layers.0.bias"
    optimizer.add_param_group({"params": "layers.0.kernel", "name": "new", "lr": 0.5})
    before = values(model)
    graph(IMAGE)
    assert graph.lr["new"] == 0.5
    moved = {key for key, x in values(model).items() if (x != before[key]).any()}
    assert moved == {"layers.0.kernel", "layers.1.kernel", "layers.1.bias"}
    assert graph.compiles.count == 2


def test_several_optimizers_each_with_its_schedule():
    graph = Train(chain(4, 8, 3))
    graph.add_optimizer(
        SGD([{"params": "layers.0.*", "name": "body"}], lr=0.1),
        lr_sch=lr_scheduler.ExponentialLR(0.5),
    )
    graph.add_optimizer(Adam([{"params": ..., "name": "head"}], lr=0.01))
    graph(IMAGE)
    assert graph.lr == pytest.approx({"body": 0.05, "head": 0.01})
    keys = slots(graph)
    assert not any(".layers.0." in key for key in keys)
    assert any(".layers.1." in key for key in keys)


def test_optimizers_that_overlap():
    graph = Regress(linear(), SGD("**"), Adam("bias"))
    with pytest.raises(ValueError, match="more than one parameter group"):
        graph(X, Y)


def test_another_optimizer_class_for_one_group():
    groups = [
        {"params": "bias", "optimizer": AdamW, "betas": (0.5, 0.9)},
        {"params": ...},
    ]
    optimizer = SGD(groups, lr=0.1, momentum=0.9)
    assert optimizer.param_groups[0]["weight_decay"] == 0.01  # AdamW's own default
    graph = Regress(linear(), optimizer)
    graph(X, Y)
    state = graph.state_dict()
    assert "slots.model.bias.exp_avg" in state
    assert "slots.model.kernel.momentum" in state
    with pytest.raises(TypeError, match=r"class of glr\.optim"):
        SGD([{"params": ..., "optimizer": "adam"}])


def test_any_optax_transformation_is_a_rule():
    model = linear()
    optimizer = glr.optim.Optimizer("**", rule=lambda: optax.scale_by_lion(), lr=0.01)
    graph = Regress(model, optimizer)
    kernel = np.array(model.kernel.get_value())
    graph(X, Y)
    moved = np.abs(kernel - model.kernel.get_value())
    np.testing.assert_allclose(moved, 0.01, rtol=1e-4)  # lion moves by its sign
    assert int(graph.state_dict()["slots.model.kernel.count"]) == 1


def test_a_rule_may_take_the_learning_rate():
    def rule(lr):
        return optax.sgd(lr)

    own = Regress(linear(), glr.optim.Optimizer("**", rule=rule, lr=0.1))
    ours = Regress(linear(), SGD("**", lr=0.1))
    own(X, Y), ours(X, Y)
    assert_same(values(own.model), values(ours.model))


def test_global_clip_is_over_all_groups():
    def moved(clip):
        groups = [{"params": "kernel", "lr_scale": 0.5}, {"params": "bias"}]
        graph = Regress(linear(), SGD(groups, lr=1.0), clip_grad_norm=clip)
        before = values(graph.model)
        graph(X, Y)
        after = values(graph.model)
        change = {key: before[key] - after[key] for key in before}
        return np.hypot(np.linalg.norm(change["kernel"] / 0.5), change["bias"].item())

    assert moved(None) > 0.05
    assert moved(0.01) == pytest.approx(0.01, rel=1e-3)


# --- errors, and that nothing is lost -------------------------------------------------


@pytest.mark.parametrize(
    ("args", "error", "match"),
    [
        ((IMAGE[0], LABEL), ValueError, None),  # wrong rank
        ((IMAGE[:, :3], LABEL), TypeError, "contracting dimensions"),
        ((IMAGE, LABEL.astype(np.float32)), TypeError, "integer"),
        ((IMAGE, LABEL + 3), ValueError, r"label\[0\] is 5, but it indexes 3"),
        ((IMAGE, LABEL - 9), ValueError, "indexes 3 entries"),
        (("an image", LABEL), TypeError, "argument image is the str 'an image'"),
        ((IMAGE, None), TypeError, None),
        ((IMAGE.astype(object), LABEL), TypeError, "argument image is an array of Py"),
        ((IMAGE, object()), TypeError, "argument label is a object"),
        ((IMAGE,), TypeError, "missing 1 required positional argument"),
        ((IMAGE, LABEL, 1), TypeError, "takes 3 positional arguments"),
    ],
)
def test_bad_input_costs_nothing(graph, two_steps, args, error, match):
    losses, after = two_steps
    assert float(graph(IMAGE, LABEL)) == losses[0]
    with pytest.raises(error, match=match):
        graph(*args)
    assert float(graph(IMAGE, LABEL)) == losses[1]
    assert graph.step == 2
    assert graph.compiles.count == 1
    assert_same(values(graph.model), after)


def test_trace_errors_say_with_what(graph):
    with pytest.raises(ValueError) as error:
        graph(IMAGE[0], LABEL)
    notes = "".join(error.value.__notes__)
    assert "Classify.build with image: float32[4], label: int32[16]" in notes


def test_backward_outside_build(graph):
    with pytest.raises(RuntimeError, match="inside build"):
        graph.backward(1.0)


def test_build_is_required():
    class Empty(glr.Graph):
        pass

    with pytest.raises(NotImplementedError, match=r"has no build\(\)"):
        Empty()(X)


def test_attribute_before_init():
    class Early(glr.Graph):
        def __init__(self):
            self.model = linear()
            super().__init__()

    with pytest.raises(AttributeError, match=r"super\(\).__init__\(\) first"):
        Early()


def test_attributes_that_would_do_nothing(graph):
    with pytest.raises(AttributeError, match="add_optimizer"):
        graph.opt = SGD("**")
    graph(IMAGE, LABEL)
    with pytest.raises(AttributeError, match="after a call"):
        graph.temperature = 2.0
    with pytest.raises(RuntimeError, match="comes too late"):
        graph.add_optimizer(SGD("**"))
    with pytest.raises(AttributeError, match="comes too late"):
        graph.config.clip_grad_norm = 1.0


def test_what_the_first_call_missed_can_still_be_set():
    graph = Regress(linear(), SGD("kernel", lr=0.1))
    with pytest.raises(ValueError, match="in no group"):
        graph(X, Y)
    graph.config.clip_grad_norm = 1.0
    graph.note = "found out"
    graph.add_optimizer(Adam([{"params": ..., "name": "rest"}], lr=0.1))
    graph(X, Y)
    assert graph.lr == {"group0": 0.1, "rest": 0.1}


def test_add_optimizer_checks_what_it_gets():
    graph = Train(linear())
    for bad in (None, linear(), optax.sgd(0.1)):
        with pytest.raises(TypeError, match="add_optimizer takes an optimizer"):
            graph.add_optimizer(bad)
    optimizer = SGD("**")
    graph.add_optimizer(optimizer)
    with pytest.raises(ValueError, match="in the graph already"):
        graph.add_optimizer(optimizer)


def test_everything_frozen():
    graph = Regress(linear(), SGD([{"params": ..., "frozen": True}]))
    with pytest.raises(ValueError, match="every parameter is frozen"):
        graph(X, Y)


def test_what_build_assigns_to_a_parameter_is_updated_from_there():
    class Clipped(Train):
        def build(self, x):
            self.backward(self.model(x).sum())
            self.model.kernel.set_value(jnp.zeros_like(self.model.kernel))

    model = linear()
    Clipped(model, SGD("**", lr=0.5))(X)
    expected = -0.5 * X.sum(0)[:, None]  # from zero, one step down
    np.testing.assert_allclose(model.kernel.get_value(), expected, rtol=1e-5)


def test_a_module_replaced_after_the_first_call():
    model = chain(4, 8, 3)
    graph, evaluate = Train(model, SGD("**", lr=0.1)), Evaluate(model)
    graph(IMAGE), evaluate(IMAGE)
    model.layers[1] = linear(8, 3)
    for call in (graph, evaluate):
        with pytest.raises(ValueError, match=r"model\.layers\.1.*was replaced"):
            call(IMAGE)


def test_an_added_module_is_noticed_and_an_added_constant_is_not_minded():
    graph = Regress(linear(), SGD("**", lr=0.1))
    graph(X, Y)
    graph.model.note = "a string"
    graph(X, Y)
    graph.model.classifer = linear()
    with pytest.raises(ValueError, match=r"model\.classifer"):
        graph(X, Y)


def test_an_exception_in_build_leaves_the_model_usable():
    class Fragile(Train):
        def build(self, x, *, broken=False):
            loss = super().build(x)
            if broken:
                raise KeyError("user's own")
            return loss

    model = linear()
    graph = Fragile(model, SGD("**", lr=0.1))
    before = values(model)
    with pytest.raises(KeyError, match="user's own"):
        graph(X, broken=True)
    assert_same(before, values(model))
    graph(X)
    with pytest.raises(KeyError):
        graph(X, broken=True)
    graph(X)
    assert graph.step == 2


def test_a_failure_after_donation_says_what_is_lost_and_loading_restores_it():
    broken = []

    def host(x):
        if broken:
            raise OSError("sensor unplugged")
        return x

    class Sensor(Train):
        def build(self, x):
            kind = jax.ShapeDtypeStruct(x.shape, x.dtype)
            return super().build(jax.pure_callback(host, kind, x))

    graph = Sensor(linear(), Adam("**"))
    graph(X)
    saved = graph.state_dict()
    broken.append(True)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="load_state_dict"):
            graph(X)
    broken.clear()
    graph.load_state_dict(saved)
    graph(X)
    assert graph.step == 2


def test_ctrl_c_never_costs_the_state(graph, compiled):
    """Interrupts at random moments: the model always holds a whole step's result."""
    stop, rng, calling = threading.Event(), np.random.default_rng(0), []

    def handler(number, frame):
        if calling:  # one interrupt at a time, and only where it is caught
            calling.clear()
            raise KeyboardInterrupt

    def interrupt():
        while not stop.wait(rng.uniform(0.0005, 0.005)):
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGINT, handler)
    thread = threading.Thread(target=interrupt)
    interrupts, end = 0, time.monotonic() + 30.0
    thread.start()
    try:
        while interrupts < 200 and time.monotonic() < end:
            try:
                calling.append(True)
                while time.monotonic() < end:
                    graph(IMAGE, LABEL)
            except KeyboardInterrupt:
                interrupts += 1
    finally:
        calling.clear()
        stop.set()
        thread.join()
        mine = signal.signal(signal.SIGINT, before)
    assert mine is handler
    assert interrupts == 200
    interrupted, steps = values(graph.model), graph.step
    graph.load_state_dict(compiled[1])
    for _ in range(steps):
        graph(IMAGE, LABEL)
    assert_same(interrupted, values(graph.model))


def test_a_step_in_another_thread(graph, two_steps):
    results = []
    thread = threading.Thread(target=lambda: results.append(graph(IMAGE, LABEL)))
    thread.start()
    thread.join()
    assert float(results[0]) == two_steps[0][0]


def test_a_variable_whose_dtype_changed_is_compiled_for():
    model = linear()
    graph = Regress(model, Adam("**", lr=0.1))
    graph(X, Y)
    model.kernel.set_value(model.kernel.get_value().astype(jnp.bfloat16))
    graph(X, Y)
    graph(X, Y)
    assert model.kernel.get_value().dtype == jnp.bfloat16
    assert graph.compiles.count == 2
    assert "dtype, shape or placement" in graph.compiles.why[1]


# --- what is printed ------------------------------------------------------------------


def test_print_shows_every_group():
    model = chain(4, 8, 3)
    groups = [
        {"params": model.layers[0], "name": "features", "lr_scale": 0.5},
        {"params": ..., "name": "rest", "weight_decay": 0.01},
    ]
    schedule = lr_scheduler.StepLR(1, gamma=0.5)
    graph = Train(model, SGD(groups, lr=0.1), lr_sch=schedule)
    graph(IMAGE)
    text = str(graph)
    lines = text.splitlines()
    assert lines[0].startswith("Train (train, step 1")
    assert any(line.split() == ["features", "model.layers.0.**", "(2)", "40", "0.025",
                                "0.5", "0", "StepLR(step_size=1,", "gamma=0.5)"]
               for line in lines)  # fmt: skip
    assert any(line.startswith("rest") and "0.05" in line and "0.01" in line
               for line in lines)  # fmt: skip
    assert "1 compiled" in lines[-1]
    assert "eval" in str(Evaluate(graph.model))


def test_print_before_the_first_call_shows_what_is_wrong():
    assert "in no group" in str(Train(linear(), SGD("bias")))


# --- what users of other systems would write ------------------------------------------


def test_one_schedule_is_enough():
    step = lr_scheduler.StepLR
    optimizer = SGD("**", lr=1.0, lr_sch=step(1, gamma=0.5))
    with pytest.raises(ValueError, match=r"two schedules, StepLR.*give one of them"):
        Train(linear(), optimizer, lr_sch=step(1, gamma=0.1))


@pytest.mark.parametrize("transform", [jax.jit, jax.grad])
def test_a_graph_inside_a_transformation(transform):
    graph = Evaluate(linear())
    graph(X)
    with pytest.raises(TypeError, match=r"called inside jax.jit.*self.model\(x\)"):
        transform(lambda x: graph(x).sum())(X)
    assert graph.compiles.count == 1


def test_options_of_oneflow_lead_to_ours():
    graph = Evaluate(linear())
    with pytest.raises(AttributeError, match=r"did you mean 'gradient_accumulation_st"):
        graph.config.set_gradient_accumulation_steps(4)


# --- what a large model costs ---------------------------------------------------------


class Many(glr.Graph):
    """As many parameters as are asked for, in one list."""

    def __init__(self, parameters):
        super().__init__()
        self.model = nnx.List([nnx.Param(jnp.zeros(1)) for _ in range(parameters)])
        self.add_optimizer(SGD(self.model, lr=0.1))


def work(call) -> int:
    """Calls of Python and C functions, and entries that methods of lists look at."""
    total = 0

    def note(_, event, called):
        nonlocal total
        total += event in ("call", "c_call")
        searched = getattr(called, "__self__", None) if event == "c_call" else None
        if isinstance(searched, list) and called.__name__ in ("count", "index"):
            total += len(searched)

    sys.setprofile(note)
    try:
        call()
    finally:
        sys.setprofile(None)
    return total


@pytest.mark.parametrize("read", [glr.Graph.state_dict, repr], ids=["state", "print"])
def test_four_times_the_parameters_are_four_times_the_work(read):
    few, many = Many(100), Many(400)
    assert work(lambda: read(many)) < 4.05 * work(lambda: read(few))
