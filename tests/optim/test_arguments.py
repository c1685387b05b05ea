"""From a rule's signature and what the user gave to groups with every key."""

import jax.numpy as jnp
import optax
import pytest
from flax import nnx

from graphlr.optim.arguments import (
    REQUIRED,
    as_groups,
    bind,
    defaults_of,
    make_group,
    rule_of,
    signature_of,
)
from graphlr.optim.group_keys import COMMON
from tests.models import linear


def direction(power, decay=0.5, *, fast=False):
    if power < 0:
        raise ValueError(f"Invalid power: {power}")
    return optax.scale(power * decay)


RULE = rule_of(direction)
SIGNATURE = signature_of(RULE, lr=0.1)


def test_what_the_signature_of_a_rule_says():
    assert RULE.defaults == {"power": REQUIRED, "decay": 0.5, "fast": False}
    assert not RULE.takes_lr
    whole = rule_of(lambda momentum=0.9, *, lr: optax.sgd(lr, momentum))
    assert whole.defaults == {"momentum": 0.9}
    assert whole.takes_lr
    assert whole != RULE == rule_of(direction)


def test_a_rule_is_given_the_rate_only_if_it_takes_it():
    given = []
    rule_of(lambda a=1.0: given.append(a))({"a": 2.0}, 0.1)
    rule_of(lambda a=1.0, *, lr: given.append((a, lr)))({"a": 2.0}, 0.1)
    assert given == [2.0, (2.0, 0.1)]


def test_the_rules_keys_come_after_the_rate_and_before_those_of_every_group():
    names = [*SIGNATURE.parameters]
    assert names == ["params", "lr", "power", "decay", "fast", *COMMON]
    kinds = [p.kind for p in SIGNATURE.parameters.values()]
    assert kinds[:4] == [kinds[0]] * 4
    assert set(kinds[4:]) == {SIGNATURE.parameters["fast"].KEYWORD_ONLY}


@pytest.mark.parametrize(
    "make",
    [
        lambda params: None,
        lambda name: None,
        lambda optimizer: None,
        lambda members: None,
        lambda lr_scale: None,
    ],
)
def test_a_rule_may_not_take_a_name_that_groups_have(make):
    rule = rule_of(make)
    (name,) = rule.defaults
    with pytest.raises(TypeError, match=f"can't have a parameter '{name}'"):
        signature_of(rule, lr=0.1)


def test_what_nobody_gives_has_its_default():
    given = bind("Own", SIGNATURE, ("**",), {"decay": 0.25})
    assert given == {**defaults_of(SIGNATURE), "params": "**", "decay": 0.25}
    assert given["power"] is REQUIRED
    assert given["lr"] == 0.1
    assert bind("Own", SIGNATURE, ("**", 0.2, 3.0), {})["power"] == 3.0


def test_an_argument_too_many_or_unknown():
    with pytest.raises(TypeError, match="Own has no 'decya': did you mean 'decay'"):
        bind("Own", SIGNATURE, ("**",), {"decya": 1.0})
    with pytest.raises(TypeError, match=r"Own: .*All groups go into one list.*Own\(\["):
        bind("Own", SIGNATURE, ("**", 0.1, 1.0, 0.5, True), {})
    with pytest.raises(TypeError, match="multiple values for argument 'lr'"):
        bind("Own", SIGNATURE, ("**", 0.1), {"lr": 0.2})


LAYER = linear()


@pytest.mark.parametrize(
    "selector",
    [
        "**.bias",
        LAYER,
        LAYER.kernel,
        nnx.state(LAYER),
        ...,
        nnx.Param,
        {LAYER},
        lambda path, value: True,
        jnp.ones(2),
    ],
)
def test_one_selector_is_one_group(selector):
    (group,) = as_groups(selector)
    assert group.keys() == {"params"}
    assert group["params"] is selector


def test_a_list_is_of_groups_if_it_begins_with_one():
    groups = [{"params": "a"}, {"params": "b"}]
    assert as_groups(groups) == as_groups(iter(groups)) == groups
    assert as_groups(groups[0]) == groups[:1]
    assert as_groups(["a", "b"]) == [{"params": ["a", "b"]}]
    assert as_groups(iter([LAYER])) == [{"params": [LAYER]}]
    assert as_groups([]) == []


def group_of(**values):
    given = {"params": "**", "name": "body", **values}
    return make_group(RULE, defaults_of(SIGNATURE), given)


def test_a_group_has_every_key():
    group = group_of(power=2, lr=1)
    assert group.keys() == {*SIGNATURE.parameters, "name"}
    assert (group["power"], group["decay"], group["lr"]) == (2, 0.5, 1.0)


@pytest.mark.parametrize(
    ("values", "error", "match"),
    [
        ({}, ValueError, r"required optimization parameter power: give \{'power': "),
        ({"power": 1.0, "decay": "x"}, TypeError, "decay must be a number, not 'x'"),
        ({"power": 1.0, "fast": 1}, TypeError, "fast must be True or False, not 1"),
        ({"power": -1.0}, ValueError, r"Invalid power: -1\.0"),  # the rule's own check
        ({"power": 1.0, "lr": -1.0}, ValueError, "Invalid learning rate"),
    ],
)
def test_a_bad_value_names_its_group(values, error, match):
    with pytest.raises(error, match=match) as caught:
        group_of(**values)
    assert "in group 'body'" in caught.value.__notes__


def test_an_unknown_key_names_its_group():
    with pytest.raises(KeyError, match=r"group 'body' has no 'pwer'.*mean 'power'"):
        group_of(power=1.0, pwer=2.0)


def test_an_edit_is_checked_like_the_first_value():
    group = group_of(power=1.0)
    with pytest.raises(ValueError, match="Invalid power") as caught:
        group["power"] = -1.0
    assert "in group 'body'" in caught.value.__notes__
    assert group["power"] == 1.0
