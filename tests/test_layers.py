import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from graphlr.layers import BatchNorm, Conv, conv_general_dilated, depthwise_conv

NHWC = ("NHWC", "HWIO", "NHWC")


def arrays(*shapes, dtype=np.float64):
    draws = np.random.default_rng(0)
    return [jnp.asarray(draws.normal(size=shape), dtype) for shape in shapes]


def native(x, kernel, strides, padding):
    return lax.conv_general_dilated(
        x,
        kernel,
        strides,
        padding,
        dimension_numbers=NHWC,
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
]


@pytest.mark.parametrize(("height", "width", "size", "strides", "padding"), DEPTHWISE)
def test_depthwise_is_the_grouped_convolution(height, width, size, strides, padding):
    with jax.enable_x64(True):
        x, kernel = arrays((2, height, width, 3), (size, size, 1, 3))
        results = []
        for conv in (native, chosen):
            function = functools.partial(conv, strides=strides, padding=padding)
            y, pull = jax.vjp(jax.jit(function), x, kernel)
            (g,) = arrays(y.shape)
            results.append((y, *pull(g)))
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, rtol=1e-12, atol=1e-12),
            *results,
        )


@pytest.mark.parametrize(
    ("shape", "strides", "padding"),
    [
        ((1, 1, 3, 5), (1, 1), "SAME"),
        ((1, 1, 3, 5), (2, 2), "VALID"),
        ((1, 1, 3, 5), (1, 1), ((1, 1), (1, 1))),
        ((3, 3, 3, 5), (1, 1), "SAME"),
    ],
)
def test_other_kernels_are_the_convolution(shape, strides, padding):
    with jax.enable_x64(True):
        x, kernel = arrays((2, 5, 4, 3), shape)
        expected = native(x, kernel, strides, padding)
        y = chosen(x, kernel, strides, padding)
        np.testing.assert_allclose(y, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", [(3, 3, 1, 4), (1, 1, 4, 4)])
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


@pytest.mark.parametrize("shape", [(3, 3, 1, 4), (1, 1, 4, 8)])
def test_only_cpu_programs_are_reformulated(shape):
    specs = [jax.ShapeDtypeStruct(dims, jnp.float32) for dims in [(2, 5, 5, 4), shape]]

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


def test_batchnorm_keeps_what_pytorch_keeps():
    (x,) = arrays((4, 3, 2, 5), dtype=np.float32)
    norm = BatchNorm(5, rngs=nnx.Rngs(0))
    y = norm(x)
    flat = np.asarray(x, np.float64).reshape(-1, 5)
    mean, biased, unbiased = flat.mean(0), flat.var(0), flat.var(0, ddof=1)
    normalised = (np.asarray(x) - mean) / np.sqrt(biased + 1e-5)
    np.testing.assert_allclose(y, normalised, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(norm.mean[...], 0.1 * mean, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(norm.var[...], 0.9 + 0.1 * unbiased, rtol=1e-6)
    norm(x)
    expected = 0.9 * (0.9 + 0.1 * unbiased) + 0.1 * unbiased
    np.testing.assert_allclose(norm.var[...], expected, rtol=1e-6)

    before = norm.mean[...], norm.var[...]
    norm.eval()
    deviation = np.sqrt(np.asarray(before[1]) + 1e-5)
    np.testing.assert_allclose(
        norm(x), (np.asarray(x) - before[0]) / deviation, rtol=1e-5, atol=1e-5
    )
    assert jnp.array_equal(norm.mean[...], before[0])
    assert jnp.array_equal(norm.var[...], before[1])


def test_batchnorm_is_right_where_the_mean_is_thousands_of_deviations():
    (x,) = arrays((4096, 2), dtype=np.float32)
    x = x + 3000
    norm = BatchNorm(2, momentum=0.0, rngs=nnx.Rngs(0))
    y = norm(x)
    exact = np.asarray(x, np.float64).var(0, ddof=1)
    np.testing.assert_allclose(norm.var[...], exact, rtol=1e-5)
    np.testing.assert_allclose(y.std(0), 1, rtol=1e-3)


def test_batchnorm_counts_only_what_it_averages():
    (x,) = arrays((6, 3, 2), dtype=np.float32)
    norm = BatchNorm(2, momentum=0.0, rngs=nnx.Rngs(0))
    norm(x, mask=(jnp.arange(6) < 4)[:, None, None])
    exact = np.asarray(x)[:4].reshape(-1, 2).var(0, ddof=1)
    np.testing.assert_allclose(norm.var[...], exact, rtol=1e-5)

    graphdef, state = nnx.split(
        BatchNorm(2, momentum=0.0, axis_name="devices", rngs=nnx.Rngs(0))
    )

    def variance(x):
        norm = nnx.merge(graphdef, state, copy=True)
        norm(x)
        return norm.var[...]

    shards = jax.vmap(variance, axis_name="devices")(x)
    exact = np.asarray(x).reshape(-1, 2).var(0, ddof=1)
    np.testing.assert_allclose(shards, np.tile(exact, (6, 1)), rtol=1e-5)


def test_batchnorm_refuses_a_single_value_in_training_only():
    norm = BatchNorm(3, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"more than one value.*\(1, 1, 1, 3\)"):
        norm(jnp.ones((1, 1, 1, 3)))
    assert norm(jnp.ones((1, 1, 1, 3)), use_running_average=True).shape == (1, 1, 1, 3)


def test_batchnorm_computes_statistics_of_bfloat16_in_float32():
    (x,) = arrays((64, 4), dtype=jnp.bfloat16)
    norm = BatchNorm(4, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    assert norm(x).dtype == jnp.bfloat16
    assert norm.var[...].dtype == jnp.float32
    exact = np.asarray(x, np.float64).var(0, ddof=1)
    np.testing.assert_allclose(norm.var[...], 0.9 + 0.1 * exact, rtol=1e-4)


def test_batchnorm_of_float64_parameters_keeps_float64_statistics():
    with jax.enable_x64(True):
        (x,) = arrays((64, 4))
        norm = BatchNorm(4, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
        norm(x)
        exact = 0.9 + 0.1 * np.var(x, 0, ddof=1)
        np.testing.assert_allclose(norm.var[...], exact, rtol=1e-14)
