"""Convolutions alone, forward and backward, in graphlr's form and in XLA's own."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

import graphlr as glr
from benchmarks.systems import Step
from graphlr.runtime import compiler_options

NHWC = ("NHWC", "HWIO", "NHWC")


class Convolution(NamedTuple):
    """The shapes of one.

    Attributes:
        image: `(height, width, channels)`.
        kernel: `(height, width, channels of a group, outputs)`.
        stride: Along both axes.
        groups: Of channels.
        dilation: Along both axes.
    """

    image: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: int = 1
    groups: int = 1
    dilation: int = 1

    def apply(self, convolve: Callable[..., Any], x: Any, kernel: Any) -> jax.Array:
        """The result, as large as the image but for the stride."""
        edge = self.dilation * (self.kernel[0] // 2)
        return convolve(
            x,
            kernel,
            window_strides=(self.stride,) * 2,
            padding=((edge, edge),) * 2,
            rhs_dilation=(self.dilation,) * 2,
            feature_group_count=self.groups,
            dimension_numbers=NHWC,
        )


def of_mobilenet() -> list[Convolution]:
    """Every convolution of MobileNetV2 on 32×32 images, found by tracing it."""
    found = []

    def record(x: Any, kernel: Any, strides: Any, *args: Any, **options: Any) -> Any:
        groups = options["feature_group_count"]
        found.append(Convolution(x.shape[1:], kernel.shape, strides[0], groups))
        return lax.conv_general_dilated(x, kernel, strides, *args, **options)

    def forward() -> jax.Array:
        model = glr.models.mobilenet_v2(10, rngs=nnx.Rngs(0))
        for _, node in nnx.iter_modules(model):
            if isinstance(node, nnx.Conv):
                node.conv_general_dilated = record
        return model(jnp.zeros((2, 32, 32, 3)))

    jax.eval_shape(forward)
    return found


def shapes(kernel: str) -> list[Convolution]:
    """The convolutions of one of `systems.KERNELS`."""
    others = {
        "depthwise 5×5": [
            Convolution((16, 16, 96), (5, 5, 1, 96), 1, 96),
            Convolution((8, 8, 192), (5, 5, 1, 192), 2, 192),
        ],
        "dilated": [Convolution((16, 16, 96), (3, 3, 1, 96), 1, 96, dilation=2)],
        "channel multiplier": [Convolution((16, 16, 48), (3, 3, 1, 96), 1, 48)],
    }
    if kernel in others:
        return others[kernel]
    depthwise = kernel == "depthwise 3×3"
    return [
        each
        for each in of_mobilenet()
        if (each.groups > 1 if depthwise else each.kernel[:2] == (1, 1))
    ]


def forward_backward(each: Convolution, size: int, by: str) -> Callable[[], Any]:
    """One convolution and its derivatives in image and kernel, as a program."""
    fast = by == "graphlr.layers"
    convolve = glr.layers.conv_general_dilated if fast else lax.conv_general_dilated

    def run(x: Any, kernel: Any, cotangent: Any) -> Any:
        y, backward = jax.vjp(lambda *args: each.apply(convolve, *args), x, kernel)
        return y, backward(cotangent)

    draw = np.random.default_rng(0).normal
    x = jnp.asarray(draw(size=(size, *each.image)), jnp.float32)
    kernel = jnp.asarray(draw(size=each.kernel), jnp.float32)
    shape = jax.eval_shape(
        lambda *args: each.apply(lax.conv_general_dilated, *args), x, kernel
    ).shape
    cotangent = jnp.asarray(draw(size=shape), jnp.float32)
    jitted = jax.jit(run, compiler_options=compiler_options() if fast else None)
    return lambda: jax.block_until_ready(jitted(x, kernel, cotangent))


def step(size: int, kernel: str, by: str) -> Step:
    """All convolutions of a kind, one after another."""
    programs = [forward_backward(each, size, by) for each in shapes(kernel)]

    def call() -> float:
        for program in programs:
            program()
        return 0.0

    return call
