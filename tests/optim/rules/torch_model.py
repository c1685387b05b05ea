"""The model that PyTorch 2.13 trained, its weights, batches and gradients."""

import json

import jax.numpy as jnp
import numpy as np
from flax import nnx

from tests import GOLDEN

DATA = np.load(GOLDEN / "torch_traj.npz")
MANIFEST = json.loads((GOLDEN / "torch_traj.json").read_text())["traj"]
NAMES = MANIFEST["names"]
DTYPES = {"f32": np.float32, "f64": np.float64}


class Layer(nnx.Module):
    """PyTorch's linear layer: the weight is (out, in)."""

    def __init__(self, name, dtype):
        self.weight = nnx.Param(jnp.asarray(DATA[f"in/init/{name}.weight"], dtype))
        self.bias = nnx.Param(jnp.asarray(DATA[f"in/init/{name}.bias"], dtype))

    def __call__(self, x):
        return x @ self.weight.T + self.bias


class Model(nnx.Module):
    def __init__(self, width):
        self.l1, self.l2 = (Layer(name, DTYPES[width]) for name in ("l1", "l2"))

    def __call__(self, x):
        return self.l2(jnp.tanh(self.l1(x)))

    def param(self, name):
        layer, kind = name.split(".")
        return getattr(getattr(self, layer), kind)

    def named(self):
        return {name: np.array(self.param(name).get_value()) for name in NAMES}

    def along(self, grads):
        """The loss sum(w * g), whose gradient is g."""
        return sum((self.param(name) * g).sum() for name, g in grads.items())


def examples(t, width):
    """What the model is given at step t, and what it is to give."""
    return [DATA[f"in/{name}"][t].astype(DTYPES[width]) for name in ("x", "y")]


def gradients(t, width):
    """The gradients of step t, where no model is run."""
    return {name: DATA[f"in/grad/{name}"][t].astype(DTYPES[width]) for name in NAMES}
