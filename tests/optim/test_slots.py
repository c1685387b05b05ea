"""Optimizer state between its flat list and its names."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from graphlr.optim import Optimizer
from graphlr.optim.slots import layout_of
from graphlr.optim.transforms.moments import scale_by_adam
from tests.models import Train, X, linear

PARAMS = {"m.a": jnp.ones(2), "m.b": jnp.ones(3), "m.c": jnp.ones(1)}


def state_of(rules, labels):
    """A multi_transform state whose leaves are all different, and its layout."""
    used = {group: rules[group] for group in set(labels.values())}
    tx = optax.multi_transform(used, labels)
    state = tx.init({path: PARAMS[path] for path in labels})
    leaves, tree = jax.tree.flatten(state)
    leaves = [
        jnp.arange(leaf.size).reshape(leaf.shape).astype(leaf.dtype) + 10 * i
        for i, leaf in enumerate(leaves)
    ]
    return leaves, layout_of(jax.tree.unflatten(tree, leaves), labels)


ONE = {"m.a": "g", "m.b": "g", "m.c": "g"}
TWO = {"m.a": "g", "m.b": "h", "m.c": "g"}


def adam(*groups):
    return {group: scale_by_adam() for group in groups}


@pytest.mark.parametrize(
    ("rules", "labels"),
    [
        (adam("g"), ONE),
        (adam("g", "h"), TWO),
        ({"g": optax.adamw(0.1)}, ONE),
        ({"g": optax.chain(scale_by_adam(amsgrad=True), optax.trace(0.9))}, ONE),
        ({"g": optax.chain(optax.trace(0.9), optax.trace(0.5))}, ONE),
        ({"g": optax.chain(optax.scale_by_adam(), optax.scale_by_adam())}, ONE),
        ({"g": optax.sgd(0.1), "h": scale_by_adam()}, TWO),
    ],
)
def test_there_and_back(rules, labels):
    leaves, layout = state_of(rules, labels)
    named = layout.named(leaves)
    assert named.keys() == layout.keys().keys()
    entries = sum(len(slot.keys) for slot in layout.slots)
    assert len(named) == entries  # no name twice
    for got, expected in zip(layout.flat(named, None), leaves, strict=True):
        np.testing.assert_array_equal(got, expected)
        assert got.dtype == expected.dtype
    for key, kind in layout.keys().items():
        assert (named[key].shape, named[key].dtype) == (kind.shape, kind.dtype)


def test_names_say_parameter_and_slot():
    _, layout = state_of(adam("g", "h"), TWO)
    assert sorted(layout.keys()) == [
        f"slots.{path}.{slot}"
        for path in PARAMS
        for slot in ("exp_avg", "exp_avg_sq", "steps")
    ]


def test_two_equal_states_in_a_chain_are_told_apart():
    chain = optax.chain(optax.trace(0.9), optax.trace(0.5))
    _, layout = state_of({"g": chain}, {"m.a": "g"})
    assert list(layout.keys()) == ["slots.m.a.trace", "slots.m.a.trace_1"]


@pytest.mark.parametrize(("before", "after"), [(ONE, TWO), (TWO, ONE)])
def test_groups_cut_differently_keep_every_slot(before, after):
    rules = adam("g", "h")
    leaves, old = state_of(rules, before)
    fresh, new = state_of(rules, after)
    named = old.named(leaves)
    moved = new.named(new.flat(named, fresh))
    assert moved.keys() == named.keys()
    for key, value in named.items():
        np.testing.assert_array_equal(moved[key], value)


def test_what_is_new_starts_fresh():
    rules = adam("g", "h")
    leaves, old = state_of(rules, {"m.a": "g"})
    fresh, new = state_of(rules, TWO)
    moved = new.named(new.flat(old.named(leaves), fresh))
    for key, value in new.named(fresh).items():
        expected = old.named(leaves).get(key, value)
        np.testing.assert_array_equal(moved[key], expected)


def test_a_number_that_a_group_shares():
    rules = {"g": optax.scale_by_adam(), "h": optax.scale_by_adam()}
    apart, two = state_of(rules, TWO)
    _, one = state_of(rules, ONE)
    named = two.named(apart)
    assert named["slots.m.a.count"] == named["slots.m.c.count"]
    assert named["slots.m.a.count"] != named["slots.m.b.count"]
    with pytest.raises(ValueError, match=r"count is one number.*m\.a has.*m\.b have"):
        one.flat(named, None)
    named["slots.m.b.count"] = named["slots.m.a.count"]
    assert (
        one.named(one.flat(named, None))["slots.m.b.count"] == named["slots.m.a.count"]
    )


def test_a_slot_of_another_shape_is_refused():
    """A model of another width must not get the old one's moments."""
    leaves, layout = state_of(adam("g"), {"m.a": "g"})
    named = {**layout.named(leaves), "slots.m.a.exp_avg": jnp.ones(7)}
    with pytest.raises(ValueError, match=r"m\.a\.exp_avg"):
        layout.flat(named, leaves)


def test_equal_layouts_are_interchangeable():
    assert state_of(adam("g"), ONE)[1] == state_of(adam("g"), ONE)[1]
    assert state_of(adam("g"), ONE)[1] != state_of(adam("g"), {"m.a": "g"})[1]


class Counting(NamedTuple):
    """A state of somebody else's, with a name that this package uses too."""

    steps: jax.Array


def test_a_users_rule_may_call_one_number_steps():
    tx = optax.GradientTransformation(
        lambda params: Counting(jnp.zeros((), jnp.int32)),
        lambda grads, state, params=None: (grads, Counting(state.steps + 1)),
    )
    graph = Train(linear(), Optimizer("**", rule=lambda: tx, lr=0.1))
    graph(X), graph(X)
    state = graph.state_dict()
    assert {k: int(v) for k, v in state.items() if k.startswith("slots.")} == {
        "slots.model.bias.steps": 2,
        "slots.model.kernel.steps": 2,
    }
    graph.load_state_dict(state)
