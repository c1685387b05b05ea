"""Trajectories that PyTorch 2.13 produced, reproduced through Graph and as_optax.

All cases are in one graph, each with a model and an optimizer of its own.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import graphlr as glr
from tests.models import Train, state_of
from tests.optim.rules.torch_model import (
    DATA,
    MANIFEST,
    NAMES,
    Model,
    examples,
    gradients,
)
from tests.optim.trees import together

LEFT_OUT = {
    "LBFGS": "takes a closure and all parameters at once, so it has no groups; its "
    "line search differs from that of optax.lbfgs",
}
CASES = {c["key"]: c for c in MANIFEST["cases"] if c["optimizer"] not in LEFT_OUT}
TOLERANCE = {"f32": 1e-6, "f64": 1e-12}
OF_OPTIMIZER = {  # PyTorch keeps numbers in float32 there, or matrices in bfloat16
    "NAdam": {"f32": 1e-6, "f64": 1e-8},
    "ASGD": {"f32": 1e-6, "f64": 1e-6},
    "Muon": {"f32": 1e-2},
}
STATE_F32 = 1e-5  # moments keep a rounded 1 - beta, which the update corrects


def tolerance(key, mode, width):
    kind = CASES[key]["optimizer"]
    if (kind, mode, width) == ("RMSprop", "mlp", "f32"):
        return (
            2e-6  # XLA rounds the gradients otherwise; they are divided by their size
        )
    return OF_OPTIMIZER.get(kind, TOLERANCE)[width]


def names_of(key):
    matrices = CASES[key]["optimizer"] == "Muon"  # its cases have no biases
    return [n for n in NAMES if not matrices or n.endswith("weight")]


def make_optimizer(case, place=""):
    """The optimizer of a case, for the parameters at a place such as "adam."."""
    names = names_of(case["key"])
    selectors = [names[:1], names[1:]] if len(names) == 2 else MANIFEST["groups"]
    groups = [
        {"params": [place + name for name in selector], **keys}
        for selector, keys in zip(selectors, case["groups"], strict=True)
    ]
    if place and len(names) < len(NAMES):
        groups.append({"params": f"{place}*.bias", "frozen": True})
    return getattr(glr.optim, case["optimizer"])(groups, **case["defaults"])


def check(key, mode, step, values, width):
    for name in names_of(key):
        expected = DATA[f"{key}/{mode}/{width}/{step}/{name}"]
        limit = tolerance(key, mode, width) * np.abs(expected).max()
        difference = np.abs(values[name] - expected).max()
        assert difference <= limit, (key, step, name, difference, limit)


RUNS = [
    (key, mode, width)
    for key in CASES
    for mode in ("mlp", "grads")
    for width in ("f32", "f64")
    if f"{key}/{mode}/{width}/10/l1.weight" in DATA
]


def test_every_case_is_run_or_has_its_reason():
    run = {(key, mode) for key, mode, _ in RUNS}
    for case in MANIFEST["cases"]:
        modes = {"grads"} if case["optimizer"] == "Muon" else {"grads", "mlp"}
        if case["optimizer"] not in LEFT_OUT:
            assert {(case["key"], mode) for mode in modes} <= run
            assert hasattr(glr.optim, case["optimizer"])


class Every(Train):
    """Every case: its loss is of the batch or, if `given`, has the given gradients."""

    def build(self, x, y, grads, given):
        losses = {}
        for key, model in self.model.items():
            losses[key] = jnp.mean((model(x) - y) ** 2)
            self.backward(jnp.where(given, model.along(grads), losses[key]))
        return losses


class Trajectories(NamedTuple):
    """What 10 steps of every case came to."""

    losses: list[dict[str, jax.Array]]
    values: dict[int, dict[str, dict[str, np.ndarray]]]  # by step, case, parameter
    state: dict[str, np.ndarray]
    compiles: int


@functools.cache
def every(width):
    """The graph of every case, and the state that it starts with."""
    keys = sorted({key for key, _, its_width in RUNS if its_width == width})
    optimizers = [make_optimizer(CASES[key], f"{key}.") for key in keys]
    graph = Every(nnx.Dict({key: Model(width) for key in keys}), *optimizers)
    return graph, graph.state_dict()


@functools.cache
def trajectories(mode, width):
    with jax.enable_x64(width == "f64"):
        graph, start = every(width)
        graph.load_state_dict(start)
        losses, values = [], {}
        for t in range(10):
            batch = *examples(t, width), gradients(t, width)
            losses.append(graph(*batch, np.bool_(mode == "grads")))
            if t + 1 in MANIFEST["snapshots_after_steps"]:
                values[t + 1] = {k: m.named() for k, m in graph.model.items()}
        return Trajectories(losses, values, state_of(graph), graph.compiles.count)


@pytest.mark.parametrize(("key", "mode", "width"), RUNS)
def test_trajectory(key, mode, width):
    run = trajectories(mode, width)
    if mode == "mlp":
        expected = DATA[f"{key}/mlp/{width}/loss"]
        for loss, want in zip(run.losses, expected, strict=True):
            limit = tolerance(key, mode, width) * abs(want)
            assert abs(float(loss[key]) - want) <= limit
    for step, values in run.values.items():
        check(key, mode, step, values[key], width)
    if mode == "grads":
        check_slots(key, width, run.state)
    assert run.compiles == 1


def check_slots(key, width, state):
    """PyTorch's own state, where it keeps the same thing under the same name."""
    ours = {
        "step": "steps",
        "momentum_buffer": "momentum",
        **({"square_avg": "e_g", "acc_delta": "e_x"} if "adadelta" in key else {}),
    }
    uncounted = {"RMSprop", "Adadelta", "Muon"}  # rules without a count
    prefix = f"{key}/grads/{width}/state/"
    for name in (entry for entry in DATA if entry.startswith(prefix)):
        param, slot = name.removeprefix(prefix).split("/")
        if slot == "step" and CASES[key]["optimizer"] in uncounted:
            continue
        if slot == "mu":  # of ASGD, a function of steps
            continue
        got = state[f"slots.model.{key}.{param}.{ours.get(slot, slot)}"]
        expected = DATA[name] * own_rounding(key, param, slot, width)
        single = width == "f32" or DATA[name].dtype == np.float32
        limit = STATE_F32 if single else tolerance(key, "grads", width)
        limit = limit * np.abs(expected).max()
        assert np.abs(got - expected).max() <= limit, name


def own_rounding(key, param, slot, width):
    """A live beta2 is a float32 here and a double in PyTorch.

    That scales every second moment by (1 - float32(b2)) / (1 - b2), 1.3e-5 at 0.999;
    the bias correction takes it out of the update again.
    """
    if "exp_avg_sq" not in slot or width == "f64":
        return 1.0
    group = next(i for i, names in enumerate(MANIFEST["groups"]) if param in names)
    keys = {**CASES[key]["defaults"], **CASES[key]["groups"][group]}
    b2 = keys.get("betas", (0.9, 0.999))[1]
    return (1 - float(np.float32(b2))) / (1 - b2)


@functools.cache
def without_a_graph(width):
    """The values of every case after each step by as_optax, and how often it traced."""
    keys = [key for key in CASES if width == width_of(key)]
    with jax.enable_x64(width == "f64"):
        start = Model(width).named()
        params = {k: {n: jnp.asarray(start[n]) for n in names_of(k)} for k in keys}
        rules = {k: make_optimizer(CASES[k]).as_optax(params[k]) for k in keys}
        states = {k: tx.init(params[k]) for k, tx in rules.items()}
        step, values = together(rules), []
        for t in range(10):
            given = gradients(t, width)
            grads = {k: {n: given[n] for n in names_of(k)} for k in keys}
            params, states = step(grads, params, states)
            values.append(jax.device_get(params))
        return values, step._cache_size()


def width_of(key):
    return "f32" if CASES[key]["optimizer"] == "Muon" else "f64"


@pytest.mark.parametrize("key", CASES)
def test_as_optax_agrees(key):
    """The same groups without Graph, on a plain dict of arrays, under jit."""
    width = width_of(key)
    values, traces = without_a_graph(width)
    for step in MANIFEST["snapshots_after_steps"]:
        check(key, "grads", step, values[step - 1][key], width)
    assert traces == 1
