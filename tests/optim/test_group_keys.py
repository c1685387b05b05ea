"""What the keys of a group may hold, and what they become."""

import jax.numpy as jnp
import numpy as np
import pytest

from graphlr.optim.group_keys import COMMON, check_number, check_value
from graphlr.optim.lr_scheduler import StepLR, TableLR


@pytest.mark.parametrize("value", [1, 1.0, np.float32(1), np.array(1.0), jnp.ones(())])
def test_every_kind_of_number_becomes_a_float(value):
    number = check_number("lr", value)
    assert (type(number), number) == (float, 1.0)


@pytest.mark.parametrize("value", [True, "1", [1.0], np.ones(1), None, {}, 1j])
def test_other_things_are_no_numbers(value):
    with pytest.raises(TypeError, match="weight_decay must be a number"):
        check_number("weight_decay", value)


@pytest.mark.parametrize("key", ["lr", "momentum", "weight_decay", "eps"])
def test_zero_is_allowed_and_less_is_not(key):
    assert check_number(key, 0) == 0.0
    with pytest.raises(ValueError, match=r"-1e-09.*at least 0.*for example"):
        check_number(key, -1e-9)


@pytest.mark.parametrize("key", ["lr_scale", "dampening"])
def test_some_numbers_may_be_negative(key):
    assert check_number(key, -2) == -2.0


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("lr", np.float64(0.5), 0.5),
        ("lr", [0.3, 0.1], TableLR([0.3, 0.1])),
        ("lr_sch", None, None),
        ("lr_sch", StepLR(2), StepLR(2)),
        ("betas", [0, np.float32(0.5)], (0.0, 0.5)),
        ("betas", np.array([0.5, 0.75]), (0.5, 0.75)),
        ("clip_grad_max_norm", None, None),
        ("clip_grad_max_norm", 1, 1.0),
        ("clip_grad_norm_type", "inf", float("inf")),
        ("clip_grad_norm_type", 3, 3.0),
        ("frozen", np.bool_(True), True),
    ],
)
def test_values_are_normalised(key, value, expected):
    got = check_value(key, value, COMMON.get(key))
    assert type(got) is type(expected)
    assert got == expected


def test_groups_in_place_of_the_learning_rate():
    """`SGD(some_parameters, groups)`, where `lr` comes second."""
    with pytest.raises(
        TypeError, match=r"lr is a list of groups, .* one list.*SGD\(\["
    ):
        check_value("lr", [{"params": "b.**"}], 0.1)


def test_the_kind_of_a_rules_own_key_is_told_by_its_default():
    assert check_value("power", 2, 1.0) == 2.0
    assert isinstance(check_value("power", 2, 1.0), float)
    assert check_value("pair", [1, 2], (0.5, 0.5)) == (1.0, 2.0)
    assert check_value("mode", "fast", "slow") == "fast"
    with pytest.raises(TypeError, match="flag must be True or False"):
        check_value("flag", 1.0, False)
