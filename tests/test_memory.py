"""What a step remembers: nothing unless asked, kept when groups change."""

import jax.numpy as jnp
import numpy as np

from graphlr.config import Config
from graphlr.memory import advanced, counted, may_skip, moved, start
from graphlr.precision import GradScaler, StaticGradScaler

PARAMS = {"m.w": jnp.ones(2), "m.b": jnp.zeros(1)}


def config(**options):
    made = Config()
    for name, value in options.items():
        setattr(made, name, value)
    return made


def test_nothing_is_kept_unless_asked():
    assert start(config(), None, PARAMS) == {}
    assert advanced({}, PARAMS, config()) == {}
    assert not may_skip(config(), None)


def test_names():
    memory = start(config(ema_decay=0.9), GradScaler(init_scale=8.0), PARAMS)
    assert list(memory) == [
        "ema.m.w",
        "ema.m.b",
        "ema.taken",
        "scaler.scale",
        "scaler.good",
        "skipped.total",
        "skipped.in_a_row",
    ]
    assert (float(memory["scaler.scale"]), memory["scaler.scale"].dtype) == (8.0, "f4")
    assert memory["ema.m.w"] is not PARAMS["m.w"]


def test_parameters_come_and_go():
    options = config(ema_decay=0.9)
    old = start(options, None, PARAMS) | {"ema.m.w": jnp.full(2, 7.0)}
    fresh = start(options, None, {"m.w": jnp.ones(2), "m.c": jnp.ones(3)})
    now = moved(old, fresh)
    assert list(now) == ["ema.m.w", "ema.m.c", "ema.taken"]
    assert now["ema.m.w"].tolist() == [7.0, 7.0]


def test_counts():
    memory = start(config(skip_nonfinite=True), StaticGradScaler(4.0), PARAMS)
    seen = []
    for ok in (True, False, False, True):
        memory = counted(memory, jnp.bool_(ok), StaticGradScaler(4.0))
        seen.append([int(memory[f"skipped.{k}"]) for k in ("total", "in_a_row")])
    assert seen == [[0, 0], [1, 1], [2, 2], [2, 0]]
    assert float(memory["scaler.scale"]) == 4.0
    np.testing.assert_array_equal(memory["scaler.good"], 1)
