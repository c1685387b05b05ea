"""Clips over everything trained, and what a group's update is seen to be."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import graphlr as glr

GRADS = {
    "a": np.array([3.0, -4.0], np.float32),
    "b": np.array([[0.0, 12.0]], np.float32),
    "c": np.array([2.0], np.float32),
}


class Model(nnx.Module):
    def __init__(self):
        for name, grad in GRADS.items():
            setattr(self, name, nnx.Param(jnp.full(grad.shape, 2.0)))


class Train(glr.Graph):
    """The loss sum(w * g) has the gradient g."""

    def __init__(self, *optimizers, **config):
        super().__init__()
        self.model = Model()
        for optimizer in optimizers:
            self.add_optimizer(optimizer)
        for name, value in config.items():
            setattr(self.config, name, value)

    def build(self, grads):
        pairs = ((getattr(self.model, name), grad) for name, grad in grads.items())
        self.backward(sum((param * grad).sum() for param, grad in pairs))

    def moved(self):
        return {n: 2.0 - np.asarray(getattr(self.model, n).get_value()) for n in GRADS}


def two():
    """Two optimizers, three groups."""
    return (
        glr.optim.SGD([{"params": "a"}, {"params": "b", "lr_scale": 0.5}], lr=1.0),
        glr.optim.SGD("c", lr=2.0),
    )


RATES = {"a": 1.0, "b": 0.5, "c": 2.0}


@pytest.mark.parametrize("kind", [1.0, 2.0, 3.5, 0.5, "inf", "-inf"])
@pytest.mark.parametrize("limit", [0.0, 0.5, 1e3])
def test_one_clip_over_all_optimizers(kind, limit):
    graph = Train(*two(), clip_grad_norm=limit, clip_grad_norm_type=kind)
    graph(GRADS)
    sizes = np.abs(np.concatenate([g.ravel() for g in GRADS.values()]).astype(float))
    p = float(kind)
    if np.isinf(p):
        norm = sizes.max() if p > 0 else sizes.min()
    else:
        norm = (sizes**p).sum() ** (1 / p)
    factor = min(1.0, limit / (norm + 1e-6))
    for name, change in graph.moved().items():
        expected = RATES[name] * factor * GRADS[name]
        np.testing.assert_allclose(change, expected, rtol=2e-5, atol=1e-6)


def test_values_are_clipped_before_the_norm():
    graph = Train(*two(), clip_grad_value=3.0, clip_grad_norm=1.0)
    graph(GRADS)
    clipped = {name: np.clip(grad, -3, 3) for name, grad in GRADS.items()}
    norm = np.sqrt(sum((grad**2).sum() for grad in clipped.values()))
    for name, change in graph.moved().items():
        expected = RATES[name] * clipped[name] / norm
        np.testing.assert_allclose(change, expected, rtol=1e-5, atol=1e-6)


def test_frozen_parameters_do_not_count_in_the_norm():
    groups = [{"params": "b", "frozen": True}, {"params": ...}]
    graph = Train(glr.optim.SGD(groups, lr=1.0), clip_grad_norm=1.0)
    graph(GRADS)
    norm = np.sqrt(9 + 16 + 4)
    np.testing.assert_allclose(graph.moved()["a"], GRADS["a"] / norm, rtol=1e-5)


def test_statistics_of_groups():
    graph = Train(*two(), group_stats=True, clip_grad_norm=1.0)
    with pytest.raises(RuntimeError, match=r"needs config.group_stats = True and a c"):
        print(graph.group_stats)
    graph(GRADS)
    stats, change = graph.group_stats, graph.moved()
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
    graph = Train(glr.optim.Adam(groups, lr=0.1), group_stats=True)
    graph({name: GRADS[name] for name in "ab"})
    stats = graph.group_stats
    assert stats["group0"]["update_norm"] > 0
    for name in ("group1", "group2"):
        assert (stats[name]["grad_norm"], stats[name]["update_norm"]) == (0.0, 0.0)


# --- what XLA makes of it ---


class Deep(glr.Graph):
    """Layers whose statistics have the shapes of their parameters."""

    def __init__(self, groups):
        super().__init__()
        rngs = nnx.Rngs(0)
        self.layers = nnx.List(
            layer
            for _ in range(4)
            for layer in (nnx.Linear(8, 8, rngs=rngs), nnx.BatchNorm(8, rngs=rngs))
        )
        params = jax.tree.leaves(
            nnx.state(self.layers, nnx.Param),
            is_leaf=lambda leaf: isinstance(leaf, nnx.Variable),
        )
        cut = [{"params": params[i::groups]} for i in range(groups)]
        self.add_optimizer(glr.optim.AdamW(cut, lr=1e-3))

    def build(self, x):
        for layer in self.layers:
            x = layer(x)
        self.backward((x**2).mean())


@pytest.fixture
def hlo(capsys):
    """What XLA compiled for a graph."""

    def of(graph):
        graph.debug(3)
        graph(np.ones((4, 8), np.float32))
        return capsys.readouterr().out

    return of


def test_every_buffer_goes_back_to_its_own_array(hlo):
    text = hlo(Deep(1))
    aliases = re.findall(r"\{(\d+)\}: \((\d+), \{\}, may-alias\)", text)
    arrays = 16 + 2 * 16 + 1 + 1  # parameters, slots and their count, steps
    assert aliases == [(str(i), str(i)) for i in range(arrays)]
    assert re.findall(r"copy\(%state_trained\S*", text) == []


def test_groups_differ_in_no_constant_of_the_program(hlo):
    one, many = (re.findall(r" slice\(.*slice=\S+", hlo(Deep(n))) for n in (1, 16))
    places = [{re.sub(r".*slice=", "", line) for line in text} for text in (one, many)]
    assert places[0] == places[1]
