"""What each option of a graph costs, against a graph without any and plain JAX.

    python benchmarks/options.py

A small model (three linear layers, AdamW, three groups) shows the cost of a call,
MobileNetV2 (batch 64, 32×32, SGD with momentum) the cost of a real step. The variants
take turns; medians and ratios to the plain graph are printed and written to
`benchmarks/results/options.json`.
"""

import argparse
import json
import platform
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from compare import IMAGES, LABELS, Step, cross_entropy, measure
from flax import nnx

import graphlr as glr

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


class Train(glr.Graph):
    """One step with some options."""

    def __init__(self, model, optimizer, options):
        super().__init__()
        self.model = model
        self.add_optimizer(optimizer)
        for name, value in options.items():
            setattr(self.config, name, value)

    def build(self, x, y):
        """The loss of a batch."""
        loss = cross_entropy(self.model(x), y)
        self.backward(loss)
        return loss


def small_graph(options: dict[str, Any]) -> Train:
    """A graph over the small model."""
    groups = [
        {"params": "layers.**", "lr_scale": 0.5},
        {"params": "head.bias", "weight_decay": 0.0},
        {"params": ...},
    ]
    model = Small(nnx.Rngs(0))
    return Train(model, glr.optim.AdamW(groups, lr=1e-3), options)


def small(options: dict[str, Any]) -> Step:
    """A call of the small graph."""
    graph = small_graph(options)
    return lambda: jax.block_until_ready(graph(X, Y))


def small_scan() -> Step:
    """Thirty-two steps in one run."""
    graph = small_graph({})
    x, y = np.stack([X] * STEPS), np.stack([Y] * STEPS)
    return lambda: jax.block_until_ready(graph.scan(x, y))


def small_by_hand() -> Step:
    """The same step over flat lists, donated, written with jax and optax."""
    graphdef, params = nnx.split(Small(nnx.Rngs(0)))
    leaves, tree = jax.tree.flatten(params)
    tx = optax.adamw(1e-3, weight_decay=0.01)
    slots, slots_tree = jax.tree.flatten(tx.init(leaves))

    def loss_of(leaves: list[Any], x: Any, y: Any) -> jax.Array:
        model = nnx.merge(graphdef, jax.tree.unflatten(tree, leaves))
        return cross_entropy(model(x), y)

    def update(leaves: Any, slots: Any, x: Any, y: Any) -> Any:
        loss, grads = jax.value_and_grad(loss_of)(leaves, x, y)
        state = jax.tree.unflatten(slots_tree, slots)
        updates, state = tx.update(grads, state, leaves)
        new: Any = optax.apply_updates(leaves, updates)
        return new, jax.tree.leaves(state), loss

    jitted = jax.jit(update, donate_argnums=(0, 1))
    held = [jax.tree.map(jnp.copy, leaves), slots]

    def step() -> float:
        *held[:], loss = jitted(*held, X, Y)
        return jax.block_until_ready(loss)

    return step


def mobilenet(options: dict[str, Any]) -> Step:
    """A graph over MobileNetV2."""
    model = glr.models.mobilenet_v2(10, rngs=nnx.Rngs(0))
    groups = [
        {"params": model.features, "lr_scale": 0.9},
        {"params": model.classifier, "lr_scale": 0.7},
    ]
    graph = Train(model, glr.optim.SGD(groups, lr=0.01, momentum=0.9), options)
    return lambda: jax.block_until_ready(graph(IMAGES, LABELS))


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(
        description="What each option of a graph costs, against a graph without any.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--rounds", type=int, default=20, help="turns of each variant")
    args = parser.parse_args()
    small_steps = {"jax.jit by hand": small_by_hand()}
    small_steps |= {name: small(options) for name, options in OPTIONS.items()}
    calls = measure(small_steps, args.rounds, each=200)
    scan = measure({"scan": small_scan()}, args.rounds, each=20)["scan"]
    calls[f"a step of scan, {STEPS} in one run"] = {
        key: value / STEPS for key, value in scan.items()
    }
    tables = {
        "small model, call": calls,
        "MobileNetV2, step": measure(
            {name: mobilenet(options) for name, options in OPTIONS.items()},
            max(args.rounds // 4, 2),
            each=5,
        ),
    }
    for title, rows in tables.items():
        plain = rows["plain graph"]["median_ms"]
        print(f"\n{title}")
        for name, row in rows.items():
            row["ratio"] = row["median_ms"] / plain
            print(f"  {name:32s} {row['median_ms']:9.3f} ms  {row['ratio']:5.2f}")
    path = Path(__file__).parent / "results" / "options.json"
    device = f"{jax.devices()[0].device_kind}, {platform.machine()}"
    path.write_text(
        json.dumps({"device": device, "jax": jax.__version__, **tables}, indent=1)
    )
    print(f"\nwritten to {path}")


if __name__ == "__main__":
    main()
