"""Convolutions of images (batch, height, width, channels), and how to compare them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from graphlr.layers import conv_general_dilated
from tests.models import quick


def arrays(*shapes, dtype=np.float64):
    draws = np.random.default_rng(0)
    return [jnp.asarray(draws.normal(size=shape), dtype) for shape in shapes]


def of_images(function, x, kernel, strides, padding, **options):
    return function(
        x,
        kernel,
        strides,
        padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1] // kernel.shape[2],
        **options,
    )


native = functools.partial(of_images, lax.conv_general_dilated)
chosen = functools.partial(of_images, conv_general_dilated)


def check_like_native(conv, x, kernel, **options):
    """Values and both gradients are the native ones, to twelve digits."""

    def all_of(conv, x, kernel):
        y, pull = jax.vjp(functools.partial(conv, **options), x, kernel)
        return y, *pull(jnp.cos(y))

    both = quick(lambda *args: [all_of(f, *args) for f in (native, conv)])
    expected, got = both(x, kernel)
    for one, other in zip(expected, got, strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-12, atol=1e-12)


def lowered_convolutions(function, *args, platform="cpu"):
    """How many of XLA's own convolutions a function is lowered to."""
    program = jax.export.export(jax.jit(function), platforms=[platform])(*args)
    return str(program.mlir_module()).count("stablehlo.convolution")
