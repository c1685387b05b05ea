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
from graphlr.optim import lr_scheduler
from graphlr.state import archive


class Net(nnx.Module):
    def __init__(self, seed=0):
        rngs = nnx.Rngs(seed)
        self.features = nnx.Linear(4, 8, rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.classifier = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x):
        return self.classifier(self.dropout(self.norm(nnx.relu(self.features(x)))))


class Train(glr.Graph):
    def __init__(self, model, *optimizers, lr_sch=None):
        super().__init__()
        self.model, self.optimizers = model, optimizers
        for optimizer in optimizers:
            self.add_optimizer(optimizer, lr_sch=lr_sch)

    def build(self, image, label):
        logits = self.model(image)
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, label).mean()
        self.backward(loss)
        return loss


class Evaluate(glr.Graph):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def build(self, image):
        return self.model(image)


RNG = np.random.default_rng(0)
IMAGE = RNG.normal(size=(16, 4)).astype(np.float32)
LABEL = RNG.integers(0, 3, 16)


def values(model):
    """Copies of every parameter and statistic of `model`, by path."""
    state = nnx.to_flat_state(nnx.state(model, nnx.Any(nnx.Param, nnx.BatchStat)))
    return {".".join(map(str, path)): np.array(v.get_value()) for path, v in state}


def assert_same(a, b):
    assert a.keys() == b.keys()
    for key in a:
        np.testing.assert_array_equal(a[key], b[key], err_msg=key)


def make(lr=0.1, **keys):
    model = Net()
    groups = [
        {"params": model.features, "name": "features", "lr_scale": 0.5},
        {"params": ..., "name": "rest"},
    ]
    return Train(model, glr.optim.SGD(groups, lr=lr, momentum=0.9, **keys))


def plain_linear(x=2, y=1, seed=0):
    return nnx.Linear(x, y, rngs=nnx.Rngs(seed))


def regression(model, optimizer, **options):
    class Regression(glr.Graph):
        def __init__(self):
            super().__init__()
            self.model = model
            self.add_optimizer(optimizer, **options)

        def build(self, x, y):
            loss = ((self.model(x) - y) ** 2).mean()
            self.backward(loss)
            return loss

    return Regression()


X, Y = IMAGE[:, :2], IMAGE[:, 2:3]


# --- training and evaluation ----------------------------------------------------------


def test_one_step_is_the_closed_form():
    """w -= lr(0) * lr_scale * gradient, of exactly the group's parameters."""
    model = plain_linear()
    groups = [{"params": "kernel", "lr_scale": 0.5}, {"params": "bias"}]
    graph = regression(model, glr.optim.SGD(groups, lr=0.1))
    kernel, bias = model.kernel.get_value(), model.bias.get_value()

    def loss(kernel, bias):
        return ((X @ kernel + bias - Y) ** 2).mean()

    by_kernel, by_bias = jax.grad(loss, (0, 1))(kernel, bias)
    got = graph(X, Y)
    np.testing.assert_allclose(got, loss(kernel, bias), rtol=1e-6)
    np.testing.assert_allclose(
        model.kernel.get_value(), kernel - 0.05 * by_kernel, rtol=1e-6
    )
    np.testing.assert_allclose(model.bias.get_value(), bias - 0.1 * by_bias, rtol=1e-6)


def test_it_learns_and_compiles_once():
    graph = make()
    losses = [float(graph(IMAGE, LABEL)) for _ in range(60)]
    assert losses[-1] < 0.7 * losses[0]
    assert graph.compiles.count == 1
    assert graph.step == 60


def test_train_and_eval_graphs_share_the_model():
    graph = make()
    evaluate = Evaluate(graph.model)
    before = np.asarray(evaluate(IMAGE))
    graph(IMAGE, LABEL)
    after = np.asarray(evaluate(IMAGE))
    assert not np.array_equal(before, after)
    graph.model.eval()  # plain Python sees the same arrays
    np.testing.assert_allclose(graph.model(IMAGE), after, rtol=1e-5, atol=1e-6)
    assert evaluate.compiles.count == 1


def test_modes_need_no_reminder():
    """Training drops out and moves statistics whatever the modules' own mode is."""
    graph = make()
    graph.model.eval()
    mean = np.array(graph.model.norm.mean.get_value())
    count = int(graph.model.dropout.rngs.count.get_value())
    graph(IMAGE, LABEL)
    assert not np.array_equal(mean, graph.model.norm.mean.get_value())
    assert int(graph.model.dropout.rngs.count.get_value()) == count + 1
    graph.model.train()
    evaluate = Evaluate(graph.model)
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

    model = Net()
    mean = np.array(model.norm.mean.get_value())
    Calibrate(model)(IMAGE)  # no optimizer, and the statistics move
    assert not np.array_equal(mean, model.norm.mean.get_value())


def test_a_value_written_by_hand_is_used_by_the_next_step():
    graph = make()
    evaluate = Evaluate(graph.model)
    graph(IMAGE, LABEL)
    classifier = graph.model.classifier
    classifier.kernel.set_value(jnp.zeros_like(classifier.kernel.get_value()))
    expected = np.broadcast_to(classifier.bias.get_value(), (16, 3))
    np.testing.assert_allclose(evaluate(IMAGE), expected, rtol=1e-6)


def test_arrays_kept_from_before_a_step_stay_readable():
    """The step donates its buffers, but not under somebody who still holds them."""
    graph = make()
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
    graph = regression(model, glr.optim.SGD("**", lr=0.1))
    graph(X, Y)
    graph(X, Y)
    np.testing.assert_array_equal(model.a.get_value(), model.b.get_value())


def test_eager_gives_the_same_step():
    compiled, eager = make(), make()
    for _ in range(3):
        a, b = compiled(IMAGE, LABEL), eager.eager(IMAGE, LABEL)
        np.testing.assert_allclose(a, b, rtol=1e-5)
    for key, value in values(compiled.model).items():
        got = values(eager.model)[key]
        np.testing.assert_allclose(got, value, rtol=1e-4, atol=1e-6)
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


def test_constants_are_part_of_the_signature():
    class Power(glr.Graph):
        def build(self, x, kind, negative=False):
            y = x**2 if kind == "square" else x**3
            return -y if negative else y

    graph = Power()
    assert float(graph(2.0, "square")) == 4
    assert float(graph(3.0, "cube")) == 27
    assert float(graph(3.0, "cube", negative=True)) == -27
    assert float(graph(5.0, "square")) == 25
    assert graph.compiles.count == 3


def test_build_may_return_nothing():
    class Silent(Train):
        def build(self, image, label):
            super().build(image, label)

    graph = Silent(Net(), glr.optim.SGD("**", lr=0.1))
    assert graph(IMAGE, LABEL) is None


def test_numpy_and_jax_arrays_are_one_signature():
    graph = make()
    graph(IMAGE, LABEL)
    graph(jnp.asarray(IMAGE), jnp.asarray(LABEL))
    graph(IMAGE.astype(np.float64), LABEL.astype(np.int64))  # JAX has them as 32 bits
    graph(np.asfortranarray(IMAGE), LABEL[::1])
    assert graph.compiles.count == 1


def test_a_new_shape_compiles_once_more_and_says_why():
    graph = make()
    for _ in range(2):
        graph(IMAGE, LABEL)
        graph(IMAGE[:5], LABEL[:5])
    assert graph.compiles.count == 2
    assert graph.step == 4
    why = graph.compiles.why[1]
    assert "image float32[5,4] (was float32[16,4])" in why
    assert graph.compiles.seconds > 0


def test_modules_inside_containers():
    class Many(glr.Graph):
        def __init__(self):
            super().__init__()
            self.layers = [plain_linear(2, 2), plain_linear(2, 1, seed=1)]
            self.extra = {"temperature": nnx.Param(jnp.ones(())), "word": "x"}
            self.rngs = nnx.Rngs(7)
            optimizer = glr.optim.SGD(
                [{"params": "layers.0.*"}, {"params": ...}], lr=0.1
            )
            self.add_optimizer(optimizer)

        def build(self, x, y):
            for layer in self.layers:
                x = layer(x)
            noise = jax.random.normal(self.rngs.noise(), x.shape)
            loss = ((x * self.extra["temperature"] + 0 * noise - y) ** 2).mean()
            self.backward(loss)
            return noise

    graph = Many()
    first, second = graph(X, Y), graph(X, Y)
    assert not np.array_equal(first, second)  # the stream moves on
    assert float(graph.extra["temperature"].get_value()) != 1.0
    assert graph.compiles.count == 1


# --- numbers that are live ------------------------------------------------------------


def test_editing_numbers_never_recompiles_and_acts_at_once():
    model = plain_linear()
    optimizer = glr.optim.AdamW("**", lr=0.1)
    graph = regression(model, optimizer)
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
    edited, given = (plain_linear() for _ in range(2))
    optimizer = glr.optim.SGD("**", lr=1.0, momentum=0.1, weight_decay=0.9)
    a = regression(edited, optimizer)
    a.compile(X, Y)
    optimizer.param_groups[0].update({"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01})
    b = regression(given, glr.optim.SGD("**", lr=0.1, momentum=0.9, weight_decay=0.01))
    for _ in range(3):
        a(X, Y), b(X, Y)
    assert_same(values(edited), values(given))


def test_momentum_from_zero_traces_once_more():
    optimizer = glr.optim.SGD("**", lr=0.1)
    graph = regression(plain_linear(), optimizer)
    graph(X, Y)
    assert not any(key.endswith("momentum") for key in slots(graph))
    optimizer.param_groups[0]["momentum"] = 0.9
    graph(X, Y)
    optimizer.param_groups[0]["momentum"] = 0.5
    graph(X, Y)
    assert graph.compiles.count == 2
    assert any(key.endswith("momentum") for key in slots(graph))


def slots(graph):
    return [key for key in graph.state_dict() if key.startswith("slots.")]


def test_lr_is_schedule_times_scale():
    schedule = lr_scheduler.StepLR(2, gamma=0.5)
    model = Net()
    groups = [
        {"params": model.features, "name": "features", "lr_scale": 0.5},
        {"params": model.classifier, "name": "head", "lr": 1.0},
        {"params": ..., "name": "rest", "lr_sch": lr_scheduler.ConstantLR(0.5, 1)},
    ]
    graph = Train(model, glr.optim.SGD(groups, lr=0.1), lr_sch=schedule)
    assert graph.lr == {"features": 0.05, "head": 1.0, "rest": 0.05}  # before any step
    for _ in range(2):
        graph(IMAGE, LABEL)
    assert graph.lr == pytest.approx({"features": 0.025, "head": 0.5, "rest": 0.1})


def test_optax_schedules_and_arrays_are_accepted():
    optimizer = glr.optim.SGD("**", lr=optax.linear_schedule(0.4, 0.0, 4))
    graph = regression(plain_linear(), optimizer)
    graph(X, Y)
    assert graph.lr["group0"] == pytest.approx(0.3)
    graph = regression(plain_linear(), glr.optim.SGD("**"), lr_sch=np.array([0.3, 0.2]))
    assert graph.lr["group0"] == 0.3
    for _ in range(3):
        graph(X, Y)
    assert graph.lr["group0"] == 0.2


def test_scale_lr():
    model = Net()
    groups = [{"params": model.features, "lr": 0.5}, {"params": ...}]
    optimizer = glr.optim.SGD(groups, lr=0.1)
    graph = Train(model, optimizer)
    graph(IMAGE, LABEL)
    optimizer.scale_lr(0.1)
    assert graph.lr == pytest.approx({"group0": 0.05, "group1": 0.01})
    graph(IMAGE, LABEL)
    assert graph.compiles.count == 1


# --- freezing, adding, several optimizers ---------------------------------------------


def test_frozen_groups_stay_and_their_statistics_too():
    model = Net()
    groups = [
        {"params": [model.features, model.norm], "name": "body", "frozen": True},
        {"params": ..., "name": "head"},
    ]
    optimizer = glr.optim.AdamW(groups, lr=0.1, weight_decay=0.5)
    graph = Train(model, optimizer)
    before = values(model)
    graph(IMAGE, LABEL)
    after = values(model)
    for key in before:
        moved = not np.array_equal(before[key], after[key])
        assert moved == key.startswith("classifier"), key
    assert not any("features" in key for key in slots(graph))

    optimizer.param_groups["body"]["frozen"] = False
    graph(IMAGE, LABEL)
    assert graph.compiles.count == 2
    assert "structure of a group" in graph.compiles.why[1]
    state = graph.state_dict()
    assert int(state["slots.model.features.kernel.steps"]) == 1  # its own count
    assert int(state["slots.model.classifier.kernel.steps"]) == 2
    assert not np.array_equal(after["norm.mean"], model.norm.mean.get_value())


def test_add_param_group_in_mid_training():
    model = Net()
    optimizer = glr.optim.Adam(
        [
            {"params": model.classifier},
            {"params": "features.*", "frozen": True, "name": "frozen"},
            {"params": model.norm},
        ],
        lr=0.1,
    )
    graph = Train(model, optimizer)
    graph(IMAGE, LABEL)
    optimizer.param_groups["frozen"]["params"] = "features.bias"
    optimizer.add_param_group({"params": "features.kernel", "name": "new", "lr": 0.5})
    kernel = np.array(model.features.kernel.get_value())
    graph(IMAGE, LABEL)
    assert graph.lr["new"] == 0.5
    assert not np.array_equal(kernel, model.features.kernel.get_value())
    assert graph.compiles.count == 2


def test_several_optimizers_each_with_its_schedule():
    model = Net()
    graph = Train(model)
    graph.add_optimizer(
        glr.optim.SGD([{"params": model.features, "name": "body"}], lr=0.1),
        lr_sch=lr_scheduler.ExponentialLR(0.5),
    )
    graph.add_optimizer(glr.optim.Adam([{"params": ..., "name": "head"}], lr=0.01))
    graph(IMAGE, LABEL)
    assert graph.lr == pytest.approx({"body": 0.05, "head": 0.01})
    keys = slots(graph)
    assert not any(".features." in key for key in keys)
    assert any(".classifier." in key for key in keys)


def test_optimizers_that_overlap():
    model = Net()
    graph = Train(model, glr.optim.SGD("**"), glr.optim.Adam("classifier.*"))
    with pytest.raises(ValueError, match="more than one parameter group"):
        graph(IMAGE, LABEL)


def test_another_optimizer_class_for_one_group():
    model = Net()
    groups = [
        {"params": model.classifier, "optimizer": glr.optim.AdamW, "betas": (0.5, 0.9)},
        {"params": ...},
    ]
    optimizer = glr.optim.SGD(groups, lr=0.1, momentum=0.9)
    assert optimizer.param_groups[0]["weight_decay"] == 0.01  # AdamW's own default
    graph = Train(model, optimizer)
    graph(IMAGE, LABEL)
    state = graph.state_dict()
    assert "slots.model.classifier.kernel.exp_avg" in state
    assert "slots.model.features.kernel.momentum" in state
    with pytest.raises(TypeError, match=r"class of glr\.optim"):
        glr.optim.SGD([{"params": ..., "optimizer": "adam"}])


def test_any_optax_transformation_is_a_rule():
    model = plain_linear()
    optimizer = glr.optim.Optimizer("**", rule=lambda: optax.scale_by_lion(), lr=0.01)
    graph = regression(model, optimizer)
    kernel = np.array(model.kernel.get_value())
    graph(X, Y)
    moved = np.abs(kernel - model.kernel.get_value())
    np.testing.assert_allclose(moved, 0.01, rtol=1e-4)  # lion moves by its sign
    assert int(graph.state_dict()["slots.model.kernel.count"]) == 1


def test_a_rule_may_take_the_learning_rate():
    def rule(lr):
        return optax.sgd(lr)

    model, other = plain_linear(), plain_linear()
    regression(model, glr.optim.Optimizer("**", rule=rule, lr=0.1))(X, Y)
    regression(other, glr.optim.SGD("**", lr=0.1))(X, Y)
    assert_same(values(model), values(other))


def test_global_clip_is_over_all_groups():
    def moved(clip):
        graph = make(lr=1.0)
        graph.config.clip_grad_norm = clip
        before = values(graph.model)
        graph(IMAGE, LABEL)
        after = values(graph.model)
        scales = {"features.kernel": 0.5, "features.bias": 0.5}
        return np.sqrt(
            sum(
                (((before[k] - after[k]) / scales.get(k, 1.0)) ** 2).sum()
                for k in before
                if "mean" not in k and "var" not in k
            )
        )

    assert moved(None) > 0.05
    assert moved(0.01) == pytest.approx(0.01, rel=1e-3)


# --- state ----------------------------------------------------------------------------


def test_resume_equals_not_stopping():
    straight, first = make(), make()
    schedule = lr_scheduler.CosineDecayLR(10)
    for graph in (straight, first):
        graph.optimizers[0].lr_sch = schedule
    for _ in range(10):
        straight(IMAGE, LABEL)
    for _ in range(5):
        first(IMAGE, LABEL)
    saved = {k: np.array(v) for k, v in first.state_dict().items()}
    second = make()
    second.optimizers[0].lr_sch = schedule
    second.load_state_dict(saved)
    assert second.step == 5
    for _ in range(5):
        second(IMAGE, LABEL)
    assert_same(values(straight.model), values(second.model))
    assert straight.lr == second.lr


def test_a_saved_state_is_not_touched_by_later_steps():
    graph = make()
    graph(IMAGE, LABEL)
    saved = graph.state_dict()
    copies = {k: np.array(v) for k, v in saved.items()}
    graph(IMAGE, LABEL)
    assert_same({k: np.array(v) for k, v in saved.items()}, copies)


def test_loading_restores_edited_numbers_and_flags():
    graph = make()
    graph.optimizers[0].param_groups["features"].update(
        {"frozen": True, "lr_scale": 0.25, "weight_decay": 0.1}
    )
    graph(IMAGE, LABEL)
    other = make()
    other(IMAGE, LABEL)
    other.load_state_dict(graph.state_dict())
    group = other.optimizers[0].param_groups["features"]
    assert (group["frozen"], group["lr_scale"], group["weight_decay"]) == (
        True, 0.25, 0.1)  # fmt: skip
    assert_same(values(graph.model), values(other.model))


def test_slots_are_matched_by_parameter_when_groups_are_cut_differently():
    def build(groups):
        return Train(Net(), glr.optim.Adam(groups, lr=0.01))

    names = ["features", "norm", "classifier"]
    fine = build([{"params": f"{name}.*", "name": name} for name in names])
    for _ in range(3):
        fine(IMAGE, LABEL)
    coarse = build([{"params": "**", "name": "all"}])
    with pytest.raises(ValueError, match=r"missing: groups\.all.*unexpected: groups"):
        coarse.load_state_dict(fine.state_dict())
    coarse.load_state_dict(fine.state_dict(), strict=False)
    fine(IMAGE, LABEL), coarse(IMAGE, LABEL)
    a, b = values(fine.model), values(coarse.model)
    for key in a:
        np.testing.assert_allclose(a[key], b[key], rtol=1e-5, atol=1e-7)


def test_an_eval_graph_takes_a_training_state():
    graph = make()
    graph(IMAGE, LABEL)
    evaluate = Evaluate(Net(seed=5))
    evaluate.load_state_dict(graph.state_dict())
    assert_same(values(evaluate.model), values(graph.model))
    with pytest.raises(ValueError, match=r"missing: model\.classifier\.bias"):
        evaluate.load_state_dict({"step": 1})
    with pytest.raises(TypeError, match=r"np\.load"):
        evaluate.load_state_dict("state.npz")


def test_a_state_that_does_not_fit_changes_nothing():
    graph = make()
    graph(IMAGE, LABEL)
    before = values(graph.model)
    saved = graph.state_dict()
    del saved["model.features.bias"]
    saved["model.extra"] = np.zeros(3)
    saved["model.classifier.kernel"] = np.zeros((8, 4), np.float32)
    with pytest.raises(ValueError, match="doesn't fit") as error:
        graph.load_state_dict(saved)
    for part in (
        "missing: model.features.bias",
        "unexpected: model.extra",
        "model.classifier.kernel is float32[8, 4], and the graph has float32[8, 3]",
    ):
        assert part in str(error.value)
    assert_same(before, values(graph.model))


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
def test_bad_input_costs_nothing(args, error, match):
    graph, other = make(), make()
    graph(IMAGE, LABEL), other(IMAGE, LABEL)
    with pytest.raises(error, match=match):
        graph(*args)
    a, b = graph(IMAGE, LABEL), other(IMAGE, LABEL)
    assert float(a) == float(b)
    assert graph.step == 2
    assert graph.compiles.count == 1
    assert_same(values(graph.model), values(other.model))


def test_trace_errors_say_with_what():
    graph = make()
    with pytest.raises(ValueError) as error:
        graph(IMAGE[0], LABEL)
    notes = "".join(error.value.__notes__)
    assert "Train.build with image: float32[4], label: int32[16]" in notes


def check(build, match, kind, *, optimizer=True):
    class Broken(glr.Graph):
        def __init__(self):
            super().__init__()
            self.model = plain_linear()
            if optimizer:
                self.add_optimizer(glr.optim.SGD("**"))

    Broken.build = build
    with pytest.raises(kind, match=match):
        Broken()(X, Y)


def test_build_without_backward():
    check(
        lambda self, x, y: self.model(x).sum(),
        "never called self.backward",
        RuntimeError,
    )


def test_backward_without_optimizer():
    check(
        lambda self, x, y: self.backward(self.model(x).sum()),
        "graph without optimizer",
        RuntimeError,
        optimizer=False,
    )


def test_loss_that_is_no_scalar():
    check(
        lambda self, x, y: self.backward(self.model(x)),
        r"shape \(16, 1\): self\.backward\(loss\.mean\(\)\)",
        ValueError,
    )


def test_loss_that_is_no_float():
    check(
        lambda self, x, y: self.backward(self.model(x).argmax()),
        "not a float",
        TypeError,
    )


def test_loss_that_depends_on_nothing_trained():
    check(
        lambda self, x, y: self.backward((x**2).sum()),
        "depends on no trained parameter",
        ValueError,
    )


def test_backward_outside_build():
    with pytest.raises(RuntimeError, match="inside build"):
        make().backward(1.0)


def test_build_is_required():
    class Empty(glr.Graph):
        pass

    with pytest.raises(NotImplementedError, match=r"has no build\(\)"):
        Empty()(X)


def test_attribute_before_init():
    class Early(glr.Graph):
        def __init__(self):
            self.model = plain_linear()
            super().__init__()

    with pytest.raises(AttributeError, match=r"super\(\).__init__\(\) first"):
        Early()


def test_attributes_that_would_do_nothing():
    graph = make()
    with pytest.raises(AttributeError, match="add_optimizer"):
        graph.opt = glr.optim.SGD("**")
    graph(IMAGE, LABEL)
    with pytest.raises(AttributeError, match="after a call"):
        graph.temperature = 2.0
    with pytest.raises(RuntimeError, match="comes too late"):
        graph.add_optimizer(glr.optim.SGD("**"))
    with pytest.raises(AttributeError, match="comes too late"):
        graph.config.clip_grad_norm = 1.0

    def build(self, x, y):
        self.hidden = x
        self.backward(self.model(x).sum())

    check(build, r"inside build\(\)", AttributeError)


def test_what_the_first_call_missed_can_still_be_set():
    model = Net()
    graph = Train(model, glr.optim.SGD("classifier.*", lr=0.1))
    with pytest.raises(ValueError, match="in no group"):
        graph(IMAGE, LABEL)
    graph.config.clip_grad_norm = 1.0
    graph.note = "found out"
    graph.add_optimizer(glr.optim.Adam([{"params": ..., "name": "body"}], lr=0.1))
    graph(IMAGE, LABEL)
    assert graph.lr == {"group0": 0.1, "body": 0.1}


def test_add_optimizer_checks_what_it_gets():
    graph = Train(Net())
    for bad in (None, Net(), optax.sgd(0.1)):
        with pytest.raises(TypeError, match="add_optimizer takes an optimizer"):
            graph.add_optimizer(bad)
    optimizer = glr.optim.SGD("**")
    graph.add_optimizer(optimizer)
    with pytest.raises(ValueError, match="in the graph already"):
        graph.add_optimizer(optimizer)


def test_everything_frozen():
    graph = Train(Net(), glr.optim.SGD([{"params": ..., "frozen": True}]))
    with pytest.raises(ValueError, match="every parameter is frozen"):
        graph(IMAGE, LABEL)


def test_a_parameter_without_gradient_is_named_and_left_alone():
    class TwoHeads(nnx.Module):
        def __init__(self):
            self.used, self.idle = plain_linear(), plain_linear(seed=1)

        def __call__(self, x):
            return self.used(x)

    model = TwoHeads()
    optimizer = glr.optim.AdamW("**", lr=0.1, weight_decay=0.5)
    graph = regression(model, optimizer)
    before = values(model)
    with pytest.warns(UserWarning, match=r"no loss depends on model\.idle\.bias"):
        graph(X, Y)
    graph(X, Y)
    after = values(model)
    assert np.array_equal(before["idle.kernel"], after["idle.kernel"])  # no decay
    assert not np.array_equal(before["used.kernel"], after["used.kernel"])
    state = graph.state_dict()
    assert int(state["slots.model.idle.kernel.steps"]) == 0
    assert int(state["slots.model.used.kernel.steps"]) == 2


def test_a_model_reached_by_another_name_is_an_error():
    model = plain_linear()

    def build(self, x, y):
        self.backward(((self.model(x) + model(x) - y) ** 2).mean())

    class Closure(glr.Graph):
        def __init__(self):
            super().__init__()
            self.model = model
            self.add_optimizer(glr.optim.SGD("**"))

    Closure.build = build
    with pytest.raises(ValueError, match=r"uses model\.bias, model\.kernel as a const"):
        Closure()(X, Y)


def test_what_build_assigns_to_a_parameter_is_updated_from_there():
    class Clipped(glr.Graph):
        def __init__(self, model):
            super().__init__()
            self.model = model
            self.add_optimizer(glr.optim.SGD("**", lr=0.5))

        def build(self, x):
            self.backward(self.model(x).sum())
            self.model.kernel.set_value(jnp.zeros_like(self.model.kernel))

    model = plain_linear()
    Clipped(model)(X)
    expected = -0.5 * X.sum(0)[:, None]  # from zero, one step down
    np.testing.assert_allclose(model.kernel.get_value(), expected, rtol=1e-5)


def test_a_module_replaced_after_the_first_call():
    graph = make()
    evaluate = Evaluate(graph.model)
    graph(IMAGE, LABEL), evaluate(IMAGE)
    graph.model.classifier = plain_linear(8, 5)
    for call in (lambda: graph(IMAGE, LABEL), lambda: evaluate(IMAGE)):
        with pytest.raises(ValueError, match=r"model\.classifier.*was replaced"):
            call()


def test_an_added_module_is_noticed_and_an_added_constant_is_not_minded():
    graph = make()
    graph(IMAGE, LABEL)
    graph.model.note = "a string"
    graph(IMAGE, LABEL)
    graph.model.classifer = plain_linear(8, 5)
    with pytest.raises(ValueError, match=r"model\.classifer"):
        graph(IMAGE, LABEL)


def test_an_exception_in_build_leaves_the_model_usable():
    class Fragile(Train):
        def build(self, image, label, *, broken=False):
            loss = super().build(image, label)
            if broken:
                raise KeyError("user's own")
            return loss

    model = Net()
    graph = Fragile(model, glr.optim.SGD("**", lr=0.1))
    before = values(model)
    with pytest.raises(KeyError, match="user's own"):
        graph(IMAGE, LABEL, broken=True)
    assert_same(before, values(model))
    graph(IMAGE, LABEL)
    with pytest.raises(KeyError):
        graph(IMAGE, LABEL, broken=True)
    graph(IMAGE, LABEL)
    assert graph.step == 2


def test_a_failure_after_donation_says_what_is_lost_and_loading_restores_it():
    broken = []

    def host(x):
        if broken:
            raise OSError("sensor unplugged")
        return x

    class Sensor(glr.Graph):
        def __init__(self, model):
            super().__init__()
            self.model = model
            self.add_optimizer(glr.optim.Adam("**"))

        def build(self, x):
            kind = jax.ShapeDtypeStruct(x.shape, x.dtype)
            loss = self.model(jax.pure_callback(host, kind, x)).mean()
            self.backward(loss)
            return loss

    graph = Sensor(plain_linear())
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


def test_ctrl_c_never_costs_the_state():
    """Interrupts at random moments: the model always holds a whole step's result."""
    graph, reference = make(), make()
    graph(IMAGE, LABEL), reference(IMAGE, LABEL)
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
    interrupts, end = 0, time.monotonic() + 3.0
    thread.start()
    while time.monotonic() < end:
        try:
            calling.append(True)
            while time.monotonic() < end:
                graph(IMAGE, LABEL)
            calling.clear()
        except KeyboardInterrupt:
            interrupts += 1
    stop.set()
    thread.join()
    assert signal.signal(signal.SIGINT, before) is handler
    assert interrupts > 20
    for _ in range(graph.step - 1):
        reference(IMAGE, LABEL)
    assert_same(values(graph.model), values(reference.model))


def test_a_step_in_another_thread():
    graph = make()
    results = []
    thread = threading.Thread(target=lambda: results.append(graph(IMAGE, LABEL)))
    thread.start()
    thread.join()
    assert np.isfinite(float(results[0]))


def test_a_variable_whose_dtype_changed_is_compiled_for():
    model = plain_linear()
    graph = regression(model, glr.optim.Adam("**", lr=0.1))
    graph(X, Y)
    model.kernel.set_value(model.kernel.get_value().astype(jnp.bfloat16))
    graph(X, Y)
    graph(X, Y)
    assert model.kernel.get_value().dtype == jnp.bfloat16
    assert graph.compiles.count == 2
    assert "dtype, shape or placement" in graph.compiles.why[1]


# --- what is printed ------------------------------------------------------------------


def test_print_shows_every_group():
    graph = make(lr=0.1)
    graph.optimizers[0].lr_sch = lr_scheduler.StepLR(1, gamma=0.5)
    graph.optimizers[0].param_groups["rest"]["weight_decay"] = 0.01
    graph(IMAGE, LABEL)
    text = str(graph)
    lines = text.splitlines()
    assert lines[0].startswith("Train (train, step 1")
    assert any(line.split() == ["features", "model.features.**", "(2)", "40", "0.025",
                                "0.5", "0", "StepLR(step_size=1,", "gamma=0.5)"]
               for line in lines)  # fmt: skip
    assert any(line.startswith("rest") and "0.05" in line and "0.01" in line
               for line in lines)  # fmt: skip
    assert "1 compiled" in lines[-1]
    assert "eval" in str(Evaluate(graph.model))


def test_print_before_the_first_call_shows_what_is_wrong():
    graph = Train(Net(), glr.optim.SGD("classifier.*"))
    assert "in no group" in str(graph)


def test_the_step_lowers_for_gpu_and_tpu(tmp_path):
    """As far as a CPU can tell: native depthwise convolutions there, none here."""
    model = glr.models.mobilenet_v2(10, rngs=nnx.Rngs(0))
    graph = Train(model, glr.optim.Adam("**", lr=0.01))
    batch = np.zeros((2, 64, 64, 3), np.float32), np.zeros(2, np.int32)
    graph.export(tmp_path / "step.zip", *batch, platforms=["cuda", "tpu"])
    _, parts = archive.read(tmp_path / "step.zip")
    text = jax.export.deserialize(bytearray(parts["step.jax"])).mlir_module()
    assert "stablehlo.convolution" in text
    assert "feature_group_count = 960" in text


# --- what users of other systems would write ------------------------------------------


def test_one_schedule_is_enough():
    step = lr_scheduler.StepLR
    optimizer = glr.optim.SGD("**", lr=1.0, lr_sch=step(1, gamma=0.5))
    with pytest.raises(ValueError, match=r"two schedules, StepLR.*give one of them"):
        regression(plain_linear(), optimizer, lr_sch=step(1, gamma=0.1))


@pytest.mark.parametrize("transform", [jax.jit, jax.grad])
def test_a_graph_inside_a_transformation(transform):
    graph = Evaluate(plain_linear())
    x = np.ones((2, 2), np.float32)
    graph(x)
    with pytest.raises(TypeError, match=r"called inside jax.jit.*self.model\(x\)"):
        transform(lambda x: graph(x).sum())(x)
    assert graph.compiles.count == 1


def test_backward_of_the_loss_itself():
    class Torch(Evaluate):
        def build(self, x, y):
            loss = (self.model(x) - y).sum()
            loss.backward()

    graph = Torch(plain_linear())
    graph.add_optimizer(glr.optim.SGD("**"))
    with pytest.raises(AttributeError) as caught:
        graph(np.ones((2, 2), np.float32), np.ones((2, 1), np.float32))
    assert "in build() it is self.backward(loss)" in caught.value.__notes__


def test_options_of_oneflow_lead_to_ours():
    graph = Evaluate(plain_linear())
    with pytest.raises(AttributeError, match=r"did you mean 'gradient_accumulation_st"):
        graph.config.set_gradient_accumulation_steps(4)


def test_a_python_number_and_an_array_are_told_apart():
    class Scale(Evaluate):
        def build(self, x, a):
            return self.model(x) * a

    graph = Scale(plain_linear())
    x = np.ones((2, 2), np.float32)
    graph(x, 0.5), graph(x, np.float32(0.5)), graph(x, 0.25)
    assert graph.compiles.why == [
        "first call",
        "a Python number in place of an array, or the reverse",
    ]
    with pytest.raises(TypeError, match="positional argument") as caught:
        graph(x, 0.5, 1.0)
    assert "args[2]: float32[]" in caught.value.__notes__[-1]


# --- what a large model costs ---------------------------------------------------------


class Many(glr.Graph):
    """As many parameters as are asked for, in one list."""

    def __init__(self, parameters):
        super().__init__()
        self.model = nnx.List([nnx.Param(jnp.zeros(1)) for _ in range(parameters)])
        self.add_optimizer(glr.optim.SGD(self.model, lr=0.1))


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
