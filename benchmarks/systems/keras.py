"""MobileNetV2's training step in Keras on JAX, which has one learning rate for all."""

import os

os.environ["KERAS_BACKEND"] = "jax"  # read by the import

import keras

from benchmarks.systems import Step
from benchmarks.systems.data import batch_of


def step(size: int) -> Step:
    """A training step by `train_on_batch`."""
    model = keras.applications.MobileNetV2(
        input_shape=(32, 32, 3), weights=None, classes=10
    )
    model.compile(
        optimizer=keras.optimizers.SGD(0.01, momentum=0.9),
        loss=keras.losses.SparseCategoricalCrossentropy(),
    )
    images, labels = batch_of(size)
    return lambda: float(model.train_on_batch(images, labels))
