"""MobileNetV2's training step in JAX."""

from typing import Any

import jax
import optax
from flax import nnx

import graphlr as glr
from benchmarks.systems import Step, stock
from benchmarks.systems.data import SCALES, batch_of
from benchmarks.systems.training import KINDS, Task, Train


def cross_entropy(model: Any, image: jax.Array, label: jax.Array) -> jax.Array:
    """Mean softmax cross-entropy."""
    logits = model(image)
    return optax.softmax_cross_entropy_with_integer_labels(logits, label).mean()


def group_of(path: tuple[Any, ...]) -> str:
    """The group of a parameter, by its path."""
    if path[0] == "classifier":
        return "classifier"
    return "stem" if path[1] == 0 else "features"


def task(size: int, layers: str = "graphlr") -> Task:
    """MobileNetV2 of graphlr's layers or of flax's, and a batch of `size` images."""
    make = {"graphlr": glr.models.mobilenet_v2, "flax": stock.MobileNetV2}[layers]
    model = make(10, rngs=nnx.Rngs(0))
    return Task(model, cross_entropy, batch_of(size), SCALES, group_of)


def step(size: int, kind: str, layers: str) -> Step:
    """A training step of one of `training.KINDS`."""
    return KINDS[kind](task(size, layers))


def export(path: str, size: int) -> None:
    """Write the training step to a file, for `exported`."""
    what = task(size)
    Train(what).export(path, *what.batch)


def exported(size: int, file: str) -> Step:
    """A training step from a file that `export` wrote."""
    loaded, batch = glr.export.load(file), batch_of(size)
    return lambda: float(loaded(*batch))
