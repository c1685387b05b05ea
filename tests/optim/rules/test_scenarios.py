"""Groups over time: freezing, edits, clips, averages, resuming, as PyTorch 2.13 did."""

import functools
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from graphlr.optim import SGD, Adam, AdamW
from graphlr.optim.lr_scheduler import CosineAnnealingLR
from tests.models import Given, Train, assert_same, state_of
from tests.optim.rules.torch_model import DATA, MANIFEST, NAMES, Model, gradients

TOLERANCE = {"f32": 1e-6, "f64": 1e-12}
WITHOUT_L2_WEIGHT = [name for name in NAMES if name != "l2.weight"]


@pytest.fixture(params=TOLERANCE)
def width(request):
    with jax.enable_x64(request.param == "f64"):
        yield request.param


def groups(*keys, place=""):
    """The three groups of the golden file: l1.weight, both biases, l2.weight."""
    keys = keys or ({},) * 3
    return [
        {"params": [place + name for name in names], **own}
        for names, own in zip(MANIFEST["groups"], keys, strict=True)
    ]


def check(name, width, step, values):
    """Compare wherever PyTorch was looked at."""
    for param in NAMES if f"scenario/{name}/{width}/{step}/l1.weight" in DATA else ():
        expected = DATA[f"scenario/{name}/{width}/{step}/{param}"]
        limit = TOLERANCE[width] * np.abs(expected).max()
        assert np.abs(values[param] - expected).max() <= limit, (step, param)


def run(name, width, graph, steps=range(10), only=NAMES):
    """Steps on the golden gradients, compared with PyTorch's."""
    for t in steps:
        grads = gradients(t, width)
        graph({param: grads[param] for param in only})
        check(name, width, t + 1, graph.model.named())


def test_every_scenario_is_here():
    for name in {key.split("/")[1] for key in DATA if key.startswith("scenario/")}:
        assert f'"{name}"' in Path(__file__).read_text(), name


# --- several in one graph, with a model and an optimizer for each ---------------------


class Every(Train):
    def loss(self, grads):
        return sum(model.along(grads) for model in self.model.values())


def frozen(place):
    keys = {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.1}
    return SGD(groups({}, {}, {"frozen": True}, place=place), **keys)


def rate_zero(place):
    mine = groups({}, {}, {"lr": 0.0}, place=place)
    return AdamW(mine, lr=0.01, weight_decay=0.1)


def edited(place):
    return SGD(groups(place=place), lr=0.05, momentum=0.9)


def fast_head(place):
    mine = [{"params": f"{place}l1.*"}, {"params": f"{place}l2.*", "lr": 0.001 * 10}]
    return SGD(mine, 0.001, momentum=0.9, weight_decay=1e-4)


def by_kind(place):
    mine = [
        {"params": f"{place}*.bias"},
        {"params": f"{place}l1.weight", "lr": 0.1 * 0.1},
        {"params": f"{place}l2.weight", "weight_decay": 5e-4},
    ]
    return SGD(mine, lr=0.1, momentum=0.9)


PLAIN = {
    "freeze_none": frozen,
    "freeze_lr0": rate_zero,
    "manual_lr_change": edited,
    "seed_finetune": fast_head,
    "seed_three_groups": by_kind,
}


@functools.cache
def plain(width):
    """The graph, and the values of every model after each step."""
    optimizers = {name: make(f"{name}.") for name, make in PLAIN.items()}
    models = nnx.Dict({name: Model(width) for name in PLAIN})
    graph, values = Every(models, *optimizers.values()), []
    for t in range(10):
        if t == 5:
            optimizers["freeze_lr0"].param_groups[2]["lr"] = 0.01
            by_hand = optimizers["manual_lr_change"]
            by_hand.scale_lr({"group0": 0.1})
            by_hand.param_groups[1]["lr"] = 0.2
        graph(gradients(t, width))
        values.append({name: model.named() for name, model in graph.model.items()})
    return graph, values


def check_plain(name, width):
    graph, values = plain(width)
    for step, found in enumerate(values, 1):
        check(name, width, step, found[name])
    assert graph.compiles.count == 1


def test_frozen_group_is_untouched(width):
    check_plain("freeze_none", width)
    state, place = plain(width)[0].state_dict(), "slots.model.freeze_none"
    slots = [key.removeprefix(place) for key in state if key.startswith(place)]
    assert slots
    assert not [key for key in slots if key.startswith(".l2.weight")]


def test_rate_zero_keeps_the_parameter_and_moves_the_moments(width):
    check_plain("freeze_lr0", width)


def test_rates_edited_by_hand(width):
    check_plain("manual_lr_change", width)


def test_fine_tuning_with_a_fast_head(width):
    check_plain("seed_finetune", width)


def test_three_groups_by_kind(width):
    check_plain("seed_three_groups", width)


@functools.cache
def unfrozen(width):
    """Two models whose l2.weight joins after five steps: it was frozen, or not used."""
    optimizer = Adam(groups({}, {}, {"frozen": True}, place="frozen."), lr=0.01)
    models = nnx.Dict({name: Model(width) for name in ("frozen", "unused")})
    graph, values = Every(models, optimizer, Adam("unused.**", lr=0.01)), []
    for t in range(10):
        grads = gradients(t, width)
        if t < 5:
            grads = {name: grads[name] for name in WITHOUT_L2_WEIGHT}
        if t == 5:
            optimizer.param_groups[2]["frozen"] = False
        graph(grads)
        values.append({name: model.named() for name, model in graph.model.items()})
    return graph, values


@pytest.mark.parametrize("how", ["frozen", "unused"])
@pytest.mark.filterwarnings("ignore:no loss depends on model.unused.l2.weight")
def test_unfrozen_parameter_starts_its_own_step_count(width, how):
    """In one group with the others, or in one of its own that is unfrozen."""
    graph, values = unfrozen(width)
    for step, found in enumerate(values, 1):
        check("unfreeze_same_group", width, step, found[how])
    slots = graph.state_dict()
    assert int(slots[f"slots.model.{how}.l2.weight.steps"]) == 5
    assert int(slots[f"slots.model.{how}.l1.weight.steps"]) == 10
    assert graph.compiles.count == 2


# --- each with options of its own -----------------------------------------------------


@pytest.mark.filterwarnings("ignore:no loss depends on model.l2.weight")
def test_group_without_gradient_is_untouched(width):
    keys = {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.1}
    graph = Given(Model(width), SGD(groups(), **keys))
    run("freeze_none", width, graph, only=WITHOUT_L2_WEIGHT)


def test_clip_is_over_all_groups(width):
    optimizer = SGD(groups({}, {"lr": 0.5}, {}), lr=0.05)
    graph = Given(Model(width), optimizer, clip_grad_norm=1.0)
    run("clip_global_norm", width, graph)


def test_clip_by_value(width):
    graph = Given(Model(width), Adam(groups(), lr=0.01), clip_grad_value=0.25)
    run("clip_value", width, graph)


class InTwoParts(Given):
    """Each part of the batch is one gradient."""

    def loss(self, grads):
        return super().loss({name: grad[0] for name, grad in grads.items()})


def test_accumulation_takes_the_mean(width):
    optimizer = SGD(groups(), lr=0.05, momentum=0.9)
    graph = InTwoParts(Model(width), optimizer, gradient_accumulation_steps=2)
    for step in range(5):
        pair = [gradients(t, width) for t in (2 * step, 2 * step + 1)]
        graph({name: np.stack([grads[name] for grads in pair]) for name in NAMES})
        check("accumulate_2", width, step + 1, graph.model.named())
    assert graph.step == 5


def test_schedule_counts_updates_and_not_parts():
    optimizer = SGD(groups(), lr=0.1)
    config = {"lr_sch": [0.1, 0.2, 0.3], "gradient_accumulation_steps": 2}
    graph = InTwoParts(Model("f32"), optimizer, **config)
    grads = {name: np.stack([grad] * 2) for name, grad in gradients(0, "f32").items()}
    rates = []
    for _ in range(3):
        rates.append(graph.lr["group0"])
        graph(grads)
    assert rates == [0.1, 0.2, 0.3]


def test_average_of_the_weights(width):
    """The first average is a copy, the others 0.9 of the last one."""
    optimizer = SGD(groups({}, {"lr": 0.5}, {}), lr=0.05, momentum=0.9)
    graph = Given(Model(width), optimizer, ema_decay=0.9)
    for t in range(10):
        graph(gradients(t, width))
        average = graph.ema_state
        values = {name: average[f"model.{name}"] for name in NAMES}
        check("ema_0.9", width, t + 1, values)


def test_resumed_equals_not_stopped(width):
    """Into new groups in another order, one of them split: matched by name."""

    def fresh(groups):
        optimizer = AdamW(groups, lr=0.01, weight_decay=0.1)
        return Given(Model(width), optimizer, lr_sch=CosineAnnealingLR(10))

    rates = ({}, {"lr": 0.1}, {"lr": 0.001})
    whole = fresh(groups(*rates))
    run("resume_at_5", width, whole, range(5))
    saved = whole.state_dict()
    run("resume_at_5", width, whole, range(5, 10))

    same = fresh(groups(*rates))
    same.load_state_dict(saved)
    run("resume_at_5", width, same, range(5, 10))
    assert_same(state_of(same), state_of(whole))

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
