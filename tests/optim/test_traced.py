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


CURVES = [
    halves,
    [0.5, 0.25, 0.125],
    functools.partial(lr_scheduler.StepLR(1, 0.5), 0.5),
]


@pytest.mark.parametrize("curve", CURVES, ids=["function", "table", "partial"])
@pytest.mark.parametrize("key", ["weight_decay", "eps"])
def test_a_number_may_be_a_curve(key, curve):
    curved = make(**{key: curve})
    for step in range(3):
        plain = make(**{key: halves(step)})
        assert step_of(curved, step) == pytest.approx(step_of(plain, step), rel=1e-6)


@pytest.mark.parametrize("kind", [glr.optim.SGD, glr.optim.RMSprop])
@pytest.mark.parametrize("curve", CURVES, ids=["function", "table", "partial"])
def test_momentum_may_be_a_curve(kind, curve):
    assert_follows({"momentum": curve}, lambda t: {"momentum": halves(t)}, kind)


@pytest.mark.parametrize("curve", CURVES, ids=["function", "table", "partial"])
def test_beta1_may_be_a_curve(curve):
    betas = {"betas": (curve, 0.99)}
    assert_follows(betas, lambda t: {"betas": (halves(t), 0.99)}, glr.optim.AdamW)


def assert_follows(curved, at, kind):
    """A curve equals the same numbers set by hand before each step."""

    class Train(glr.Graph):
        def __init__(self, keys):
            super().__init__()
            self.model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
            self.optimizer_of = {}
            self.optimizer_of["it"] = kind(self.model, lr=0.1, **keys)
            self.add_optimizer(self.optimizer_of["it"])

        def build(self, x):
            loss = (self.model(x) ** 2).mean()
            self.backward(loss)
            return loss

    x = np.ones((4, 3), np.float32)
    curve, hand = Train(curved), Train(at(0))
    for t in range(4):
        hand.optimizer_of["it"].param_groups[0].update(at(min(t, 2)))
        curve(x), hand(x)
        if t < 3:
            for a, b in zip(
                *(map(np.asarray, weights(g)) for g in (curve, hand)), strict=True
            ):
                np.testing.assert_allclose(a, b, rtol=1e-6)
    assert curve.compiles.count == hand.compiles.count == 1
    curve.state_dict()


def weights(graph):
    return graph.model.kernel.get_value(), graph.model.bias.get_value()


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
