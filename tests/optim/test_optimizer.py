"""Groups of an optimizer and its numbers."""

import gc
import weakref

import jax
import jax.numpy as jnp
import optax
import pytest

from graphlr.optim import SGD, Adam, AdamW, Optimizer
from tests.models import linear


def test_defaults_fill_what_a_group_leaves_out():
    optimizer = SGD(
        [{"params": "a", "lr": 0.5}, {"params": "b", "momentum": 0.0}],
        lr=0.1, momentum=0.9, lr_scale=0.5, frozen=True,
    )  # fmt: skip
    a, b = optimizer.param_groups
    assert (a["lr"], a["momentum"], b["lr"], b["momentum"]) == (0.5, 0.9, 0.1, 0.0)
    assert all(g["lr_scale"] == 0.5 and g["frozen"] for g in (a, b))


def test_a_group_of_another_class_has_that_classes_defaults_and_shared_keys():
    optimizer = SGD(
        [{"params": "a", "optimizer": AdamW, "eps": 1e-3}, {"params": "b"}],
        lr=0.1, momentum=0.9, weight_decay=0.5, clip_grad_max_norm=2.0,
    )  # fmt: skip
    group = optimizer.param_groups[0]
    assert "momentum" not in group
    got = [group[k] for k in ("lr", "eps", "weight_decay", "clip_grad_max_norm")]
    assert got == [0.1, 1e-3, 0.01, 2.0]
    with pytest.raises(KeyError, match="no 'momentum'"):
        SGD([{"params": "a", "optimizer": AdamW, "momentum": 0.9}])
    with pytest.raises(ValueError, match="Invalid beta"):
        group["betas"] = (1.0, 0.5)


def test_the_callers_groups_are_left_alone():
    given = [{"params": "a", "optimizer": Adam}, {"params": "b"}]
    SGD(given)
    assert given == [{"params": "a", "optimizer": Adam}, {"params": "b"}]


@pytest.mark.parametrize(
    ("group", "error", "match"),
    [
        ("b", TypeError, "must be a dict"),
        ({"lr": 0.1}, KeyError, "group1.*add {.params"),
        ({"params": "b", "name": "group0"}, ValueError, "two groups are named"),
        ({"params": "b", "lr": -1}, ValueError, "Invalid learning rate"),
        ({"params": "b", "lrr": 1}, KeyError, "did you mean 'lr'"),
    ],
)
def test_a_bad_group_is_not_added(group, error, match):
    optimizer = SGD("a", lr=0.1)
    with pytest.raises(error, match=match):
        optimizer.add_param_group(group)
    assert len(optimizer.param_groups) == 1
    assert optimizer.lr() == {"group0": 0.1}


def test_a_variable_in_an_added_group_twice():
    layer = linear(2, 2)
    optimizer = SGD(layer)
    with pytest.raises(ValueError, match="more than one parameter group: kernel"):
        optimizer.add_param_group({"params": layer.kernel})


def test_scale_lr_reaches_schedules_too():
    optimizer = SGD([{"params": "a"}, {"params": "b", "lr": [0.4, 0.2]}], lr=0.1)
    optimizer.scale_lr(0.5)
    assert optimizer.lr(0) == pytest.approx({"group0": 0.05, "group1": 0.2})
    a, b = optimizer.param_groups
    assert (a["lr"], a["lr_scale"], b["lr_scale"]) == (0.05, 1.0, 0.5)
    assert optimizer.lr(9) == pytest.approx({"group0": 0.05, "group1": 0.1})
    for bad in (float("nan"), "2", None):
        with pytest.raises((TypeError, ValueError)):
            optimizer.scale_lr(bad)
    assert optimizer.lr(0)["group0"] == pytest.approx(0.05)


def test_numbers_are_single_and_under_x64_double():
    optimizer = Adam("**", lr=0.1)
    assert optimizer.numbers.dtype == jnp.float32
    with jax.enable_x64(True):
        assert optimizer.numbers.dtype == jnp.float64
        assert 0.1 in optimizer.numbers.tolist()
    assert optimizer.numbers.dtype == jnp.float32


def test_repr_shows_groups_and_rates():
    optimizer = SGD([{"params": "a.**", "name": "body", "lr_scale": 0.5}], lr=0.1)
    assert repr(optimizer) == "SGD(\n  body: 'a.**', lr 0.05\n)"


def test_an_optimizer_that_is_gone_leaves_nothing_in_memory():
    """A sweep makes thousands, each with a rule that closes over something large."""

    def trial():
        large = jnp.zeros(8)
        Optimizer("**", rule=lambda b=0.9: (large, optax.scale_by_lion(b))[1], lr=1e-4)
        return weakref.ref(large)

    kept = [trial() for _ in range(3)]
    gc.collect()
    assert [ref() for ref in kept] == [None] * 3
