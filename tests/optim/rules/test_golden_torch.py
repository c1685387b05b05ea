"""Trajectories that PyTorch 2.13 produced, reproduced through Graph and as_optax."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import graphlr as glr
from tests import GOLDEN

DATA = np.load(GOLDEN / "torch_traj.npz")
MANIFEST = json.loads((GOLDEN / "torch_traj.json").read_text())["traj"]
NAMES = MANIFEST["names"]
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


class Layer(nnx.Module):
    """PyTorch's linear layer: the weight is (out, in)."""

    def __init__(self, name, dtype):
        self.weight = nnx.Param(jnp.asarray(DATA[f"in/init/{name}.weight"], dtype))
        self.bias = nnx.Param(jnp.asarray(DATA[f"in/init/{name}.bias"], dtype))

    def __call__(self, x):
        return x @ self.weight.T + self.bias


class Model(nnx.Module):
    def __init__(self, dtype):
        self.l1 = Layer("l1", dtype)
        self.l2 = Layer("l2", dtype)

    def __call__(self, x):
        return self.l2(jnp.tanh(self.l1(x)))

    def named(self):
        layers = {"l1": self.l1, "l2": self.l2}
        return {
            name: np.asarray(getattr(layers[name[:2]], name[3:]).get_value())
            for name in NAMES
        }


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


def make_optimizer(case, rest=()):
    names = names_of(case["key"])
    selectors = [names[:1], names[1:]] if len(names) == 2 else MANIFEST["groups"]
    groups = [
        {"params": selector, **keys}
        for selector, keys in zip(selectors, case["groups"], strict=True)
    ]
    if len(names) == 2:
        groups += rest
    return getattr(glr.optim, case["optimizer"])(groups, **case["defaults"])


class FromModel(glr.Graph):
    def __init__(self, model, *optimizers, lr_sch=None):
        super().__init__()
        self.model = model
        for optimizer in optimizers:
            self.add_optimizer(optimizer, lr_sch=lr_sch)

    def build(self, x, y):
        loss = jnp.mean((self.model(x) - y) ** 2)
        self.backward(loss)
        return loss


class FromGradients(FromModel):
    """The loss sum(w * g) has the gradient g."""

    def build(self, grads):
        layers = {"l1": self.model.l1, "l2": self.model.l2}
        self.backward(
            sum((getattr(layers[k[:2]], k[3:]) * g).sum() for k, g in grads.items())
        )


def batch(mode, t, dtype):
    if mode == "mlp":
        return DATA["in/x"][t].astype(dtype), DATA["in/y"][t].astype(dtype)
    return ({name: DATA[f"in/grad/{name}"][t].astype(dtype) for name in NAMES},)


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


@pytest.mark.parametrize(("key", "mode", "width"), RUNS)
def test_trajectory(key, mode, width):
    dtype = {"f32": np.float32, "f64": np.float64}[width]
    with jax.enable_x64(width == "f64"):
        model = Model(dtype)
        kind = FromModel if mode == "mlp" else FromGradients
        rest = [{"params": ..., "frozen": True}]
        graph = kind(model, make_optimizer(CASES[key], rest))
        for t in range(10):
            loss = graph(*batch(mode, t, dtype))
            if mode == "mlp":
                expected = DATA[f"{key}/mlp/{width}/loss"][t]
                limit = tolerance(key, mode, width) * abs(expected)
                assert abs(float(loss) - expected) <= limit
            if t + 1 in MANIFEST["snapshots_after_steps"]:
                check(key, mode, t + 1, model.named(), width)
        assert graph.compiles.count == 1
        if mode == "grads":
            check_slots(key, width, graph.state_dict())


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
        got = np.asarray(state[f"slots.model.{param}.{ours.get(slot, slot)}"])
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


@pytest.mark.parametrize("key", CASES)
def test_as_optax_agrees(key):
    """The same groups without Graph, on a plain dict of arrays, under jit."""
    width = "f32" if CASES[key]["optimizer"] == "Muon" else "f64"
    names = names_of(key)
    with jax.enable_x64(width == "f64"):
        params = {name: jnp.asarray(DATA[f"in/init/{name}"], float) for name in names}
        tx = make_optimizer(CASES[key]).as_optax(params)
        update = jax.jit(tx.update)
        state = tx.init(params)
        for t in range(10):
            (grads,) = batch("grads", t, params["l1.weight"].dtype)
            grads = {name: grads[name] for name in names}
            updates, state = update(grads, state, params)
            params = optax.apply_updates(params, updates)
            if t + 1 in MANIFEST["snapshots_after_steps"]:
                check(key, "grads", t + 1, params, width)
        assert update._cache_size() == 1
