"""Slots follow their parameters, whatever groups they are in."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from graphlr.modules.tree import Modules
from graphlr.optim import Adam
from tests.models import linear


def planned(optimizer, attributes, frozen=""):
    """The slots for every parameter whose path has no `frozen` in it."""
    params = Modules(attributes).params
    trained = {p.path: p.value for p in params if not frozen or frozen not in p.path}
    groups = optimizer.param_groups
    labels = {
        p.path: next(group.name for group in groups if group.selector(p))
        for p in params
        if p.path in trained
    }
    return optimizer.plan_slots(labels, trained)


def adopt(optimizer, attributes, **keys):
    """What an optimizer holds, by key, once it trains these."""
    plan = planned(optimizer, attributes, **keys)
    optimizer.adopt(plan, optimizer.slots_for(plan))
    return plan.layout.named(optimizer.held.slots)


def fill(optimizer, value):
    """Set every slot to a value, as if training had."""
    held = optimizer.held
    held.slots = [jnp.full(x.shape, value, x.dtype) for x in held.slots]


GROUPS = [{"params": "body.*", "name": "body"}, {"params": "head.*", "name": "head"}]


@pytest.fixture
def net():
    return nnx.Dict(body=linear(2, 2), head=linear())


def test_a_parameter_that_comes_back_starts_fresh_and_others_go_on(net):
    optimizer = Adam(GROUPS)
    adopt(optimizer, {"m": net})
    fill(optimizer, 3)
    named = adopt(optimizer, {"m": net}, frozen="head")
    assert not any("head" in key for key in named)
    assert {int(x.ravel()[0]) for x in named.values()} == {3}
    for key, x in adopt(optimizer, {"m": net}).items():
        assert int(np.ravel(x)[0]) == (0 if ".head." in key else 3), key


def test_slots_follow_the_model_into_a_graph_that_calls_it_otherwise():
    """One optimizer in two graphs: `self.model` here and `self.net` there."""
    layer = linear()
    optimizer = Adam(layer)
    adopt(optimizer, {"model": layer})
    fill(optimizer, 3)
    assert {int(x.ravel()[0]) for x in adopt(optimizer, {"net": layer}).values()} == {3}


def test_slots_of_another_model_start_fresh():
    optimizer = Adam("**")
    adopt(optimizer, {"m": linear(2)})
    named = adopt(optimizer, {"m": linear(3)})
    assert named["slots.m.kernel.exp_avg"].shape == (3, 1)
    fill(optimizer, 3)
    # the same paths and shapes, and yet another model
    assert not any(x.any() for x in adopt(optimizer, {"m": linear(3)}).values())


def test_planning_again_for_the_same_gives_the_same():
    layer, optimizer = linear(), Adam("**")
    adopt(optimizer, {"m": layer})
    assert planned(optimizer, {"m": layer}) is optimizer.adopted
    assert planned(optimizer, {"m": linear()}) is not optimizer.adopted


def test_planning_and_asking_change_nothing(net):
    optimizer = Adam(GROUPS)
    adopt(optimizer, {"m": net})
    fill(optimizer, 3)
    before = optimizer.adopted, list(optimizer.held.slots)
    plan = planned(optimizer, {"m": net}, frozen="head")
    assert len(optimizer.slots_for(plan)) < len(before[1])
    assert optimizer.adopted is before[0]
    assert all(a is b for a, b in zip(optimizer.held.slots, before[1], strict=True))
