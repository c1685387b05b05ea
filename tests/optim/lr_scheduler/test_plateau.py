"""`ReduceLROnPlateau` against what PyTorch 2.13 gave for the same metrics."""

import json
import math

import jax.numpy as jnp
import numpy as np
import pytest

import graphlr as glr
from graphlr.optim.lr_scheduler import LinearLR, ReduceLROnPlateau, StepLR
from tests import GOLDEN
from tests.models import Given, Weights

TORCH = np.load(GOLDEN / "torch_lr.npz")
SPEC = json.loads((GOLDEN / "torch_lr.json").read_text())
CASES = {
    "ReduceLROnPlateau/0": {"patience": 3},
    "ReduceLROnPlateau/2": {
        "mode": "max",
        "threshold_mode": "abs",
        "threshold": 0.01,
        "patience": 4,
        "factor": 0.3,
    },
    "ReduceLROnPlateau/3": {"factor": 0.5, "patience": 1, "min_lr": [0.02, 0.001]},
    "ReduceLROnPlateau/4": {"patience": 2},
    "ReduceLROnPlateau/5": {"factor": 0.5, "patience": 1, "eps": 1e-3},
    "compound/3": {"patience": 3},
}
SCHEDULES = {"compound/3": LinearLR(0.4, 1.0, 4)}
METRICS = {case["key"]: case["metric"] for case in SPEC["cases"] if "metric" in case}


def two_groups(**keys):
    groups = [{"params": "a.**", "lr": 0.1}, {"params": "b.**", "lr": 0.004}]
    return glr.optim.SGD([{**group, **keys} for group in groups])


def test_every_golden_case_is_here():
    assert set(CASES) == set(METRICS)


@pytest.mark.parametrize("key", CASES)
def test_torch(key):
    optimizer = two_groups(lr_sch=SCHEDULES.get(key))
    plateau = ReduceLROnPlateau(optimizer, **CASES[key])
    rates = []
    for t, metric in enumerate(TORCH[f"metric/{METRICS[key]}"]):
        optimizer.step = t
        rates.append(list(optimizer.lr().values()))
        plateau.step(metric)
    want = TORCH[f"{key}/lr"]
    np.testing.assert_allclose(rates, want[: len(rates)], rtol=1e-12)
    assert len(rates) == len(want)
    assert (want[0] != want[-1]).any() or METRICS[key] == "tiny_gains"


def reference(metrics, *, mode, rel, threshold, patience, cooldown, factor, floor):
    """PyTorch's algorithm, written out for one rate that starts at 1."""
    best, bad, cool, rate, rates = None, 0, 0, 1.0, []
    for metric in metrics:
        if best is None:
            better = not math.isnan(metric)
        elif mode == "min":
            better = metric < (best * (1 - threshold) if rel else best - threshold)
        else:
            better = metric > (best * (1 + threshold) if rel else best + threshold)
        best, bad = (metric, 0) if better else (best, bad + 1)
        if cool > 0:
            cool, bad = cool - 1, 0
        if bad > patience:
            rate, cool, bad = max(rate * factor, floor), cooldown, 0
        rates.append(rate)
    return rates


@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize("rel", [True, False])
@pytest.mark.parametrize("cooldown", [0, 3])
@pytest.mark.parametrize("metric", ["plateaus", "noisy", "rising", "with_nan"])
def test_every_setting(mode, rel, cooldown, metric):
    optimizer = glr.optim.SGD("**", lr=1.0)
    keys = {"mode": mode, "threshold": 0.05, "patience": 1, "cooldown": cooldown}
    plateau = ReduceLROnPlateau(
        optimizer,
        threshold_mode="rel" if rel else "abs",
        factor=0.5,
        min_lr=0.1,
        **keys,
    )
    metrics = TORCH[f"metric/{metric}"]
    got = []
    for value in metrics:
        plateau.step(value)
        got.append(optimizer.lr()["group0"])
    want = reference(metrics, rel=rel, factor=0.5, floor=0.1, **keys)
    np.testing.assert_allclose(got, want, rtol=1e-12)


def test_resumed_equals_not_stopped():
    metrics = TORCH["metric/noisy"]

    def run(optimizer, plateau, metrics):
        return [(plateau.step(m), optimizer.lr())[1]["group0"] for m in metrics]

    optimizer = glr.optim.SGD("**", lr=1.0)
    plateau = ReduceLROnPlateau(optimizer, patience=2, cooldown=2)
    run(optimizer, plateau, metrics[:23])
    again = glr.optim.SGD("**", lr=optimizer.param_groups[0]["lr"])
    other = ReduceLROnPlateau(again, patience=2, cooldown=2)
    other.load_state_dict(json.loads(json.dumps(plateau.state_dict())))
    assert run(again, other, metrics[23:]) == run(optimizer, plateau, metrics[23:])


def test_it_changes_a_compiled_graph_without_recompiling():
    optimizer = glr.optim.SGD("**", lr=0.5)
    train = Given(Weights(w=0.0), optimizer, lr_sch=StepLR(100))
    plateau, after = ReduceLROnPlateau(optimizer, patience=0), []
    for _ in range(3):
        train({"w": np.float32(1)})
        plateau.step(jnp.ones(()))
        after.append(float(train.model.w.get_value()))
    np.testing.assert_allclose(after, [-0.5, -1.0, -1.05], rtol=1e-6)
    assert train.compiles.count == 1


def test_floor_bounds_the_rate_that_is_read():
    optimizer = two_groups(lr_scale=0.5)
    plateau = ReduceLROnPlateau(optimizer, patience=0, min_lr=1e-3)
    for _ in range(5):
        plateau.step(1.0)
    assert optimizer.lr() == pytest.approx({"group0": 1e-3, "group1": 1e-3})


def test_an_added_group_counts_where_one_floor_holds_for_all():
    optimizer = two_groups()
    one = ReduceLROnPlateau(optimizer, patience=0)
    each = ReduceLROnPlateau(optimizer, patience=0, min_lr=[0.02, 0.001])
    optimizer.add_param_group({"params": "c.**", "lr": 1.0})
    one.step(1.0)
    one.step(1.0)
    assert optimizer.lr()["group2"] == pytest.approx(0.1)
    with pytest.raises(RuntimeError, match=r"one for each of the 3 groups"):
        each.step(1.0)


@pytest.mark.parametrize(
    ("settings", "kind", "message"),
    [
        ({"mode": "x"}, ValueError, "mode is 'x', not one of"),
        ({"threshold_mode": "x"}, ValueError, "threshold_mode is 'x'"),
        ({"factor": 1.0}, ValueError, "factor is 1.0, not a number >= 0 and < 1"),
        ({"factor": math.nan}, ValueError, "factor is nan"),
        ({"patience": -1}, ValueError, "patience is -1"),
        ({"patience": "3"}, TypeError, "patience is '3'"),
        ({"min_lr": [0.1]}, ValueError, r"min_lr is \[0.1\], not one number, or one"),
        ({"min_lr": -1}, ValueError, "min_lr is -1"),
        ({"eps": -1}, ValueError, "eps is -1"),
    ],
)
def test_bad_settings_are_refused(settings, kind, message):
    with pytest.raises(kind, match=message):
        ReduceLROnPlateau(two_groups(), **settings)


def test_it_is_no_schedule():
    plateau = ReduceLROnPlateau(two_groups())
    with pytest.raises(ValueError, match=r"plateau.step\(metric\)"):
        two_groups(lr_sch=plateau)
    with pytest.raises(TypeError, match="optimizer is 3, not an optimizer"):
        ReduceLROnPlateau(3)
    assert "patience=10" in repr(plateau)
