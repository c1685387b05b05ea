"""Groups over time: freezing, edits, clips, averages, resuming, as PyTorch 2.13 did."""

from pathlib import Path

import jax
import numpy as np
import pytest

import graphlr as glr
from graphlr.optim.lr_scheduler import CosineAnnealingLR
from tests.optim.rules.test_golden_torch import (
    DATA,
    MANIFEST,
    NAMES,
    FromGradients,
    Model,
    batch,
)

WIDTHS = {"f32": (np.float32, 1e-6), "f64": (np.float64, 1e-12)}


@pytest.fixture(params=WIDTHS)
def width(request):
    with jax.enable_x64(request.param == "f64"):
        yield request.param


def groups(*keys):
    """The three groups of the golden file: l1.weight, both biases, l2.weight."""
    keys = keys or ({},) * 3
    return [
        {"params": names, **own}
        for names, own in zip(MANIFEST["groups"], keys, strict=True)
    ]


def check(name, width, step, values):
    for param in NAMES:
        expected = DATA[f"scenario/{name}/{width}/{step}/{param}"]
        limit = WIDTHS[width][1] * np.abs(expected).max()
        assert np.abs(values[param] - expected).max() <= limit, (step, param)


def run(name, width, graph, steps=range(10), only=NAMES):
    """Steps on the golden gradients, compared wherever PyTorch was looked at."""
    for t in steps:
        (grads,) = batch("grads", t, WIDTHS[width][0])
        graph({param: grads[param] for param in only})
        if f"scenario/{name}/{width}/{t + 1}/l1.weight" in DATA:
            check(name, width, t + 1, graph.model.named())


def graph_of(width, optimizer, kind=FromGradients, lr_sch=None, **config):
    graph = kind(Model(WIDTHS[width][0]), optimizer, lr_sch=lr_sch)
    for key, value in config.items():
        setattr(graph.config, key, value)
    return graph


def test_every_scenario_is_here():
    for name in {key.split("/")[1] for key in DATA if key.startswith("scenario/")}:
        assert f'"{name}"' in Path(__file__).read_text(), name


def test_frozen_group_is_untouched(width):
    keys = {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.1}
    optimizer = glr.optim.SGD(groups({}, {}, {"frozen": True}), **keys)
    graph = graph_of(width, optimizer)
    run("freeze_none", width, graph)
    assert not [k for k in graph.state_dict() if k.startswith("slots.model.l2.weight")]


@pytest.mark.filterwarnings("ignore:no loss depends on model.l2.weight")
def test_group_without_gradient_is_untouched(width):
    keys = {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.1}
    graph = graph_of(width, glr.optim.SGD(groups(), **keys))
    run("freeze_none", width, graph, only=NAMES[:2] + NAMES[3:])


def test_rate_zero_keeps_the_parameter_and_moves_the_moments(width):
    optimizer = glr.optim.AdamW(groups({}, {}, {"lr": 0.0}), lr=0.01, weight_decay=0.1)
    graph = graph_of(width, optimizer)
    run("freeze_lr0", width, graph, range(5))
    optimizer.param_groups[2]["lr"] = 0.01
    run("freeze_lr0", width, graph, range(5, 10))
    assert graph.compiles.count == 1


@pytest.mark.parametrize("how", ["frozen", "no gradient"])
@pytest.mark.filterwarnings("ignore:no loss depends on model.l2.weight")
def test_unfrozen_parameter_starts_its_own_step_count(width, how):
    """In one group with the others, or in one of its own that is unfrozen."""
    frozen = how == "frozen"
    optimizer = glr.optim.Adam(
        groups({}, {}, {"frozen": True}) if frozen else "**", lr=0.01
    )
    graph = graph_of(width, optimizer)
    name = "unfreeze_same_group"
    run(name, width, graph, range(5), only=NAMES[:2] + NAMES[3:])
    if frozen:
        optimizer.param_groups[2]["frozen"] = False
    run(name, width, graph, range(5, 10))
    slots = graph.state_dict()
    assert int(slots["slots.model.l2.weight.steps"]) == 5
    assert int(slots["slots.model.l1.weight.steps"]) == 10
    assert graph.compiles.count == 2


def test_rates_edited_by_hand(width):
    optimizer = glr.optim.SGD(groups(), lr=0.05, momentum=0.9)
    graph = graph_of(width, optimizer)
    run("manual_lr_change", width, graph, range(5))
    optimizer.scale_lr({"group0": 0.1})
    optimizer.param_groups[1]["lr"] = 0.2
    run("manual_lr_change", width, graph, range(5, 10))
    assert graph.compiles.count == 1


def test_clip_is_over_all_groups(width):
    optimizer = glr.optim.SGD(groups({}, {"lr": 0.5}, {}), lr=0.05)
    graph = graph_of(width, optimizer, clip_grad_norm=1.0)
    run("clip_global_norm", width, graph)


def test_clip_by_value(width):
    optimizer = glr.optim.Adam(groups(), lr=0.01)
    graph = graph_of(width, optimizer, clip_grad_value=0.25)
    run("clip_value", width, graph)


class InTwoParts(FromGradients):
    """Each part of the batch is one gradient."""

    def build(self, grads):
        return super().build({name: grad[0] for name, grad in grads.items()})


def test_accumulation_takes_the_mean(width):
    optimizer = glr.optim.SGD(groups(), lr=0.05, momentum=0.9)
    config = {"gradient_accumulation_steps": 2}
    graph = graph_of(width, optimizer, InTwoParts, **config)
    for step in range(5):
        pair = [
            batch("grads", t, WIDTHS[width][0])[0] for t in (2 * step, 2 * step + 1)
        ]
        graph({name: np.stack([grads[name] for grads in pair]) for name in NAMES})
        if f"scenario/accumulate_2/{width}/{step + 1}/l1.weight" in DATA:
            check("accumulate_2", width, step + 1, graph.model.named())
    assert graph.step == 5


def test_schedule_counts_updates_and_not_parts():
    optimizer = glr.optim.SGD(groups(), lr=0.1)
    graph = graph_of(
        "f32", optimizer, InTwoParts, [0.1, 0.2, 0.3], gradient_accumulation_steps=2
    )
    grads = {
        name: np.zeros((2, *DATA[f"in/init/{name}"].shape), "f4") for name in NAMES
    }
    rates = []
    for _ in range(3):
        rates.append(graph.lr["group0"])
        graph(grads)
    assert rates == [0.1, 0.2, 0.3]


def test_average_of_the_weights(width):
    """The first average is a copy, the others 0.9 of the last one."""
    optimizer = glr.optim.SGD(groups({}, {"lr": 0.5}, {}), lr=0.05, momentum=0.9)
    graph = graph_of(width, optimizer, ema_decay=0.9)
    for t in range(10):
        graph(*batch("grads", t, WIDTHS[width][0]))
        if f"scenario/ema_0.9/{width}/{t + 1}/l1.weight" in DATA:
            average = graph.ema_state
            values = {name: average[f"model.{name}"] for name in NAMES}
            check("ema_0.9", width, t + 1, values)


def test_resumed_equals_not_stopped(width):
    """Into new groups in another order, one of them split: matched by name."""

    def fresh(groups):
        optimizer = glr.optim.AdamW(groups, lr=0.01, weight_decay=0.1)
        return graph_of(width, optimizer, lr_sch=CosineAnnealingLR(10))

    rates = ({}, {"lr": 0.1}, {"lr": 0.001})
    whole = fresh(groups(*rates))
    run("resume_at_5", width, whole, range(5))
    saved = whole.state_dict()
    run("resume_at_5", width, whole, range(5, 10))

    same = fresh(groups(*rates))
    same.load_state_dict(saved)
    run("resume_at_5", width, same, range(5, 10))
    for key, value in whole.state_dict().items():
        np.testing.assert_array_equal(same.state_dict()[key], value, err_msg=key)

    other = fresh(
        [
            {"params": "l2.bias", "name": "head bias", "lr": 0.1},
            {"params": "l2.weight", "name": "head", "lr": 0.001},
            {"params": "l1.weight", "name": "body"},
            {"params": "l1.bias", "name": "body bias", "lr": 0.1},
        ]
    )
    with pytest.raises(
        ValueError, match=r"missing: groups\.head bias.*unexpected: gro"
    ):
        other.load_state_dict(saved)
    other.load_state_dict(saved, strict=False)
    run("resume_at_5", width, other, range(5, 10))


def test_fine_tuning_with_a_fast_head(width):
    groups = [{"params": "l1.*"}, {"params": "l2.*", "lr": 0.001 * 10}]
    optimizer = glr.optim.SGD(groups, 0.001, momentum=0.9, weight_decay=1e-4)
    run("seed_finetune", width, graph_of(width, optimizer))


def test_three_groups_by_kind(width):
    groups = [
        {"params": "**.bias"},
        {"params": "l1.weight", "lr": 0.1 * 0.1},
        {"params": "l2.weight", "weight_decay": 5e-4},
    ]
    optimizer = glr.optim.SGD(groups, lr=0.1, momentum=0.9)
    run("seed_three_groups", width, graph_of(width, optimizer))
