"""Groups: which parameters they are given, and what they may hold."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from graphlr.optim import SGD, Adam, Optimizer
from tests.models import Blocks


@pytest.fixture
def net():
    return Blocks()


def test_a_parameter_in_two_groups_names_it_and_both(net):
    with pytest.raises(ValueError, match="more than one parameter group") as error:
        SGD(
            [{"params": net, "name": "all"}, {"params": net.classifier, "name": "head"}]
        )
    for part in ("classifier.kernel", "'all'", "'head'", "{'params': ...}"):
        assert part in str(error.value)


def test_an_exhausted_generator_is_an_error(net):
    parameters = (block.conv.kernel for block in net.features)
    list(parameters)
    with pytest.raises(ValueError, match="already exhausted"):
        SGD([{"params": parameters}])
    with pytest.raises(ValueError, match="empty parameter list"):
        SGD(iter([]))


def test_two_rests(net):
    with pytest.raises(ValueError, match="only one can"):
        SGD([{"params": ...}, {"params": ...}])


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
        SGD(bad(net))


def test_a_bad_selector_is_found_by_its_place_and_group(net):
    with pytest.raises(TypeError, match=r"params\[1\]\[0\] is 0\.5 ") as error:
        SGD([{"params": [net.classifier, [0.5]], "name": "head"}])
    assert error.value.__notes__ == ["in group 'head'"]
    group = SGD("**").param_groups[0]
    with pytest.raises(TypeError, match="params is 3 ") as error:
        group["params"] = 3
    assert error.value.__notes__ == ["in group 'group0'"]


def test_a_variable_named_twice_in_a_group_is_a_warning(net):
    with pytest.warns(
        UserWarning, match=r"'group0' .* twice: params\.0 is params\.1\."
    ):
        SGD([net.classifier.bias, net.classifier.bias])
    pair = ("bias", net.classifier.bias)
    twice = r"params\.bias is params\.1\.bias, params\.1\.kernel is params\.2\. .*leave"
    with pytest.warns(UserWarning, match=twice):
        SGD([pair, net.classifier, net.classifier.kernel])


# --- the dict-like group --------------------------------------------------------------


def test_groups_by_index_and_name():
    optimizer = SGD([{"params": "a.**", "name": "body"}, {"params": "b.**"}], lr=0.1)
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
        Adam("**", **{key: value})
    with pytest.raises(error, match=match) as raised:
        Adam([{"params": "**", "name": "head", key: value}])
    assert any("'head'" in note for note in raised.value.__notes__)
    optimizer = Adam("**")
    before = dict(optimizer.param_groups[0])
    with pytest.raises(error, match=match):
        optimizer.param_groups[0][key] = value
    assert dict(optimizer.param_groups[0]) == before


def test_unknown_keys_name_the_nearest():
    with pytest.raises(KeyError, match="did you mean 'lr_scale'"):
        SGD([{"params": "**", "lr_scal": 0.1}])
    with pytest.raises(KeyError, match="did you mean 'lr'"):
        SGD("**").param_groups[0]["lrr"] = 0.1
    with pytest.raises(TypeError, match="did you mean 'lr_scale'"):
        SGD("**", lr_scal=0.1)
    with pytest.raises(KeyError, match="no 'momentm'"):
        SGD("**").param_groups[0]["momentm"]


def test_adam_has_no_momentum():
    with pytest.raises(TypeError, match="no 'momentum': did you mean 'betas'"):
        Adam("**", lr=0.01, momentum=0.9)


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
        SGD([{"params": "**", key: 0.1}])


def test_groups_twice_positional_is_pythons_own_error():
    with pytest.raises(TypeError, match="multiple values for argument 'lr'"):
        SGD("a.**", [{"params": "b.**"}], lr=0.1)


def test_the_name_is_fixed():
    with pytest.raises(KeyError, match="fixed once made"):
        SGD("**").param_groups[0]["name"] = "other"


def test_several_values_at_once_are_all_or_none():
    group = SGD("**", lr=0.1).param_groups[0]
    with pytest.raises(ValueError, match="momentum"):
        group.update({"lr": 0.5, "momentum": -1.0})
    assert group["lr"] == 0.1
    group.update({"lr": 0.5, "momentum": 0.9})
    assert (group["lr"], group["momentum"]) == (0.5, 0.9)


def test_numbers_may_be_arrays_of_one():
    group = SGD("**", lr=np.float64(0.25), weight_decay=jnp.ones(()))
    assert group.param_groups[0]["lr"] == 0.25
    assert group.param_groups[0]["weight_decay"] == 1.0


def test_any_rule_has_its_own_keys():
    def rule(strength, power=2.0):
        return optax.scale(strength * power)

    with pytest.raises(
        ValueError, match=r"didn't specify a value of required.*strength"
    ):
        Optimizer("**", rule=rule)
    optimizer = Optimizer(
        [{"params": "a.**", "strength": 0.5}, {"params": "b.**"}],
        rule=rule,
        strength=1.0,
    )
    assert [g["strength"] for g in optimizer.param_groups] == [0.5, 1.0]
