"""Groups as a compiled step sees them: specs, the vector of numbers, learning rates."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import graphlr as glr
from graphlr.optim import lr_scheduler
from graphlr.optim.traced import group_lr, pack, transform, unpack
from tests.models import Train, assert_close, linear, values


def make(kind=glr.optim.AdamW, **keys):
    groups = [{"params": "a", "name": "a", "lr_scale": 0.5}, {"params": ...}]
    return kind(groups, **{"lr": 0.1, **keys})


def step_of(optimizer, step=0, g=2.0):
    """The first update of one parameter with gradient `g`."""
    tx = transform(
        optimizer.specs,
        unpack(optimizer.specs, optimizer.numbers),
        {"a": "a"},
        jnp.int32(step),
    )
    params = {"a": jnp.ones(1)}
    updates, _ = tx.update({"a": jnp.full(1, g)}, tx.init(params), params)
    return float(updates["a"][0])


@pytest.mark.parametrize(
    ("key", "value"),
    [("lr", 0.5), ("lr_scale", 2.0), ("weight_decay", 0.5), ("betas", (0.1, 0.2))],
)
def test_a_number_leaves_the_specs_alone(key, value):
    optimizer = make()
    specs, numbers = optimizer.specs, optimizer.numbers
    optimizer.param_groups[0][key] = value
    assert optimizer.specs == specs
    assert not np.array_equal(optimizer.numbers, numbers)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("frozen", True),
        ("amsgrad", True),
        ("maximize", True),
        ("grad_centralization", True),
        ("clip_grad_max_norm", 1.0),
        ("lr_sch", lr_scheduler.StepLR(2)),
        ("lr", [0.2, 0.1]),
        ("weight_decay", [0.2, 0.1]),
        ("params", "b"),
    ],
)
def test_structure_changes_the_specs(key, value):
    optimizer = make()
    specs = optimizer.specs
    optimizer.param_groups[0][key] = value
    assert optimizer.specs != specs
    assert optimizer.specs[1] == specs[1]


def test_momentum_is_structure_only_between_zero_and_not_zero():
    optimizer = make(glr.optim.SGD)
    none = optimizer.specs
    optimizer.param_groups[0]["momentum"] = 0.5
    some = optimizer.specs
    optimizer.param_groups[0]["momentum"] = 0.9
    assert optimizer.specs == some != none


def test_numbers_come_back_from_the_vector():
    optimizer = make(weight_decay=0.25, betas=(0.5, 0.75), clip_grad_max_norm=3.0)
    specs = optimizer.specs
    values = unpack(specs, pack(specs, optimizer.param_groups))
    assert values["a"]["betas"] == (0.5, 0.75)
    assert {k: values["a"][k] for k in ("lr", "lr_scale", "weight_decay")} == {
        "lr": 0.1, "lr_scale": 0.5, "weight_decay": 0.25}  # fmt: skip
    assert values["group1"]["clip_grad_max_norm"] == 3.0


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, 0.05),
        ({"lr_sch": lr_scheduler.StepLR(2, gamma=0.1)}, 0.0005),
        ({"lr": lambda t: 0.1 * t}, 0.25),
        ({"lr": [0.3, 0.2], "lr_sch": lr_scheduler.StepLR(2, gamma=0.1)}, 0.001),
    ],
)
def test_rate_on_the_host_and_traced(keys, expected):
    optimizer = make(**keys)
    spec, group = optimizer.specs[0], optimizer.param_groups[0]
    host = group_lr(spec, group, 5)
    assert isinstance(host, float)
    assert host == pytest.approx(expected, rel=1e-14)  # float64 there

    def rate(numbers, step):
        return group_lr(spec, unpack(optimizer.specs, numbers)["a"], step)

    traced = jax.jit(rate)(optimizer.numbers, jnp.int32(5))
    assert traced.dtype == jnp.float32
    np.testing.assert_allclose(traced, host, rtol=1e-6)


CYCLE = lr_scheduler.CyclicLR(0.1, 0.1, step_size_up=4, base_momentum=0.5)


def test_a_schedule_drives_momentum():
    optimizer = make(glr.optim.SGD, momentum=0.9, nesterov=True, lr_sch=CYCLE)
    for step in (0, 2):  # nesterov's first step is -lr * (1 + momentum) * g
        expected = -0.05 * (1 + CYCLE.momentum(step)) * 2.0
        assert step_of(optimizer, step) == pytest.approx(expected, rel=1e-5)
    assert CYCLE.momentum(0) != CYCLE.momentum(2)


def test_a_schedule_drives_beta1():
    optimizer = make(glr.optim.Adam, do_bias_correction=False, lr_sch=CYCLE)
    for step in (0, 2):  # m = (1 - b1) g and v = 0.001 g² after one step
        expected = -0.05 * (1 - CYCLE.momentum(step)) / np.sqrt(0.001)
        assert step_of(optimizer, step) == pytest.approx(expected, rel=1e-4)


def test_a_schedule_that_drives_what_the_rule_has_not():
    optimizer = glr.optim.Optimizer([{"params": "a", "name": "a"}], rule=optax.identity)
    optimizer.lr_sch = CYCLE
    with pytest.raises(ValueError, match=r"'a'.*CyclicLR.*cycle_momentum=False"):
        step_of(optimizer)


def test_the_groups_own_schedule_goes_before_the_optimizers():
    optimizer = make(lr_sch=lr_scheduler.ConstantLR(0.5, 10))
    optimizer.lr_sch = lr_scheduler.ConstantLR(0.1, 10)
    assert optimizer.lr()["a"] == pytest.approx(0.1 * 0.5 * 0.5)
    optimizer.param_groups[0]["lr_sch"] = None
    assert optimizer.lr()["a"] == pytest.approx(0.1 * 0.1 * 0.5)


def test_clip_comes_before_the_rule_and_after_centralization():
    optimizer = make(glr.optim.SGD, clip_grad_max_norm=0.5)
    assert step_of(optimizer, g=8.0) == pytest.approx(-0.05 * 0.5, rel=1e-4)


# --- schedules of hyperparameters -----------------------------------------------------


def halves(step):
    return 0.5 ** (1 + step)


CURVES = {
    "function": halves,
    "table": [0.5, 0.25, 0.125],
    "partial": functools.partial(lr_scheduler.StepLR(1, 0.5), 0.5),
}


@pytest.mark.parametrize("curve", CURVES)
@pytest.mark.parametrize("key", ["weight_decay", "eps"])
def test_a_number_may_be_a_curve(key, curve):
    curved = make(**{key: CURVES[curve]})
    for step in range(3):
        plain = make(**{key: halves(step)})
        assert step_of(curved, step) == pytest.approx(step_of(plain, step), rel=1e-6)


class Every(Train):
    def loss(self, x):
        return sum((model(x) ** 2).mean() for model in self.model.values())


HYPER = {  # a rule, and its keys with a momentum or beta1 that may be a curve
    "SGD": lambda number: {"momentum": number},
    "RMSprop": lambda number: {"momentum": number},
    "AdamW": lambda number: {"betas": (number, 0.99)},
}


@functools.cache
def followed(rule):
    """A graph with a model for each curve, and one whose number is set by hand.

    Returns:
        The graph, and the values of each model after each step.
    """
    kind, keys, found = getattr(glr.optim, rule), HYPER[rule], []
    optimizers = {
        name: kind(f"{name}.*", lr=0.1, **keys(curve))
        for name, curve in (*CURVES.items(), ("hand", 0.5))
    }
    models = nnx.Dict({name: linear(3, 2) for name in optimizers})
    graph = Every(models, *optimizers.values())
    for t in range(4):
        optimizers["hand"].param_groups[0].update(keys(halves(min(t, 2))))
        graph(np.ones((4, 3), np.float32))
        found.append({name: values(model) for name, model in models.items()})
    return graph, found


@pytest.mark.parametrize("curve", CURVES)
@pytest.mark.parametrize("rule", HYPER)
def test_a_momentum_or_beta1_may_be_a_curve(rule, curve):
    """It equals the same numbers set by hand before each step."""
    graph, found = followed(rule)
    for after in found[:3]:
        assert_close(after[curve], after["hand"], rtol=1e-6)
    assert graph.compiles.count == 1


@pytest.mark.parametrize("rule", HYPER)
def test_a_curve_is_no_number_of_a_state(rule):
    graph, _ = followed(rule)
    (key,) = HYPER[rule](0.5)
    saved = [k for k in graph.state_dict() if k.startswith("groups.")]
    assert len([k for k in saved if k.endswith(f".{key}")]) == 1  # set by hand
    assert len([k for k in saved if k.endswith(".lr")]) == 4


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"lr": lr_scheduler.StepLR(2)}, r"write lr=0.1, lr_sch=StepLR\(step_size=2\)"),
        ({"weight_decay": lr_scheduler.StepLR(2)}, r"functools.partial\(StepLR\("),
        ({"weight_decay": [-1.0]}, "values"),
        (
            {"weight_decay": lambda step: -1.0 - step},
            "Invalid weight_decay value: -1.0",
        ),
        ({"betas": (lambda step: 1.5, 0.9)}, "Invalid beta parameter at index 0: 1.5"),
    ],
)
def test_bad_curves_are_refused(keys, message):
    with pytest.raises(ValueError, match=message):
        make(**keys)


def test_two_schedules_of_one_momentum():
    schedule = lr_scheduler.OneCycleLR(max_lr=0.1, total_steps=9)
    optimizer = make(glr.optim.SGD, momentum=halves, lr_sch=schedule)
    with pytest.raises(ValueError, match=r"'a': both .* give the momentum"):
        step_of(optimizer)
