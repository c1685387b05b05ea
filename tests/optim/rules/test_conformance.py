"""What every rule must do alike, whatever its formula: a table of all of them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import graphlr as glr
from graphlr.optim.arguments import rule_of

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
SHAPES = {"a": (3, 4), "b": (4, 4), "c": (3, 4), "idle": (2, 2)}
INIT = {name: RNG.normal(size=shape) for name, shape in SHAPES.items()}
INIT["c"] = INIT["a"]
GRADS = [
    {name: RNG.normal(size=shape) for name, shape in SHAPES.items()} for _ in range(8)
]


class Model(nnx.Module):
    def __init__(self):
        for name, value in INIT.items():
            setattr(self, name, nnx.Param(jnp.asarray(value, jnp.float32)))

    def values(self):
        return {name: np.asarray(getattr(self, name).get_value()) for name in SHAPES}


class Graph(glr.Graph):
    """The loss sum(w * g) has the gradient g."""

    def __init__(self, optimizer, lr_sch=None):
        super().__init__()
        self.model = Model()
        self.add_optimizer(optimizer, lr_sch=lr_sch)

    def build(self, grads):
        used = {name: getattr(self.model, name) * g for name, g in grads.items()}
        self.backward(sum(product.sum() for product in used.values()))


def make(groups, name, lr_sch=None):
    optimizer = getattr(glr.optim, name)(groups, **RULES[name])
    return Graph(optimizer, lr_sch), optimizer


def grads_at(t, names=SHAPES, dtype=np.float32):
    return {name: GRADS[t][name].astype(dtype) for name in names}


def one_group():
    return [{"params": ["a", "b", "c"]}, {"params": "idle", "frozen": True}]


def three_groups():
    return [*({"params": name} for name in "abc"), {"params": ..., "frozen": True}]


def assert_close(got, expected, rtol=1e-5):
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


@each_rule
def test_one_group_or_three_scheduled_or_by_hand(name):
    schedule = glr.optim.lr_scheduler.StepLR(2, 0.5)
    scheduled, _ = make(one_group(), name, schedule)
    by_hand, optimizer = make(three_groups(), name)
    base = RULES[name]["lr"]
    for t in range(4):
        scheduled(grads_at(t))
        for group in optimizer.param_groups:
            group["lr"] = schedule(base, t)
        by_hand(grads_at(t))
        assert_close(by_hand.model.values(), scheduled.model.values(), 1e-6)
    after = scheduled.model.values()
    np.testing.assert_array_equal(after["idle"], INIT["idle"].astype(np.float32))
    for trained in "abc":
        assert np.abs(after[trained] - INIT[trained]).min() > 0
    change_every_number(optimizer)
    by_hand(grads_at(4))
    assert scheduled.compiles.count == by_hand.compiles.count == 1


def change_every_number(optimizer):
    def smaller(value):
        if isinstance(value, tuple):
            return tuple(map(smaller, value))
        return value * 0.9 if isinstance(value, float) else value

    group = optimizer.param_groups[0]
    for key in rule_of(optimizer.rule).defaults:
        group[key] = group[key] * 2 if key == "d" else smaller(group[key])


@each_rule
def test_saved_by_name_and_restored_goes_on_bit_for_bit(name):
    graph, resumed = (make(three_groups(), name)[0] for _ in range(2))
    for t in range(2):
        graph(grads_at(t))
    saved = graph.state_dict()
    for t in range(2, 5):
        graph(grads_at(t))
    resumed.load_state_dict(saved)
    for t in range(2, 5):
        resumed(grads_at(t))
    for key, value in graph.state_dict().items():
        np.testing.assert_array_equal(resumed.state_dict()[key], value, key)


@each_rule
def test_jitted_equals_eager(name):
    graph, eager = (make(one_group(), name)[0] for _ in range(2))
    for t in range(2):
        graph(grads_at(t))
        eager.eager(grads_at(t))
    assert_close(eager.model.values(), graph.model.values())


@each_rule
def test_a_parameter_unfrozen_late_has_a_first_step_of_its_own(name):
    groups = [{"params": ["a", "b"]}, {"params": ["c", "idle"], "frozen": True}]
    graph, optimizer = make(groups, name)
    same = {**grads_at(0), "c": grads_at(0)["a"]}  # a and c are equal, too
    graph(same)
    first = graph.model.values()["a"]
    graph(same)
    optimizer.param_groups[1]["frozen"] = False
    graph(same)
    np.testing.assert_allclose(graph.model.values()["c"], first, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
@each_rule
def test_parameters_and_slots_keep_their_dtype(name, dtype):
    with jax.enable_x64(dtype == "float64"):
        params = {key: jnp.asarray(INIT[key], dtype) for key in "ab"}
        params["half"] = jnp.asarray(INIT["c"], jnp.bfloat16)  # beside the others
        optimizer = getattr(glr.optim, name)([{"params": ...}], **RULES[name])
        tx = optimizer.as_optax(params)
        update, state = jax.jit(tx.update), tx.init(params)
        kinds = jax.tree.map(lambda leaf: leaf.dtype, (params, state))
        slots = {str(kind) for kind in jax.tree.leaves(kinds[1].inner)}
        wide = "float64" if dtype == "float64" else "float32"  # scalars of a formula
        assert slots <= {dtype, "bfloat16", "int32", wide}
        for t in range(3):
            grads = grads_at(t, "abc")
            grads["half"] = grads.pop("c")
            grads = {key: jnp.asarray(g, params[key].dtype) for key, g in grads.items()}
            updates, state = update(grads, state, params)
            params = optax.apply_updates(params, updates)
        assert jax.tree.map(lambda leaf: leaf.dtype, (params, state)) == kinds
        assert update._cache_size() == 1
        assert all(jnp.isfinite(value).all() for value in params.values())


def after_steps(name, grads, **keys):
    """The value of one parameter after steps of given gradients."""
    params = {"a": jnp.asarray(INIT["a"], jnp.float32)}
    keys = {**RULES[name], **keys}
    tx = getattr(glr.optim, name)([{"params": ...}], **keys).as_optax(params)
    state = tx.init(params)
    for g in grads:
        updates, state = tx.update({"a": jnp.asarray(g, jnp.float32)}, state, params)
        params = optax.apply_updates(params, updates)
    return np.asarray(params["a"])


ZERO, G = np.zeros(SHAPES["a"]), GRADS[0]["a"]
HAVE_DECAY = [name for name, keys in RULES.items() if "weight_decay" in keys]
# What PyTorch does too: a momentum, if any, goes on; these have none.
NO_MOMENTUM = {"Adagrad", "Adadelta", "Adafactor", "Rprop"}
LAZY = {"SparseAdam"}  # an untouched row
# A zero gradient is no direction to take a rate from: left alone, as in Apex.
NO_DECAY_OF_ZERO = {"LARS"}


@each_rule
def test_zero_gradients_alone_move_nothing(name):
    no_decay = {"weight_decay": 0.0} if name in HAVE_DECAY else {}
    no_decay |= {"lambd": 0.0} if name == "ASGD" else {}
    still = after_steps(name, [ZERO, ZERO], **no_decay)
    np.testing.assert_array_equal(still, INIT["a"].astype(np.float32))


@pytest.mark.parametrize("name", HAVE_DECAY)
def test_weights_decay_without_gradients(name):
    """Coupled decay (L2) is a gradient of its own, decoupled decay needs none."""
    before = INIT["a"].astype(np.float32)
    after = after_steps(name, [ZERO], lr=1e-3)
    towards_zero = np.sign(before - after) == np.sign(before)
    assert towards_zero.all() != (name in NO_DECAY_OF_ZERO)


@each_rule
def test_momentum_goes_on_when_gradients_stop(name):
    no_decay = {"weight_decay": 0.0} if name in HAVE_DECAY else {}
    no_decay |= {"lambd": 0.0} if name == "ASGD" else {}
    goes_on = (
        after_steps(name, [G], **no_decay) != after_steps(name, [G, ZERO], **no_decay)
    ).all()
    assert goes_on == (name not in NO_MOMENTUM | LAZY | {"ASGD"})


@each_rule
def test_nan_gradients_show(name):
    poisoned = G.copy()
    poisoned[1, 2] = np.nan
    after = after_steps(name, [G, poisoned])
    assert np.isnan(after[1, 2])
    mixing = {"LARS", "LAMB", "Adafactor", "Muon"}  # norms and products of the whole
    assert (np.isnan(after).sum() > 1) == (name in mixing)


@pytest.mark.parametrize("name", [name for name in RULES if name != "Muon"])
def test_maximize_is_the_negative_gradient(name):
    """Before the decay, which shrinks the weights all the same."""
    grads = [G, GRADS[1]["a"]]
    down = after_steps(name, grads)
    up = after_steps(name, [-g for g in grads], maximize=True)
    np.testing.assert_array_equal(up, down)
