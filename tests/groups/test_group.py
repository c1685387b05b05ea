"""Coverage, overlap, and what a group may hold."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import graphlr as glr
from graphlr.groups.group import ParamGroup
from graphlr.groups.labels import label_params
from graphlr.groups.paths import Param
from graphlr.modules.tree import Modules


class Block(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(2, 2, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(2, rngs=rngs)


class Pool(nnx.Module):
    """No parameters, like the tutorial's adaptive_avg_pool2d."""


class Net(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.features = nnx.List([Block(rngs), Block(rngs)])
        self.pool = Pool()
        self.classifier = nnx.Linear(2, 3, rngs=rngs)


@pytest.fixture
def net():
    return Net()


def labels(net, *groups, name="model"):
    """{path: group name} of a model held as `model`."""
    optimizer = glr.optim.SGD([*groups], lr=0.1)
    params = Modules({name: net}).params
    chosen = label_params(params, optimizer.param_groups)
    return {path: optimizer.param_groups[i].name for path, i in chosen.items()}


def test_rest_is_everything_not_named_elsewhere(net):
    chosen = labels(net, {"params": "**.bias"}, {"params": ...})
    assert {p for p, name in chosen.items() if name == "group0"} == {
        "model.classifier.bias",
        *(
            f"model.features.{i}.{name}.bias"
            for i in (0, 1)
            for name in ("conv", "norm")
        ),
    }


@pytest.mark.parametrize("whole", [lambda net: net, lambda net: ..., lambda net: "**"])
def test_a_selector_in_place_of_the_list_is_one_group(net, whole):
    optimizer = glr.optim.SGD(whole(net), lr=0.1)
    params = Modules({"model": net}).params
    assert set(label_params(params, optimizer.param_groups).values()) == {0}


def test_a_parameter_in_two_groups_names_it_and_both(net):
    with pytest.raises(ValueError, match="more than one parameter group") as error:
        glr.optim.SGD(
            [{"params": net, "name": "all"}, {"params": net.classifier, "name": "head"}]
        )
    for part in ("classifier.kernel", "'all'", "'head'", "{'params': ...}"):
        assert part in str(error.value)


def test_patterns_that_overlap(net):
    with pytest.raises(ValueError, match=r"model\.classifier\.bias.*'a'.*'b'"):
        labels(
            net,
            {"params": "classifier.*", "name": "a"},
            {"params": "**.bias", "name": "b"},
            {"params": ...},
        )


def test_uncovered_parameters_are_listed_with_the_line_to_add(net):
    with pytest.raises(ValueError, match="8 parameters are in no group") as error:
        labels(net, {"params": net.classifier})
    text = str(error.value)
    assert "model.features.0.conv.bias" in text
    assert "and 3 more" in text  # at most five paths
    assert "{'params': 'model.features.**', 'frozen': True}" in text


def test_one_uncovered_parameter_is_named_alone(net):
    with pytest.raises(ValueError, match=r"\{'params': 'model.classifier.bias'\}"):
        labels(net, {"params": net.features}, {"params": "classifier.kernel"})


def test_a_module_without_parameters_is_a_warning(net):
    with pytest.warns(UserWarning, match="'pool'.*holds no parameters"):
        labels(
            net,
            {"params": net.features},
            {"params": net.pool, "name": "pool"},
            {"params": net.classifier},
        )


def test_a_pattern_without_parameters_is_an_error_with_near_paths(net):
    with pytest.raises(ValueError, match="matches no parameter") as error:
        labels(net, {"params": "classifer.**"}, {"params": ...})
    assert "model.classifier.kernel" in str(error.value)


def test_a_misspelt_pattern_is_named_before_what_it_leaves_out(net):
    groups = [{"params": "featurs.**", "name": "body"}, {"params": "classifier.*"}]
    with pytest.raises(ValueError, match=r"'body': 'featurs\.\*\*' matches no param"):
        labels(net, *groups)
    with pytest.raises(ValueError, match=r"everything under it write 'features\.\*\*'"):
        labels(net, {"params": "features"}, {"params": ...})


def test_the_tutorials_misspelt_head_is_caught(net):
    """`model.classifer = Linear` adds a head beside the one that is used."""
    net.classifer = nnx.Linear(2, 10, rngs=nnx.Rngs(1))
    groups = [{"params": net.features}, {"params": net.classifier}]
    with pytest.raises(ValueError, match=r"no group.*model\.classifer\.bias"):
        labels(net, *groups)
    groups[1] = {"params": net.classifer}  # and where the groups have the typo too
    with pytest.raises(ValueError, match=r"no group.*model\.classifier\.bias"):
        labels(net, *groups)


def test_an_exhausted_generator_is_an_error(net):
    parameters = (block.conv.kernel for block in net.features)
    list(parameters)
    with pytest.raises(ValueError, match="already exhausted"):
        glr.optim.SGD([{"params": parameters}])
    with pytest.raises(ValueError, match="empty parameter list"):
        glr.optim.SGD(iter([]))


def test_a_generator_is_consumed_once_and_kept(net):
    optimizer = glr.optim.SGD(
        [{"params": (b.conv.kernel for b in net.features)}, {"params": ...}]
    )
    params = Modules({"model": net}).params
    first = label_params(params, optimizer.param_groups)
    assert first == label_params(params, optimizer.param_groups)
    assert sum(i == 0 for i in first.values()) == 2


def test_a_replaced_module_is_named(net):
    optimizer = glr.optim.SGD([{"params": net.classifier}, {"params": ...}])
    net.classifier = nnx.Linear(2, 5, rngs=nnx.Rngs(1))
    with pytest.raises(ValueError, match=r"no module of the graph has.*replaced"):
        label_params(Modules({"model": net}).params, optimizer.param_groups)


def test_two_rests(net):
    with pytest.raises(ValueError, match="only one can"):
        glr.optim.SGD([{"params": ...}, {"params": ...}])


def test_tied_weights_appear_once_under_their_first_path():
    class Tied(nnx.Module):
        def __init__(self):
            self.embed = nnx.Param(jnp.ones((3, 2)))
            self.head = self.embed

    assert labels(Tied(), {"params": ...}) == {"model.embed": "group0"}


@pytest.mark.parametrize(
    ("bad", "error", "match"),
    [
        (lambda net: jnp.ones(3), TypeError, "array of shape"),
        (lambda net: np.ones(3), TypeError, "array of shape"),
        (lambda net: {"**.bias", "**.scale"}, TypeError, "order changes between runs"),
        (lambda net: 3, TypeError, "selects no parameters"),
        (lambda net: [0.5], TypeError, "selects no parameters"),
        (lambda net: None, TypeError, "selects no parameters"),
        (lambda net: "", ValueError, r"'\*\*' selects every"),
        (lambda net: [net.classifier, {"params": ...}], TypeError, "list of their own"),
        (lambda net: [{"params": ...}, net], TypeError, "must be a dict"),
        (lambda net: [net, ...], TypeError, "stands alone"),
        (lambda net: [], ValueError, "empty parameter list"),
        (lambda net: [{"lr": 0.1}], KeyError, "params"),
    ],
)
def test_bad_params(net, bad, error, match):
    with pytest.raises(error, match=match):
        glr.optim.SGD(bad(net))


def test_a_bad_selector_is_found_by_its_place_and_group(net):
    with pytest.raises(TypeError, match=r"params\[1\]\[0\] is 0\.5 ") as error:
        glr.optim.SGD([{"params": [net.classifier, [0.5]], "name": "head"}])
    assert error.value.__notes__ == ["in group 'head'"]
    group = glr.optim.SGD("**").param_groups[0]
    with pytest.raises(TypeError, match="params is 3 ") as error:
        group["params"] = 3
    assert error.value.__notes__ == ["in group 'group0'"]


def test_a_variable_named_twice_in_a_group_is_a_warning(net):
    with pytest.warns(
        UserWarning, match=r"'group0' .* twice: params\.0 is params\.1\."
    ):
        glr.optim.SGD([net.classifier.bias, net.classifier.bias])
    pair = ("bias", net.classifier.bias)
    twice = r"params\.bias is params\.1\.bias, params\.1\.kernel is params\.2\. .*leave"
    with pytest.warns(UserWarning, match=twice):
        glr.optim.SGD([pair, net.classifier, net.classifier.kernel])


# --- the dict-like group --------------------------------------------------------------


def test_groups_by_index_and_name():
    optimizer = glr.optim.SGD(
        [{"params": "a.**", "name": "body"}, {"params": "b.**"}], lr=0.1
    )
    groups = optimizer.param_groups
    assert groups["body"] is groups[0]
    assert groups[-1].name == "group1"
    assert [g["lr"] for g in groups] == [0.1, 0.1]
    assert len(groups) == 2
    with pytest.raises(KeyError, match="did you mean 'body'"):
        groups["boddy"]
    with pytest.raises(ValueError, match="two groups are named 'body'"):
        optimizer.add_param_group({"params": "c.**", "name": "body"})


@pytest.mark.parametrize(
    ("key", "value", "error", "match"),
    [
        ("lr", -1.0, ValueError, r"Invalid learning rate: -1\.0"),
        ("lr", float("nan"), ValueError, "Invalid learning rate: nan"),
        ("lr", float("inf"), ValueError, "Invalid learning rate: inf"),
        ("lr", "0.1", TypeError, "lr"),
        ("lr", None, TypeError, "lr"),
        ("lr_scale", float("nan"), ValueError, "lr_scale"),
        ("lr_scale", [0.1], TypeError, "lr_scale must be a number"),
        ("lr_scale", "0.5", TypeError, "lr_scale must be a number"),
        ("lr_scale", True, TypeError, "lr_scale must be a number"),
        ("betas", (0.9, 1.0), ValueError, "Invalid beta parameter at index 1: 1.0"),
        ("betas", (-0.1, 0.9), ValueError, "Invalid beta parameter at index 0"),
        ("betas", 0.9, TypeError, "two numbers"),
        ("betas", (0.9,), ValueError, "two numbers"),
        ("eps", -1.0, ValueError, "Invalid epsilon value: -1.0"),
        ("weight_decay", -0.5, ValueError, "Invalid weight_decay value: -0.5"),
        ("amsgrad", "yes", TypeError, "True or False"),
        ("frozen", 1, TypeError, "True or False"),
        ("clip_grad_max_norm", -1.0, ValueError, "clip_grad_max_norm"),
        ("clip_grad_norm_type", 0, ValueError, "clip_grad_norm_type"),
        ("lr_sch", 0.1, TypeError, "schedule"),
    ],
)
def test_bad_values_raise_everywhere_and_change_nothing(key, value, error, match):
    with pytest.raises(error, match=match):
        glr.optim.Adam("**", **{key: value})
    with pytest.raises(error, match=match) as raised:
        glr.optim.Adam([{"params": "**", "name": "head", key: value}])
    assert any("'head'" in note for note in raised.value.__notes__)
    optimizer = glr.optim.Adam("**")
    before = dict(optimizer.param_groups[0])
    with pytest.raises(error, match=match):
        optimizer.param_groups[0][key] = value
    assert dict(optimizer.param_groups[0]) == before


def test_unknown_keys_name_the_nearest():
    with pytest.raises(KeyError, match="did you mean 'lr_scale'"):
        glr.optim.SGD([{"params": "**", "lr_scal": 0.1}])
    with pytest.raises(KeyError, match="did you mean 'lr'"):
        glr.optim.SGD("**").param_groups[0]["lrr"] = 0.1
    with pytest.raises(TypeError, match="did you mean 'lr_scale'"):
        glr.optim.SGD("**", lr_scal=0.1)
    with pytest.raises(KeyError, match="no 'momentm'"):
        glr.optim.SGD("**").param_groups[0]["momentm"]


def test_adam_has_no_momentum():
    with pytest.raises(TypeError, match="no 'momentum': did you mean 'betas'"):
        glr.optim.Adam("**", lr=0.01, momentum=0.9)


@pytest.mark.parametrize(
    ("key", "ours"),
    [
        ("learning_rate", "lr"),
        ("lr_mult", "lr_scale"),
        ("requires_grad", "frozen"),
        ("wd", "weight_decay"),
    ],
)
def test_keys_of_other_libraries_are_translated(key, ours):
    with pytest.raises(KeyError, match=f"no '{key}': did you mean '{ours}'"):
        glr.optim.SGD([{"params": "**", key: 0.1}])


def test_groups_twice_positional_is_pythons_own_error():
    with pytest.raises(TypeError, match="multiple values for argument 'lr'"):
        glr.optim.SGD("a.**", [{"params": "b.**"}], lr=0.1)


def test_the_name_is_fixed():
    with pytest.raises(KeyError, match="fixed once made"):
        glr.optim.SGD("**").param_groups[0]["name"] = "other"


def test_several_values_at_once_are_all_or_none():
    group = glr.optim.SGD("**", lr=0.1).param_groups[0]
    with pytest.raises(ValueError, match="momentum"):
        group.update({"lr": 0.5, "momentum": -1.0})
    assert group["lr"] == 0.1
    group.update({"lr": 0.5, "momentum": 0.9})
    assert (group["lr"], group["momentum"]) == (0.5, 0.9)


def test_numbers_may_be_arrays_of_one():
    group = glr.optim.SGD("**", lr=np.float64(0.25), weight_decay=jnp.ones(()))
    assert group.param_groups[0]["lr"] == 0.25
    assert group.param_groups[0]["weight_decay"] == 1.0


def test_label_params_counts_groups_not_names():
    params = [Param("m.a", ("a",), None)]
    groups = [ParamGroup({"params": "a", "name": "same"}, lambda v, _: dict(v))]
    assert label_params(params, groups) == {"m.a": 0}


def test_any_rule_has_its_own_keys():
    def rule(strength, power=2.0):
        return optax.scale(strength * power)

    with pytest.raises(
        ValueError, match=r"didn't specify a value of required.*strength"
    ):
        glr.optim.Optimizer("**", rule=rule)
    optimizer = glr.optim.Optimizer(
        [{"params": "a.**", "strength": 0.5}, {"params": "b.**"}],
        rule=rule,
        strength=1.0,
    )
    assert [g["strength"] for g in optimizer.param_groups] == [0.5, 1.0]
