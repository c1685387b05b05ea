"""Clips over everything trained, and what a group's update is seen to be."""

import contextlib
import io
import itertools
import re

import numpy as np
import pytest
from flax import nnx

from graphlr.optim import SGD, Adam, AdamW
from tests.models import Given, Train, Weights, linear, values

GRADS = {
    "a": np.array([3.0, -4.0], np.float32),
    "b": np.array([[0.0, 12.0]], np.float32),
    "c": np.array([2.0], np.float32),
}


def given(*optimizers, **config):
    """Weights that start at 2, trained on the gradients of a call."""
    weights = Weights(
        **{name: np.full(grad.shape, 2.0) for name, grad in GRADS.items()}
    )
    return Given(weights, *optimizers, **config)


def moved(graph):
    return {name: 2.0 - value for name, value in values(graph.model).items()}


def two():
    """Two optimizers, three groups."""
    return (
        SGD([{"params": "a"}, {"params": "b", "lr_scale": 0.5}], lr=1.0),
        SGD("c", lr=2.0),
    )


RATES = {"a": 1.0, "b": 0.5, "c": 2.0}


@pytest.mark.parametrize("kind", [1.0, 2.0, 3.5, 0.5, "inf", "-inf"])
@pytest.mark.parametrize("limit", [0.0, 0.5, 1e3])
def test_one_clip_over_all_optimizers(kind, limit):
    graph = given(*two(), clip_grad_norm=limit, clip_grad_norm_type=kind)
    graph(GRADS)
    sizes = np.abs(np.concatenate([g.ravel() for g in GRADS.values()]).astype(float))
    p = float(kind)
    if np.isinf(p):
        norm = sizes.max() if p > 0 else sizes.min()
    else:
        norm = (sizes**p).sum() ** (1 / p)
    factor = min(1.0, limit / (norm + 1e-6))
    for name, change in moved(graph).items():
        expected = RATES[name] * factor * GRADS[name]
        np.testing.assert_allclose(change, expected, rtol=2e-5, atol=1e-6)


def test_values_are_clipped_before_the_norm():
    graph = given(*two(), clip_grad_value=3.0, clip_grad_norm=1.0)
    graph(GRADS)
    clipped = {name: np.clip(grad, -3, 3) for name, grad in GRADS.items()}
    norm = np.sqrt(sum((grad**2).sum() for grad in clipped.values()))
    for name, change in moved(graph).items():
        expected = RATES[name] * clipped[name] / norm
        np.testing.assert_allclose(change, expected, rtol=1e-5, atol=1e-6)


def test_frozen_parameters_do_not_count_in_the_norm():
    groups = [{"params": "b", "frozen": True}, {"params": ...}]
    graph = given(SGD(groups, lr=1.0), clip_grad_norm=1.0)
    graph(GRADS)
    norm = np.sqrt(9 + 16 + 4)
    np.testing.assert_allclose(moved(graph)["a"], GRADS["a"] / norm, rtol=1e-5)


def test_statistics_of_groups():
    graph = given(*two(), group_stats=True, clip_grad_norm=1.0)
    with pytest.raises(RuntimeError, match=r"needs config.group_stats = True and a c"):
        print(graph.group_stats)
    graph(GRADS)
    stats, change = graph.group_stats, moved(graph)
    assert list(stats) == ["optimizer0.group0", "group1", "optimizer1.group0"]
    for name, group in zip(GRADS, stats.values(), strict=True):
        size = np.linalg.norm(change[name])
        assert group == pytest.approx(
            {
                "grad_norm": np.linalg.norm(GRADS[name]),  # before the clip
                "update_norm": size,
                "update_ratio": size / np.linalg.norm(np.full(GRADS[name].size, 2.0)),
                "lr": RATES[name],
            },
            rel=1e-4,
        )
    assert graph.compiles.count == 1


@pytest.mark.filterwarnings("ignore:no loss depends on model.c")
def test_statistics_of_what_no_loss_reaches_and_what_is_frozen():
    groups = [{"params": "a"}, {"params": "b", "frozen": True}, {"params": "c"}]
    graph = given(Adam(groups, lr=0.1), group_stats=True)
    graph({name: GRADS[name] for name in "ab"})
    stats = graph.group_stats
    assert stats["group0"]["update_norm"] > 0
    for name in ("group1", "group2"):
        assert (stats[name]["grad_norm"], stats[name]["update_norm"]) == (0.0, 0.0)


# --- what XLA makes of it -------------------------------------------------------------


class Deep(Train):
    """Layers whose statistics have the shapes of their parameters."""

    def __init__(self, groups):
        rngs = nnx.Rngs(0)
        pairs = ((linear(8, 8), nnx.BatchNorm(8, rngs=rngs)) for _ in range(2))
        model = nnx.Sequential(*itertools.chain(*pairs))
        params = [param for _, param in nnx.to_flat_state(nnx.state(model, nnx.Param))]
        cut = [{"params": params[i::groups]} for i in range(groups)]
        super().__init__(model, AdamW(cut, lr=1e-3))


@pytest.fixture(scope="module")
def hlo():
    """What XLA compiled for one group, and for a group for each parameter."""
    texts = []
    for graph in (Deep(1), Deep(8)):
        graph.debug(3)
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            graph(np.ones((4, 8), np.float32))
        texts.append(printed.getvalue())
    return texts


def test_every_buffer_goes_back_to_its_own_array(hlo):
    aliases = re.findall(r"\{(\d+)\}: \((\d+), \{\}, may-alias\)", hlo[0])
    arrays = 8 + 2 * 8 + 1 + 1  # parameters, slots and their count, steps
    assert aliases == [(str(i), str(i)) for i in range(arrays)]
    assert re.findall(r"copy\(%state_trained\S*", hlo[0]) == []


def test_groups_differ_in_no_constant_of_the_program(hlo):
    one, many = (re.findall(r" slice\(.*slice=\S+", text) for text in hlo)
    assert one
    places = [{re.sub(r".*slice=", "", line) for line in text} for text in (one, many)]
    assert places[0] == places[1]
