"""A training step that computes next to nothing: what a call costs."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from benchmarks.systems import Step
from benchmarks.systems.training import KINDS, Task

PER_LAYER = 4  # arrays: kernel, bias, and the momentum of both


def squared_error(model: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    """Mean squared error."""
    return ((model(x) - y) ** 2).mean()


def task(arrays: int) -> Task:
    """As many 8×8 layers as have `arrays` arrays, momentum counted."""
    rngs = nnx.Rngs(0)
    layers = [nnx.Linear(8, 8, rngs=rngs) for _ in range(arrays // PER_LAYER)]
    batch = jnp.ones((1, 8)), jnp.zeros((1, 8))
    return Task(
        nnx.Sequential(*layers), squared_error, batch, {"all": 1.0}, lambda _: "all"
    )


def step(arrays: int, kind: str) -> Step:
    """A training step of one of `training.KINDS`."""
    return KINDS[kind](task(arrays))
