"""What a step carries along: nothing unless asked, kept when parameters change."""

import jax.numpy as jnp
import numpy as np

from graphlr.precision.scalers import GradScaler, StaticGradScaler
from graphlr.step.carried import (
    Averages,
    Carried,
    after_check,
    after_update,
    may_skip,
    moved,
    start,
)
from graphlr.step.config import Config

PARAMS = {"m.w": jnp.ones(2), "m.b": jnp.zeros(1)}


def config(**options):
    made = Config()
    for name, value in options.items():
        setattr(made, name, value)
    return made


def test_nothing_is_carried_unless_asked():
    assert start(config(), None, PARAMS) == Carried()
    assert after_update(Carried(), PARAMS, config()) == Carried()
    assert after_check(Carried(), jnp.bool_(True), None) == Carried()
    assert not may_skip(config(), None)


def test_what_is_asked_for():
    averages, scale, skips = start(
        config(ema_decay=0.9), GradScaler(init_scale=8.0), PARAMS
    )
    assert list(averages.values) == ["m.w", "m.b"]
    assert averages.values["m.w"] is not PARAMS["m.w"]
    assert (float(scale.value), scale.value.dtype) == (8.0, "f4")
    assert [int(x) for x in (averages.taken, scale.good_steps, *skips)] == [0] * 4


def test_parameters_come_and_go():
    options = config(ema_decay=0.9)
    old = Carried(Averages({"m.w": jnp.full(2, 7.0), "m.b": jnp.ones(1)}, jnp.int32(4)))
    fresh = start(options, None, {"m.w": jnp.ones(2), "m.c": jnp.ones(3)})
    now = moved(old, fresh).averages
    assert list(now.values) == ["m.w", "m.c"]
    assert now.values["m.w"].tolist() == [7.0, 7.0]
    assert int(now.taken) == 4
    assert moved(old, Carried()) == Carried()


def test_counts():
    scaler = StaticGradScaler(4.0)
    carried = start(config(skip_nonfinite=True), scaler, PARAMS)
    seen = []
    for ok in (True, False, False, True):
        carried = after_check(carried, jnp.bool_(ok), scaler)
        seen.append([int(count) for count in carried.skips])
    assert seen == [[0, 0], [1, 1], [2, 2], [2, 0]]
    assert float(carried.loss_scale.value) == 4.0
    np.testing.assert_array_equal(carried.loss_scale.good_steps, 1)
