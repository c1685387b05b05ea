"""What the Variables of a graph are for, and slots that follow their parameters."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from graphlr.optim import SGD, Adam
from graphlr.plan import check_unchanged, make_plan


class Net(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.body = nnx.Linear(2, 2, rngs=rngs)
        self.norm = nnx.BatchNorm(2, rngs=rngs)


@pytest.fixture
def net():
    return Net()


BODY, NORM = {"params": "body.*", "name": "body"}, {"params": "norm.*", "name": "norm"}


def frozen(group):
    return {**group, "frozen": True}


def paths(plan, variables):
    names = dict(zip(map(id, plan.modules.variables), plan.modules.paths, strict=True))
    return sorted(names[id(variable)] for variable in variables)


def test_every_variable_is_trained_or_carried_along(net):
    plan = make_plan({"m": net}, [SGD([BODY, frozen(NORM)])])
    assert paths(plan, plan.trained) == ["m.body.bias", "m.body.kernel"]
    assert paths(plan, plan.extras) == [
        "m.norm.bias", "m.norm.mean", "m.norm.scale", "m.norm.var"]  # fmt: skip
    assert plan.labels == [{"m.body.bias": "body", "m.body.kernel": "body"}]


def test_without_optimizer_everything_is_carried_along(net):
    plan = make_plan({"m": net}, [])
    assert plan.trained == []
    assert len(plan.extras) == 6


def test_each_optimizer_has_its_own(net):
    plan = make_plan({"m": net}, [SGD([NORM]), Adam([BODY])])
    assert [sorted(label) for label in plan.labels] == [
        ["m.norm.bias", "m.norm.scale"], ["m.body.bias", "m.body.kernel"]]  # fmt: skip
    assert [len(layout.slots) for layout in plan.layouts] == [0, 5]


def test_the_same_step_is_recognised(net):
    optimizer = Adam([BODY, NORM])
    plan = make_plan({"m": net}, [optimizer])
    optimizer.param_groups[0]["lr"] = 0.5
    assert make_plan({"m": net}, [optimizer]).asks_same_step(plan)
    optimizer.param_groups[0]["amsgrad"] = True
    assert not make_plan({"m": net}, [optimizer]).asks_same_step(plan)


def test_slots_follow_their_parameter_through_freezing_and_back(net):
    optimizer = Adam([BODY, NORM])
    plan = make_plan({"m": net}, [optimizer])
    optimizer.slots = [jnp.full(x.shape, 3, x.dtype) for x in optimizer.slots]
    optimizer.param_groups["norm"]["frozen"] = True
    plan = make_plan({"m": net}, [optimizer])
    named = plan.layouts[0].named(optimizer.slots)
    assert not any("norm" in key for key in named)
    assert {int(x.ravel()[0]) for x in named.values()} == {3}
    optimizer.param_groups["norm"]["frozen"] = False
    named = make_plan({"m": net}, [optimizer]).layouts[0].named(optimizer.slots)
    for key, x in named.items():
        assert int(np.ravel(x)[0]) == (0 if ".norm." in key else 3), key


def test_slots_follow_the_model_into_a_graph_that_calls_it_otherwise(net):
    """One optimizer in two graphs: `self.model` here and `self.net` there."""
    optimizer = Adam(net)
    make_plan({"model": net}, [optimizer])
    optimizer.slots = [jnp.full(x.shape, 3, x.dtype) for x in optimizer.slots]
    make_plan({"net": net}, [optimizer])
    assert {int(x.ravel()[0]) for x in optimizer.slots} == {3}


def test_slots_of_another_model_start_fresh():
    def planned(width):
        layer = nnx.Linear(width, 1, rngs=nnx.Rngs(0))
        return make_plan({"m": layer}, [optimizer])

    optimizer = Adam("**")
    planned(2)
    plan = planned(3)
    shapes = [kind.shape for kind in plan.layouts[0].types]
    assert [x.shape for x in optimizer.slots] == shapes
    optimizer.slots = [jnp.full(x.shape, 3, x.dtype) for x in optimizer.slots]
    planned(3)  # the same paths and shapes, and yet another model
    assert not any(x.any() for x in optimizer.slots)


@pytest.mark.parametrize("value", [jnp.arange(3), jnp.ones(2, bool), 3])
def test_what_has_no_gradient_must_be_frozen(value):
    holder = nnx.Dict(x=nnx.Param(value), y=nnx.Param(jnp.ones(1)))
    with pytest.raises(TypeError, match=r"m\.x is .*\{'params': 'm\.x', 'frozen': Tr"):
        make_plan({"m": holder}, [SGD("**")])
    groups = [{"params": "x", "frozen": True}, {"params": "y"}]
    assert make_plan({"m": holder}, [SGD(groups)]).names == ["m.y"]


def test_two_parameters_of_one_path_are_an_error():
    """Else one of them would take the other's place, and never train."""
    layer = nnx.Linear(2, 1, rngs=nnx.Rngs(0))
    other = nnx.Dict(b=nnx.Linear(2, 1, rngs=nnx.Rngs(1)))
    with pytest.raises(ValueError, match=r"m\.a\.b\.bias"):
        make_plan({"m": {"a.b": layer, "a": other}}, [SGD("**")])


def test_a_changed_model_is_named(net):
    plan = make_plan({"m": net}, [])
    check_unchanged(plan)
    net.body = nnx.Linear(2, 2, rngs=nnx.Rngs(1))
    with pytest.raises(ValueError, match=r"m\.body\S* was replaced.*new graph"):
        check_unchanged(plan)
