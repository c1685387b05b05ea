"""What the Variables of a graph are for; planning changes nothing."""

import jax.numpy as jnp
import pytest
from flax import nnx

from graphlr.optim import SGD, Adam
from graphlr.step.plan import check_unchanged, make_plan
from tests.models import linear


@pytest.fixture
def net():
    return nnx.Dict(body=linear(2, 2), norm=nnx.BatchNorm(2, rngs=nnx.Rngs(0)))


BODY, NORM = {"params": "body.*", "name": "body"}, {"params": "norm.*", "name": "norm"}


def frozen(group):
    return {**group, "frozen": True}


def paths(plan, variables):
    return sorted(map(plan.path_of, variables))


def test_every_variable_is_trained_or_carried_along(net):
    plan = make_plan({"m": net}, [SGD([BODY, frozen(NORM)])])
    assert paths(plan, plan.trained) == ["m.body.bias", "m.body.kernel"]
    assert paths(plan, plan.extras) == [
        "m.norm.bias", "m.norm.mean", "m.norm.scale", "m.norm.var"]  # fmt: skip
    (planned,) = plan.optimizers
    assert planned.labels == {"m.body.bias": "body", "m.body.kernel": "body"}
    assert plan.group_of("m.body.bias") == "body"


def test_without_optimizer_everything_is_carried_along(net):
    plan = make_plan({"m": net}, [])
    assert plan.trained == []
    assert len(plan.extras) == 6


def test_each_optimizer_has_its_own(net):
    plan = make_plan({"m": net}, [SGD([NORM]), Adam([BODY])])
    assert [sorted(planned.labels) for planned in plan.optimizers] == [
        ["m.norm.bias", "m.norm.scale"], ["m.body.bias", "m.body.kernel"]]  # fmt: skip
    assert [len(slots.layout.slots) for slots in plan.slot_plans] == [0, 5]


def test_the_same_step_is_recognised(net):
    optimizer = Adam([BODY, NORM])
    plan = make_plan({"m": net}, [optimizer])
    optimizer.param_groups[0]["lr"] = 0.5
    assert make_plan({"m": net}, [optimizer]).asks_same_step(plan)
    optimizer.param_groups[0]["amsgrad"] = True
    assert not make_plan({"m": net}, [optimizer]).asks_same_step(plan)


def test_planning_changes_nothing():
    holder = nnx.Dict(x=nnx.Param(1.0))
    optimizer = Adam("**")
    plan = make_plan({"m": holder}, [optimizer])
    assert plan.names == ["m.x"]
    assert holder.x.get_value() == 1.0
    assert isinstance(holder.x.get_value(), float)
    assert (optimizer.adopted, optimizer.held.slots) == (None, [])


@pytest.mark.parametrize("value", [jnp.arange(3), jnp.ones(2, bool), 3])
def test_what_has_no_gradient_must_be_frozen(value):
    holder = nnx.Dict(x=nnx.Param(value), y=nnx.Param(jnp.ones(1)))
    with pytest.raises(TypeError, match=r"m\.x is .*\{'params': 'm\.x', 'frozen': Tr"):
        make_plan({"m": holder}, [SGD("**")])
    groups = [{"params": "x", "frozen": True}, {"params": "y"}]
    assert make_plan({"m": holder}, [SGD(groups)]).names == ["m.y"]


def test_two_parameters_of_one_path_are_an_error():
    """Otherwise one of them would take the other's place, and never train."""
    with pytest.raises(ValueError, match=r"m\.a\.b\.bias"):
        make_plan({"m": {"a.b": linear(), "a": nnx.Dict(b=linear())}}, [SGD("**")])


def test_a_changed_model_is_named(net):
    plan = make_plan({"m": net}, [])
    check_unchanged(plan)
    net.body = linear(2, 2)
    with pytest.raises(ValueError, match=r"m\.body\S* was replaced.*new graph"):
        check_unchanged(plan)
