import functools
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from graphlr.layers import Conv, conv_general_dilated, depthwise_conv

NHWC = ("NHWC", "HWIO", "NHWC")


def arrays(*shapes, dtype=np.float64):
    draws = np.random.default_rng(0)
    return [jnp.asarray(draws.normal(size=shape), dtype) for shape in shapes]


def native(x, kernel, strides, padding, **options):
    return lax.conv_general_dilated(
        x,
        kernel,
        strides,
        padding,
        dimension_numbers=NHWC,
        **options,
        feature_group_count=x.shape[-1] // kernel.shape[2],
    )


def chosen(x, kernel, strides, padding, **options):
    return conv_general_dilated(
        x,
        kernel,
        strides,
        padding,
        dimension_numbers=NHWC,
        feature_group_count=x.shape[-1] // kernel.shape[2],
        **options,
    )


def compiled_convolutions(function, *args, platform="cpu"):
    program = jax.export.export(jax.jit(function), platforms=[platform])(*args)
    return str(program.mlir_module()).count("stablehlo.convolution")


def check_like_native(x, kernel, **options):
    """Values and both gradients, to twelve digits."""
    results = []
    for conv in (native, chosen):
        y, pull = jax.vjp(jax.jit(functools.partial(conv, **options)), x, kernel)
        (g,) = arrays(y.shape)
        results.append((y, *pull(g)))
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-12, atol=1e-12),
        *results,
    )


DEPTHWISE = [
    # height, width, kernel, strides, padding
    (8, 8, 3, (1, 1), ((1, 1), (1, 1))),
    (7, 5, 3, (2, 2), ((1, 1), (1, 1))),
    (1, 1, 3, (1, 1), ((1, 1), (1, 1))),
    (2, 1, 3, (2, 2), ((1, 1), (1, 1))),
    (1, 6, 5, (2, 1), ((2, 2), (2, 2))),
    (9, 4, 5, (1, 2), ((2, 2), (2, 2))),
    (6, 7, 3, (2, 2), "SAME"),
    (6, 7, 3, (2, 1), "VALID"),
    (6, 6, 3, (3, 3), ((0, 2), (3, 1))),
    (6, 6, 3, (1, 1), ((-1, 2), (0, -2))),
    (1, 3, 1, (2, 2), ((1, 1), (1, 1))),
    (2, 2, 5, (1, 1), "VALID"),
    (20, 3, 3, (1, 1), ((1, 1), (1, 1))),
    (33, 2, 5, (2, 1), ((2, 2), (2, 2))),
    (4, 5, 3, (1, 1), ((9, 0), (0, 9))),
    (12, 3, 3, (1, 1), ((0, 14), (2, 1))),
]


@pytest.mark.parametrize(("height", "width", "size", "strides", "padding"), DEPTHWISE)
def test_depthwise_is_the_grouped_convolution(height, width, size, strides, padding):
    with jax.enable_x64(True):
        x, kernel = arrays((2, height, width, 3), (size, size, 1, 3))
        check_like_native(x, kernel, strides=strides, padding=padding)


@pytest.mark.parametrize(
    ("size", "dilation", "multiplier", "padding"),
    [
        (3, (2, 3), 1, "SAME"),
        (5, (1, 2), 1, ((3, 0), (1, 4))),
        (3, (1, 1), 3, "SAME"),
        (3, (3, 1), 2, "VALID"),
    ],
)
def test_dilated_and_multiplied_depthwise(size, dilation, multiplier, padding):
    with jax.enable_x64(True):
        x, kernel = arrays((2, 9, 8, 3), (size, size, 1, 3 * multiplier))
        options = {"strides": (2, 1), "padding": padding, "rhs_dilation": dilation}
        check_like_native(x, kernel, **options)
        for conv, left in ((native, 1), (chosen, 0)):
            function = functools.partial(conv, **options)
            assert compiled_convolutions(function, x, kernel) == left


@pytest.mark.parametrize(
    ("shape", "strides", "padding"),
    [
        ((1, 1, 3, 5), (1, 1), "SAME"),
        ((1, 1, 3, 5), (2, 2), "VALID"),
        ((1, 1, 3, 5), (1, 1), ((1, 1), (1, 1))),
        ((1, 1, 3, 2), (2, 1), "VALID"),
        ((3, 3, 3, 5), (1, 1), "SAME"),
        ((3, 3, 3, 32), (2, 2), ((1, 1), (1, 1))),
        ((3, 5, 3, 40), (1, 2), ((0, 3), (2, -1))),
        ((5, 5, 3, 32), (3, 1), ((9, 0), (-2, 0))),
    ],
)
def test_other_kernels_are_the_convolution(shape, strides, padding):
    with jax.enable_x64(True):
        x, kernel = arrays((2, 5, 4, 3), shape)
        check_like_native(x, kernel, strides=strides, padding=padding)


@pytest.mark.parametrize("shape", [(3, 3, 1, 4), (1, 1, 4, 4), (1, 1, 4, 2)])
def test_second_derivatives_and_both_modes(shape):
    with jax.enable_x64(True):
        x, kernel = arrays((2, 5, 4, 4), shape)
        padding = [(size // 2, size // 2) for size in shape[:2]]

        def energy(conv, x, kernel):
            return jnp.sin(conv(x, kernel, (1, 1), padding)).sum()

        def slope(conv, kernel):
            return jnp.sum(jax.grad(energy, 1)(conv, x, kernel) ** 2)

        for derivative in (jax.grad, jax.jacfwd):
            expected, got = (
                jax.jit(derivative(functools.partial(slope, conv)))(kernel)
                for conv in (native, chosen)
            )
            np.testing.assert_allclose(got, expected, rtol=1e-10, atol=1e-10)


def test_vmap():
    with jax.enable_x64(True):
        x, kernels = arrays((3, 2, 5, 4, 4), (3, 3, 3, 1, 4))
        conv = functools.partial(chosen, strides=(2, 2), padding=((1, 1), (1, 1)))
        together = jax.vmap(conv)(x, kernels)
        apart = jnp.stack([conv(*pair) for pair in zip(x, kernels, strict=True)])
        np.testing.assert_allclose(together, apart, rtol=1e-12)


def test_bfloat16_is_accumulated_in_float32():
    x, kernel = arrays((2, 8, 8, 4), (5, 5, 1, 4), dtype=jnp.bfloat16)
    y = depthwise_conv(x, kernel, (1, 1), ((2, 2), (2, 2)))
    exact = native(x.astype("float32"), kernel.astype("float32"), (1, 1), "SAME")
    assert y.dtype == jnp.bfloat16
    np.testing.assert_array_equal(y, exact.astype(jnp.bfloat16))


def test_a_frozen_kernel_or_image_costs_nothing():
    specs = [jax.ShapeDtypeStruct(s, jnp.float32) for s in [(2, 8, 8, 4), (3, 3, 1, 4)]]

    def loss(x, kernel):
        return jnp.sum(depthwise_conv(x, kernel, (1, 1), ((1, 1), (1, 1))))

    both, image, kernel = (
        jax.jit(jax.grad(loss, wrt)).lower(*specs).compile().cost_analysis()["flops"]
        for wrt in ((0, 1), 0, 1)
    )
    assert image + kernel < 1.2 * both


def test_a_kernel_gradient_keeps_no_padded_image():
    sizes = [(16, 32, 32, 16), (3, 3, 1, 16), (16, 32, 32, 16)]
    x, kernel, gradient = (jax.ShapeDtypeStruct(size, jnp.float32) for size in sizes)

    def backward(x, kernel, gradient):
        conv = functools.partial(chosen, strides=(1, 1), padding="SAME")
        return jax.vjp(lambda kernel: conv(x, kernel), kernel)[1](gradient)

    compiled = jax.jit(backward).lower(x, kernel, gradient).compile()
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
for one, many in zip(*map(jax.tree.leaves, (step(x, kernel), step(sharded, kernel)))):
    np.testing.assert_allclose(one, many, rtol=1e-10, atol=1e-10)
print(len(step(sharded, kernel)[1][0].sharding.device_set))
"""
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert run.stdout.split() == ["4"]


@pytest.mark.parametrize(
    ("channels", "shape"), [(4, (3, 3, 1, 4)), (4, (1, 1, 4, 8)), (3, (3, 3, 3, 32))]
)
def test_only_cpu_programs_are_reformulated(channels, shape):
    sizes = [(2, 5, 5, channels), shape]
    specs = [jax.ShapeDtypeStruct(dims, jnp.float32) for dims in sizes]

    def loss(x, kernel):
        return jnp.sum(chosen(x, kernel, (1, 1), "SAME") ** 2)

    gradients = jax.grad(loss, (0, 1))
    assert compiled_convolutions(gradients, *specs) == 0
    assert compiled_convolutions(gradients, *specs, platform="cuda") == 3
    assert compiled_convolutions(gradients, *specs, platform="tpu") == 3


def test_what_is_not_plain_is_left_to_xla():
    x, kernel = arrays((2, 7, 7, 4), (3, 3, 1, 4), dtype=np.float32)
    for options in (
        {"lhs_dilation": (2, 2)},
        {"preferred_element_type": jnp.float32},
    ):
        conv = functools.partial(
            chosen, strides=(1, 1), padding=[(0, 0)] * 2, **options
        )
        assert compiled_convolutions(conv, x, kernel) == 1
    whole = jnp.ones((2, 4, 4, 4), jnp.int32), jnp.ones((3, 3, 1, 4), jnp.int32)
    integers = functools.partial(chosen, strides=(1, 1), padding="VALID")
    assert compiled_convolutions(integers, *whole) == 1


@pytest.mark.parametrize(
    "arguments",
    [
        {"kernel_size": (3, 3), "feature_group_count": 6, "strides": 2, "padding": 1},
        {"kernel_size": (3, 3), "feature_group_count": 6, "padding": "CIRCULAR"},
        {"kernel_size": (3, 3), "feature_group_count": 2, "padding": ((1, 0), (0, 2))},
        {"kernel_size": (1, 1), "dtype": jnp.bfloat16},
        {"kernel_size": (3, 3), "feature_group_count": 6, "param_dtype": jnp.float16},
        {"kernel_size": (3,), "feature_group_count": 6},
    ],
)
def test_conv_is_a_drop_in_for_nnx(arguments):
    ours, theirs = (
        layer(6, 6, bias_init=nnx.initializers.ones, rngs=nnx.Rngs(0), **arguments)
        for layer in (Conv, nnx.Conv)
    )
    assert jax.tree.all(
        jax.tree.map(
            jnp.array_equal, *map(nnx.to_pure_dict, map(nnx.state, [ours, theirs]))
        )
    )
    (x,) = arrays((2, *[5] * len(arguments["kernel_size"]), 6), dtype=np.float32)
    y, expected = ours(x), theirs(x)
    assert y.dtype == expected.dtype
    tolerance = 1e-5 if y.dtype == jnp.float32 else 2e-2
    np.testing.assert_allclose(
        y.astype("float32"), expected.astype("float32"), rtol=tolerance, atol=tolerance
    )
