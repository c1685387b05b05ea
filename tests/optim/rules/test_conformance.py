"""What every rule must do alike, whatever its formula: a table of all of them.

A step of all of them is one program: each trains a model of its own.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import graphlr as glr
from graphlr.optim.arguments import rule_of
from tests.models import Train, Weights, assert_same, state_of, values
from tests.optim.trees import together

RULES = {  # hyperparameters that use every part of the formula
    "SGD": {"lr": 0.5, "momentum": 0.9, "dampening": 0.1, "weight_decay": 0.01},
    "ASGD": {"lr": 0.5, "lambd": 0.01, "t0": 1.0, "weight_decay": 0.01},
    "LARS": {"lr": 8.0, "weight_decay": 0.01},
    "Rprop": {"lr": 0.125},
    "Adam": {"lr": 0.125, "weight_decay": 0.01, "amsgrad": True},
    "AdamW": {"lr": 0.125, "weight_decay": 0.01},
    "Adamax": {"lr": 0.125, "weight_decay": 0.01},
    "NAdam": {"lr": 0.125, "weight_decay": 0.01, "momentum_decay": 0.1},
    "RAdam": {"lr": 0.125, "weight_decay": 0.01, "betas": (0.9, 0.9999)},
    "LAMB": {"lr": 0.125, "weight_decay": 0.01},
    "SparseAdam": {"lr": 0.125},
    "Adagrad": {"lr": 0.125, "lr_decay": 0.1, "weight_decay": 0.01},
    "Adadelta": {"lr": 4.0, "weight_decay": 0.01},
    "RMSprop": {"lr": 0.125, "momentum": 0.9, "centered": True, "weight_decay": 0.01},
    "Adafactor": {"lr": 0.5, "eps": (1e-6, 1e-3), "d": 2.0, "weight_decay": 0.01},
    "Lion": {"lr": 0.125, "weight_decay": 0.01},
    "Muon": {"lr": 0.125, "weight_decay": 0.01},
}
each_rule = pytest.mark.parametrize("name", RULES)

RNG = np.random.default_rng(0)
NAMES = ("a", "b", "c", "idle")
INIT = {name: RNG.normal(size=(3, 4)) for name in NAMES}
INIT["idle"] = INIT["a"]
GRADS = [{name: RNG.normal(size=(3, 4)) for name in NAMES} for _ in range(5)]
SCHEDULE = glr.optim.lr_scheduler.StepLR(2, 0.5)
ONE = ["a", "b", "c"], ["idle"]  # the names in each group, of which the last is frozen
THREE = ["a"], ["b"], ["c"], ["idle"]


class Every(Train):
    """A model for each rule, trained on the same gradients."""

    def loss(self, grads):
        return sum(model.along(grads) for model in self.model.values())


def every(groups, *, rules=RULES, lr_sch=None, **keys):
    """A graph of rules, with the same groups for each."""
    *_, last = groups

    def optimizer(rule):
        mine = [
            {"params": [f"{rule}.{name}" for name in names], "frozen": names == last}
            for names in groups
        ]
        return getattr(glr.optim, rule)(mine, **RULES[rule], **keys)

    models = nnx.Dict({rule: Weights(**INIT) for rule in rules})
    return Every(models, *map(optimizer, rules), lr_sch=lr_sch)


def after_each(batches, graph, how=glr.Graph.__call__):
    """The values of all models after each step."""
    found = []
    for grads in batches:
        how(graph, {name: np.float32(g) for name, g in grads.items()})
        found.append(values(graph.model))
    return found


def of(rule, found):
    """The values of the model of one rule, by name."""
    return {name: found[f"{rule}.{name}"] for name in NAMES}


def assert_near(got, expected, rtol=1e-5):
    for name, value in expected.items():
        limit = rtol * np.abs(value).max()
        np.testing.assert_allclose(got[name], value, rtol=0, atol=limit, err_msg=name)


def test_every_rule_is_in_the_table():
    rules = [
        name
        for name, value in vars(glr.optim).items()
        if isinstance(value, type) and hasattr(value, "rule")
    ]
    assert sorted(rules) == sorted(RULES)


class Run(NamedTuple):
    """A graph, the state that it started with, the values after each step."""

    graph: Every
    start: dict[str, np.ndarray]
    after: list[dict[str, np.ndarray]]


@pytest.fixture(scope="module")
def scheduled():
    graph = every(ONE, lr_sch=SCHEDULE)
    return Run(graph, graph.state_dict(), after_each(GRADS[:4], graph))


@pytest.fixture(scope="module")
def by_hand():
    graph, after = every(THREE), []
    start = graph.state_dict()
    for t in range(4):
        for rule, optimizer in zip(RULES, graph.optimizers, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = SCHEDULE(RULES[rule]["lr"], t)
        after += after_each([GRADS[t]], graph)
    for optimizer in graph.optimizers:
        change_every_number(optimizer)
    after_each([GRADS[4]], graph)
    return Run(graph, start, after)


def change_every_number(optimizer):
    def smaller(value):
        if isinstance(value, tuple):
            return tuple(map(smaller, value))
        return value * 0.9 if isinstance(value, float) else value

    group = optimizer.param_groups[0]
    for key in rule_of(optimizer.rule).defaults:
        group[key] = group[key] * 2 if key == "d" else smaller(group[key])


@each_rule
def test_one_group_or_three_scheduled_or_by_hand(name, scheduled, by_hand):
    for one, three in zip(scheduled.after, by_hand.after, strict=True):
        assert_near(of(name, three), of(name, one), 1e-6)
    after = of(name, scheduled.after[-1])
    np.testing.assert_array_equal(after["idle"], INIT["idle"].astype(np.float32))
    for trained in "abc":
        assert np.abs(after[trained] - INIT[trained]).min() > 0
    assert scheduled.graph.compiles.count == by_hand.graph.compiles.count == 1


@pytest.fixture(scope="module")
def resumed():
    return every(THREE)


@pytest.fixture(scope="module")
def gone_on_and_resumed(by_hand, resumed):
    """The states of a graph that went on, and of another that took over its state."""
    graph = by_hand.graph
    graph.load_state_dict(by_hand.start)
    after_each(GRADS[:2], graph)
    resumed.load_state_dict(graph.state_dict())
    for each in (graph, resumed):
        after_each(GRADS[2:5], each)
    return state_of(graph), state_of(resumed)


@each_rule
def test_saved_by_name_and_restored_goes_on_bit_for_bit(name, gone_on_and_resumed):
    gone_on, resumed = gone_on_and_resumed
    place = [*RULES].index(name)
    mine = [k for k in gone_on if f".{name}." in k or f".optimizer{place}." in k]
    assert len(mine) > 10
    for key in mine:
        np.testing.assert_array_equal(resumed[key], gone_on[key], key)


def test_all_that_is_saved_is_restored(gone_on_and_resumed):
    assert_same(*gone_on_and_resumed)


@pytest.fixture(scope="module")
def eager(scheduled):
    """The values after each of two steps operation by operation."""
    scheduled.graph.load_state_dict(scheduled.start)
    return after_each(GRADS[:2], scheduled.graph, glr.Graph.eager)


@each_rule
def test_jitted_equals_eager(name, scheduled, eager):
    for jitted, by_operation in zip(scheduled.after, eager, strict=False):
        assert_near(of(name, by_operation), of(name, jitted))


@pytest.fixture(scope="module")
def thawed(by_hand, resumed):
    """The values after two steps without `idle`, and after one with it."""
    resumed.load_state_dict(by_hand.start)
    same = {**GRADS[0], "idle": GRADS[0]["a"]}  # both are equal, too
    before = after_each([same, same], resumed)
    for optimizer in resumed.optimizers:
        optimizer.param_groups[-1]["frozen"] = False
    return [*before, *after_each([same], resumed)]


@each_rule
def test_a_parameter_unfrozen_late_has_a_first_step_of_its_own(name, thawed):
    first, _, third = (of(name, found) for found in thawed)
    np.testing.assert_allclose(third["idle"], first["a"], rtol=1e-6)


class Updated(NamedTuple):
    """What three updates of as_optax left of parameters and states, by rule."""

    before: dict[str, tuple]
    after: dict[str, tuple]
    traces: int


@functools.cache
def updated(*dtypes):
    """Three updates of every rule: of parameters of a dtype, and of one in bfloat16."""

    def arrays(dtype, given):
        half = jnp.asarray(given["b"], jnp.bfloat16)
        return {"own": jnp.asarray(given["a"], dtype), "half": half}

    names = {f"{name} {dtype}": dtype for dtype in dtypes for name in RULES}
    params = {name: arrays(dtype, INIT) for name, dtype in names.items()}
    rules = {}
    for name in names:
        kind = name.partition(" ")[0]
        optimizer = getattr(glr.optim, kind)([{"params": ...}], **RULES[kind])
        rules[name] = optimizer.as_optax(params[name])
    states = {name: tx.init(params[name]) for name, tx in rules.items()}
    before, step = (params, states), together(rules)
    for t in range(3):
        grads = {name: arrays(dtype, GRADS[t]) for name, dtype in names.items()}
        params, states = step(grads, params, states)
    both = [
        {name: (params[name], states[name]) for name in names}
        for params, states in (before, (params, states))
    ]
    return Updated(*both, step._cache_size())


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
@each_rule
def test_parameters_and_slots_keep_their_dtype(name, dtype):
    wide = dtype == "float64"
    with jax.enable_x64(wide):
        run = updated("float64") if wide else updated("float32", "bfloat16")
    before, after = (found[f"{name} {dtype}"] for found in (run.before, run.after))
    slots = {str(leaf.dtype) for leaf in jax.tree.leaves(before[1].inner)}
    scalars = "float64" if wide else "float32"  # of a formula
    assert slots <= {dtype, "bfloat16", "int32", scalars}
    kinds = [jax.tree.map(lambda leaf: leaf.dtype, each) for each in (before, after)]
    assert kinds[0] == kinds[1]
    assert all(jnp.isfinite(value).all() for value in after[0].values())
    assert run.traces == 1


ZERO = {name: np.zeros((3, 4)) for name in NAMES}
POISONED = {**GRADS[1], "a": GRADS[1]["a"].copy()}
POISONED["a"][1, 2] = np.nan
NEGATIVE = [{name: -g for name, g in grads.items()} for grads in GRADS[:2]]
HAVE_DECAY = [name for name, keys in RULES.items() if "weight_decay" in keys]
# What PyTorch does too: a momentum, if any, goes on; these have none.
NO_MOMENTUM = {"Adagrad", "Adadelta", "Adafactor", "Rprop"}
LAZY = {"SparseAdam"}  # an untouched row
# A zero gradient is no direction to take a rate from: left alone, as in Apex.
NO_DECAY_OF_ZERO = {"LARS"}
NO_DECAY = {"weight_decay": 0.0, "lambd": 0.0}


@pytest.fixture(scope="module")
def after(by_hand):
    """From steps of given gradients, with other numbers, to the values after them."""

    def steps(*batches, **numbers):
        graph = by_hand.graph
        graph.load_state_dict(by_hand.start)
        for optimizer in graph.optimizers:
            for group in optimizer.param_groups:
                group.update({k: v for k, v in numbers.items() if k in group})
        found = after_each(batches, graph)
        assert graph.compiles.count == 1
        return found

    return steps


@pytest.fixture(scope="module")
def still(after):
    return after(ZERO, ZERO, **NO_DECAY)


@each_rule
def test_zero_gradients_alone_move_nothing(name, still):
    assert_same(of(name, still[-1]), {key: np.float32(INIT[key]) for key in NAMES})


@pytest.fixture(scope="module")
def decayed(after):
    return after(ZERO, lr=1e-3)


@pytest.mark.parametrize("name", HAVE_DECAY)
def test_weights_decay_without_gradients(name, decayed):
    """Coupled decay (L2) is a gradient of its own, decoupled decay needs none."""
    before = INIT["a"].astype(np.float32)
    towards_zero = np.sign(before - of(name, decayed[0])["a"]) == np.sign(before)
    assert towards_zero.all() != (name in NO_DECAY_OF_ZERO)


@pytest.fixture(scope="module")
def stopped(after):
    return after(GRADS[0], ZERO, **NO_DECAY)


@each_rule
def test_momentum_goes_on_when_gradients_stop(name, stopped):
    moving, later = (of(name, found)["a"] for found in stopped)
    assert (moving != later).all() == (name not in NO_MOMENTUM | LAZY | {"ASGD"})


@pytest.fixture(scope="module")
def poisoned(after):
    return after(GRADS[0], POISONED)


@each_rule
def test_nan_gradients_show(name, poisoned):
    found = of(name, poisoned[-1])
    assert np.isnan(found["a"][1, 2])
    mixing = {"LARS", "LAMB", "Adafactor", "Muon"}  # norms and products of the whole
    assert (np.isnan(found["a"]).sum() > 1) == (name in mixing)
    assert not np.isnan(found["b"]).any()


HAVE_MAXIMIZE = [name for name in RULES if name != "Muon"]


@pytest.fixture(scope="module")
def maximized():
    graph = every(ONE, rules=HAVE_MAXIMIZE, lr_sch=SCHEDULE, maximize=True)
    return after_each(NEGATIVE, graph, glr.Graph.eager)


@pytest.mark.parametrize("name", HAVE_MAXIMIZE)
def test_maximize_is_the_negative_gradient(name, maximized, eager):
    """Before the decay, which shrinks the weights all the same."""
    for up, down in zip(maximized, eager, strict=True):
        assert_same(of(name, up), of(name, down))
