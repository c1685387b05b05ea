"""Every key of a state is unlike every other, whatever attributes are called."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import graphlr as glr
from graphlr import keys
from graphlr.optim import SGD, Optimizer
from tests.models import assert_same, linear, state_of

WORDS = [
    "model",
    "scaler",
    "ema",
    "slots",
    "groups",
    "skipped",
    "step",
    "self",
    "taken",
]
PATHS = [
    ".".join(words) for n in (1, 2, 3) for words in itertools.product(WORDS, repeat=n)
]
OWN = [
    keys.LOSS_SCALE,
    keys.GOOD_STEPS,
    keys.SKIPPED,
    keys.SKIPPED_IN_A_ROW,
    keys.AVERAGES_TAKEN,
    *keys.steps(1),
    *keys.steps(2),
]


def test_no_two_things_have_one_key():
    variables = [keys.variable(path) for path in PATHS]
    averages = [keys.average(path) for path in PATHS]
    fields = [keys.field("head", name) for name in ("lr", keys.MEMBERS)]
    every = [*variables, *averages, *fields, *OWN]
    assert len(set(every)) == len(every)
    assert not any(map(keys.is_own, variables))
    assert all(map(keys.is_own, [*averages, *fields, *OWN]))


def test_averages_say_whose_they_are():
    for path in PATHS:
        assert keys.path_of_average(keys.average(path)) == path
    others = [*map(keys.variable, PATHS), *OWN]
    assert {keys.path_of_average(key) for key in others} == {None}


class Named(glr.Graph):
    """Every attribute has a name that the library uses for something of its own."""

    def __init__(self, start=1.0):
        super().__init__()
        self.scaler = nnx.Dict(scale=nnx.Param(jnp.full(4, start)))
        self.ema, self.slots = (
            nnx.Dict(momentum=nnx.Param(jnp.full(4, start))) for _ in range(2)
        )
        self.groups = {"head": nnx.Dict(lr=nnx.Param(jnp.ones(())))}
        self.taken = nnx.Param(jnp.ones(()))
        groups = [{"params": ..., "name": "head"}]
        self.add_optimizer(SGD(groups, lr=0.1, momentum=0.9))
        self.set_grad_scaler(glr.GradScaler(init_scale=8.0))
        self.config.ema_decay = 0.5

    def build(self, x):
        y = x * self.scaler["scale"] + self.ema["momentum"] * self.slots["momentum"]
        loss = (y**2).mean() * self.taken * self.groups["head"]["lr"]
        self.backward(loss)
        return loss


X = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)


@pytest.fixture(scope="module")
def named():
    """Such a graph after two steps."""
    graph = Named()
    graph(X), graph(X)
    return graph


def test_attributes_may_be_called_like_the_librarys_own(named):
    other = Named(start=2.0)
    state = named.state_dict()
    assert float(state["scaler.scale"]) == 8.0
    assert state["self.scaler.scale"].shape == (4,)
    assert float(state["groups.head.lr"]) == 0.1
    assert state["self.groups.head.lr"].shape == ()
    other.load_state_dict(state)
    assert_same(state_of(other), {key: np.array(x) for key, x in state.items()})
    assert [float(named(X)) for _ in range(2)] == [float(other(X)) for _ in range(2)]
    assert float(named.ema_state["taken"]) == float(other.ema_state["taken"])


def test_an_exported_step_keeps_them_apart_too(named, tmp_path):
    named.export(tmp_path / "named.zip")
    exported = glr.export.load(tmp_path / "named.zip")
    assert float(exported(X)) == float(named(X))
    assert_same(state_of(exported), state_of(named))


def test_groups_of_several_optimizers_stay_apart_whatever_they_are_called():
    class Two(glr.Graph):
        def __init__(self):
            super().__init__()
            self.a, self.b = linear(), linear()
            first = [{"params": "a.kernel", "name": "head"}, {"params": "a.bias"}]
            second = [
                {"params": "b.kernel", "name": "head"},
                {"params": "b.bias", "name": "optimizer0.head"},
            ]
            self.add_optimizer(SGD(first, lr=0.1))
            self.add_optimizer(SGD(second, lr=0.2))

    assert Two().lr == {
        "optimizer0.head": 0.1,
        "group1": 0.1,
        "optimizer1.head": 0.2,
        "optimizer1.optimizer0.head": 0.2,
    }


def test_a_rule_can_not_have_a_number_that_a_state_has_another_use_for():
    def rule(members=0.5):
        raise NotImplementedError

    with pytest.raises(TypeError, match="can't have a parameter 'members'"):
        Optimizer("**", rule=rule)
