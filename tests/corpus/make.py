"""Writes what the installed graphlr saves, to be loaded by every later version.

    python -m tests.corpus.make 0.1.0     # into tests/corpus/0.1.0/

A folder is written once, by the version that it is called after, and then only read:
`tests/test_corpus.py` loads each of them. `expected.npz` has what the version itself
gave after saving: losses and rates of the next steps.
"""

import argparse
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import graphlr as glr

HERE = Path(__file__).parent
RNG = np.random.default_rng(0)
IMAGE = RNG.normal(size=(6, 4)).astype(np.float32)
LABEL = np.arange(6) % 3


class Net(nnx.Module):
    """Layers with parameters, statistics, a stream of random numbers and a counter."""

    def __init__(self, seed: int = 0):
        rngs = nnx.Rngs(seed)
        self.body = nnx.Linear(4, 5, rngs=rngs)
        self.norm = nnx.BatchNorm(5, rngs=rngs)
        self.dropout = nnx.Dropout(0.25, rngs=rngs)
        self.head = nnx.Linear(5, 3, rngs=rngs)
        self.calls = nnx.Variable(jnp.zeros((), jnp.int32))

    def __call__(self, x: Any) -> Any:
        self.calls.set_value(self.calls.get_value() + 1)
        return self.head(self.dropout(self.norm(nnx.relu(self.body(x)))))


class Train(glr.Graph):
    """Two optimizers with a schedule each, a frozen group, an average, a loss scale."""

    def __init__(self, seed: int = 0):
        super().__init__()
        self.model = Net(seed)
        body = [
            {"params": "body.kernel", "name": "body", "lr_scale": 0.5},
            {"params": "body.bias", "name": "frozen", "frozen": True},
        ]
        self.optimizers = {
            "body": glr.optim.SGD(body, lr=0.1, momentum=0.9),
            "head": glr.optim.AdamW([{"params": ["head.**", "norm.**"]}], lr=0.01),
        }
        schedule = glr.optim.lr_scheduler.StepLR(2, gamma=0.5)
        self.add_optimizer(self.optimizers["body"], lr_sch=schedule)
        self.add_optimizer(self.optimizers["head"])
        self.set_grad_scaler(glr.GradScaler(init_scale=8.0, growth_interval=2))
        self.config.ema_decay = 0.9

    def build(self, image: Any, label: Any) -> Any:
        logits = self.model(image)
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, label).mean()
        self.backward(loss)
        return loss


class Evaluate(glr.Graph):
    """A forward pass that changes a Variable."""

    def __init__(self, model: Net):
        super().__init__()
        self.model = model

    def build(self, image: Any) -> Any:
        return self.model(image)


class Scaler(glr.Graph):
    """Attributes with the names of what the library saves: 0.1.0 mixed them up.

    Args:
        scaled: Whether there is a loss scale too, whose key is a parameter's path.
    """

    def __init__(self, *, scaled: bool):
        super().__init__()
        self.scaler = nnx.LayerNorm(4, rngs=nnx.Rngs(0))
        self.ema = nnx.Linear(4, 1, rngs=nnx.Rngs(1))
        self.taken = nnx.Param(jnp.ones(()))
        self.add_optimizer(glr.optim.SGD("**", lr=0.1, momentum=0.9))
        if scaled:
            self.set_grad_scaler(glr.GradScaler(init_scale=8.0))
            self.config.ema_decay = 0.5

    def build(self, image: Any) -> Any:
        loss = (self.ema(self.scaler(image)) ** 2).mean() * self.taken
        self.backward(loss)
        return loss


def steps(graph: Any, count: int) -> np.ndarray:
    """The losses of so many steps on the one batch."""
    return np.array([float(graph(IMAGE, LABEL)) for _ in range(count)])


def save(path: Path, graph: Any) -> None:
    """The state of `graph` as a file."""
    np.savez_compressed(
        path, **{k: np.asarray(v) for k, v in graph.state_dict().items()}
    )


def write(folder: Path) -> None:
    """Everything, into a new folder."""
    folder.mkdir()
    train = Train()
    steps(train, 3)
    train.optimizers["head"].param_groups[0]["weight_decay"] = 0.25  # edited by hand
    save(folder / "train.npz", train)
    train.export(folder / "train.zip", IMAGE, LABEL)
    evaluate = Evaluate(nnx.clone(train.model))
    evaluate.export(folder / "evaluate.zip", IMAGE)
    expected = {"logits": np.asarray(evaluate(IMAGE)), "losses": steps(train, 3)}
    expected["lr"] = np.array([*train.lr.values()])
    expected["kernel"] = np.asarray(train.model.head.kernel.get_value())
    expected["average"] = np.asarray(train.ema_state["model.head.kernel"])
    for name, scaled in (("scaler", False), ("scaler_scaled", True)):
        graph = Scaler(scaled=scaled)
        graph(IMAGE), graph(IMAGE)
        save(folder / f"{name}.npz", graph)
        expected[name] = np.array([float(graph(IMAGE)) for _ in range(2)])
    np.savez_compressed(folder / "expected.npz", **expected)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("version", help="what the folder is called")
    write(HERE / parser.parse_args().version)
