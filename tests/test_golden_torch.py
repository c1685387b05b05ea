"""Trajectories that PyTorch 2.13 produced, reproduced through Graph and as_optax."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import graphlr as glr

GOLDEN = Path(__file__).parent / "golden"
DATA = np.load(GOLDEN / "torch_traj.npz")
MANIFEST = json.loads((GOLDEN / "torch_traj.json").read_text())["traj"]
NAMES = MANIFEST["names"]
SUPPORTED = ("SGD", "Adam", "AdamW")
CASES = {c["key"]: c for c in MANIFEST["cases"] if c["optimizer"] in SUPPORTED}
TOLERANCE = {"f32": 1e-5, "f64": 1e-12}


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


def make_optimizer(case):
    groups = [
        {"params": names, **keys}
        for names, keys in zip(MANIFEST["groups"], case["groups"], strict=True)
    ]
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


def check(key, step, values, width):
    for name in NAMES:
        expected = DATA[f"{key}/{width}/{step}/{name}"]
        limit = TOLERANCE[width] * np.abs(expected).max()
        difference = np.abs(values[name] - expected).max()
        assert difference <= limit, (key, step, name, difference, limit)


@pytest.mark.parametrize("width", ["f32", "f64"])
@pytest.mark.parametrize("mode", ["mlp", "grads"])
@pytest.mark.parametrize("key", CASES)
def test_trajectory(key, mode, width):
    dtype = {"f32": np.float32, "f64": np.float64}[width]
    with jax.enable_x64(width == "f64"):
        model = Model(dtype)
        kind = FromModel if mode == "mlp" else FromGradients
        graph = kind(model, make_optimizer(CASES[key]))
        for t in range(10):
            loss = graph(*batch(mode, t, dtype))
            if mode == "mlp":
                expected = DATA[f"{key}/mlp/{width}/loss"][t]
                assert abs(float(loss) - expected) <= TOLERANCE[width] * abs(expected)
            if t + 1 in MANIFEST["snapshots_after_steps"]:
                check(f"{key}/{mode}", t + 1, model.named(), width)
        assert graph.compiles.count == 1
        if mode == "grads":
            check_slots(key, width, graph.state_dict())


def check_slots(key, width, state):
    """PyTorch's own state, where it keeps the same thing under the same name."""
    ours = {"step": "steps", "momentum_buffer": "momentum"}
    prefix = f"{key}/grads/{width}/state/"
    for name in (entry for entry in DATA if entry.startswith(prefix)):
        param, slot = name.removeprefix(prefix).split("/")
        got = np.asarray(state[f"slots.model.{param}.{ours.get(slot, slot)}"])
        expected = DATA[name] * own_rounding(key, param, slot, width)
        limit = TOLERANCE[width] * np.abs(expected).max()
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
    with jax.enable_x64(True):
        params = {name: jnp.asarray(DATA[f"in/init/{name}"], float) for name in NAMES}
        tx = make_optimizer(CASES[key]).as_optax(params)
        update = jax.jit(tx.update)
        state = tx.init(params)
        for t in range(10):
            (grads,) = batch("grads", t, np.float64)
            updates, state = update(grads, state, params)
            params = optax.apply_updates(params, updates)
            if t + 1 in MANIFEST["snapshots_after_steps"]:
                check(f"{key}/grads", t + 1, params, "f64")
        assert update._cache_size() == 1
