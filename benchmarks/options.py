"""What each option of a graph costs, against a graph without any and plain JAX.

A small model (three linear layers, AdamW, three groups) shows the cost of a call,
MobileNetV2 (batch 64, 32×32, SGD with momentum) the cost of a real step. The variants
are programs of one process, which take turns.
"""

import argparse
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import graphlr as glr
from benchmarks import timing
from benchmarks.systems import mobilenet
from benchmarks.systems.training import Task, Train

OPTIONS: dict[str, dict[str, Any]] = {
    "plain graph": {},
    "clip_grad_norm": {"clip_grad_norm": 1.0},
    "skip_nonfinite": {"skip_nonfinite": True},
    "ema_decay": {"ema_decay": 0.999},
    "group_stats": {"group_stats": True},
    "gradient_accumulation_steps=2": {"gradient_accumulation_steps": 2},
}
STEPS = 32  # of a scan
X = np.ones((32, 64), np.float32)
Y = np.arange(32) % 10


class Small(nnx.Module):
    """Three linear layers."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.layers = nnx.List([nnx.Linear(64, 64, rngs=rngs) for _ in range(2)])
        self.head = nnx.Linear(64, 10, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits of a batch (batch, 64)."""
        for layer in self.layers:
            x = nnx.relu(layer(x))
        return self.head(x)


def small_graph(**options: Any) -> Train:
    """A graph over the small model."""
    groups = [
        {"params": "layers.**", "lr_scale": 0.5},
        {"params": "head.bias", "weight_decay": 0.0},
        {"params": ...},
    ]
    model = Small(nnx.Rngs(0))
    task = Task(model, mobilenet.cross_entropy, (X, Y), {}, lambda _: "")
    return Train(task, glr.optim.AdamW(groups, lr=1e-3), **options)


def small(**options: Any) -> Callable[[], Any]:
    """A call of the small graph."""
    graph = small_graph(**options)
    return lambda: np.asarray(graph(X, Y))


def small_scan() -> Callable[[], Any]:
    """Thirty-two steps in one run."""
    graph = small_graph()
    x, y = np.stack([X] * STEPS), np.stack([Y] * STEPS)
    return lambda: np.asarray(graph.scan(x, y))


def small_by_hand() -> Callable[[], Any]:
    """The same step over flat lists, donated, written with jax and optax."""
    graphdef, params = nnx.split(Small(nnx.Rngs(0)))
    leaves, tree = jax.tree.flatten(params)
    tx = optax.adamw(1e-3, weight_decay=0.01)
    slots, slots_tree = jax.tree.flatten(tx.init(leaves))

    def loss_of(leaves: list[Any], x: Any, y: Any) -> jax.Array:
        model = nnx.merge(graphdef, jax.tree.unflatten(tree, leaves))
        return mobilenet.cross_entropy(model, x, y)

    def update(leaves: Any, slots: Any, x: Any, y: Any) -> Any:
        loss, grads = jax.value_and_grad(loss_of)(leaves, x, y)
        state = jax.tree.unflatten(slots_tree, slots)
        updates, state = tx.update(grads, state, leaves)
        new: Any = optax.apply_updates(leaves, updates)
        return new, jax.tree.leaves(state), loss

    jitted = jax.jit(update, donate_argnums=(0, 1))
    held = [jax.tree.map(jnp.copy, leaves), slots]

    def step() -> np.ndarray:
        *held[:], loss = jitted(*held, X, Y)
        return np.asarray(loss)

    return step


def large(size: int, **options: Any) -> Callable[[], Any]:
    """A step of MobileNetV2."""
    task = mobilenet.task(size)
    graph = Train(task, **options)
    return lambda: np.asarray(graph(*task.batch))


def sample(
    steps: dict[str, Callable[[], Any]], rounds: int, each: int
) -> dict[str, list[float]]:
    """Durations of every step, in turns, after one that compiles; seconds."""
    for step in steps.values():
        step()
    workers = {name: timing.Local(step) for name, step in steps.items()}
    return timing.take_turns(workers, rounds, each)


def measure(options: argparse.Namespace) -> None:
    """Measure, print, write."""
    size, rounds, each = (4, 2, 10) if options.quick else (64, 20, 200)
    chosen = dict(list(OPTIONS.items())[:2]) if options.quick else OPTIONS
    calls = sample(
        {name: small(**values) for name, values in OPTIONS.items()}
        | {"jax.jit by hand": small_by_hand()},
        rounds,
        each,
    )
    scans = sample({"scan": small_scan()}, rounds, each // 10)["scan"]
    calls[f"a step of scan, {STEPS} in one run"] = [each / STEPS for each in scans]
    steps = sample(
        {name: large(size, **values) for name, values in chosen.items()},
        max(rounds // 4, 2),
        5,
    )
    titles = {"Small model, call": calls, f"MobileNetV2, batch {size}": steps}
    timing.save(
        "options",
        command="python -m benchmarks options",
        folder=options.results,
        tables=[
            {"title": title, "unit": "ms", "rows": timing.rows_of(taken, "plain graph")}
            for title, taken in titles.items()
        ],
    )
