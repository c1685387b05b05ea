"""Depthwise convolutions as sums: XLA's numbers, and what their derivatives cost."""

import functools
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from graphlr.layers.depthwise import depthwise_conv
from tests.layers.convolutions import arrays, check_like_native, native
from tests.models import quick

NONE = ((0, 0), (0, 0))
ONE = ((1, 1), (1, 1))
TWO = ((2, 2), (2, 2))


@pytest.mark.parametrize(
    ("height", "width", "size", "strides", "padding"),
    [
        (8, 8, 3, (1, 1), ONE),
        (7, 5, 3, (2, 2), ONE),
        (1, 1, 3, (1, 1), ONE),
        (2, 1, 3, (2, 2), ONE),
        (1, 6, 5, (2, 1), TWO),
        (9, 4, 5, (1, 2), TWO),
        (6, 7, 3, (2, 2), ((0, 1), (1, 1))),
        (6, 7, 3, (2, 1), NONE),
        (6, 6, 3, (3, 3), ((0, 2), (3, 1))),
        (6, 6, 3, (1, 1), ((-1, 2), (0, -2))),
        (1, 3, 1, (2, 2), ONE),
        (2, 2, 5, (1, 1), NONE),
        (20, 3, 3, (1, 1), ONE),
        (33, 2, 5, (2, 1), TWO),
        (4, 5, 3, (1, 1), ((9, 0), (0, 9))),
        (12, 3, 3, (1, 1), ((0, 14), (2, 1))),
    ],
)
def test_is_the_grouped_convolution(height, width, size, strides, padding):
    with jax.enable_x64(True):
        x, kernel = arrays((2, height, width, 3), (size, size, 1, 3))
        options = {"strides": strides, "padding": padding}
        check_like_native(depthwise_conv, x, kernel, **options)


def test_bfloat16_is_accumulated_in_float32():
    x, kernel = arrays((2, 8, 8, 4), (5, 5, 1, 4), dtype=jnp.bfloat16)

    @quick
    def both(x, kernel):
        exact = native(*(a.astype("float32") for a in (x, kernel)), (1, 1), TWO)
        return depthwise_conv(x, kernel, (1, 1), TWO), exact.astype(jnp.bfloat16)

    y, exact = both(x, kernel)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_array_equal(y, exact)


def test_a_frozen_kernel_or_image_costs_nothing():
    specs = [jax.ShapeDtypeStruct(s, jnp.float32) for s in [(2, 8, 8, 4), (3, 3, 1, 4)]]

    def loss(x, kernel):
        return jnp.sum(depthwise_conv(x, kernel, (1, 1), ONE))

    both, image, kernel = (
        quick(jax.grad(loss, wrt)).lower(*specs).compile().cost_analysis()["flops"]
        for wrt in ((0, 1), 0, 1)
    )
    assert image + kernel < 1.2 * both


def test_a_kernel_gradient_keeps_no_padded_image():
    sizes = [(16, 32, 32, 16), (3, 3, 1, 16), (16, 32, 32, 16)]
    x, kernel, gradient = (jax.ShapeDtypeStruct(size, jnp.float32) for size in sizes)

    def backward(x, kernel, gradient):
        conv = functools.partial(depthwise_conv, x, strides=(1, 1), padding=ONE)
        return jax.vjp(conv, kernel)[1](gradient)

    compiled = quick(backward).lower(x, kernel, gradient).compile()
    temporary = compiled.memory_analysis().temp_size_in_bytes
    assert temporary < 1.5 * np.prod(sizes[0]) * 4


def test_sharded_over_the_batch():
    code = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from graphlr.layers import BatchNorm, depthwise_conv
from flax import nnx
jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_enable_x64", True)
mesh = jax.make_mesh((4,), ("batch",))
draws = np.random.default_rng(0)
x, kernel = draws.normal(size=(8, 6, 6, 4)), draws.normal(size=(3, 3, 1, 4))
def loss(x, kernel):
    norm = BatchNorm(4, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    return jnp.sum(norm(depthwise_conv(x, kernel, (2, 2), ((1, 1), (1, 1)))) ** 3)
step = jax.jit(jax.value_and_grad(loss, (0, 1)))
sharded = jax.device_put(x, NamedSharding(mesh, PartitionSpec("batch")))
many = step(sharded, kernel)
for one, other in zip(*map(jax.tree.leaves, (step(x, kernel), many))):
    np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-10)
print(len(many[1][0].sharding.device_set))
"""
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert run.stdout.split() == ["4"]
