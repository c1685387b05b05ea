"""BatchNorm: the numbers of flax and PyTorch, at every order, and what it keeps."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from graphlr.layers import BatchNorm
from graphlr.runtime import compiler_options
from tests.layers.convolutions import arrays
from tests.models import assert_same, quick, values


def both_layers(features, **kwargs):
    """Ours and flax's with the same constants, and statistics as precise as ours."""
    same = {"momentum": 0.9, "epsilon": 1e-5, "use_fast_variance": False}
    ours, theirs = (
        kind(features, **same, rngs=nnx.Rngs(0), **kwargs)
        for kind in (BatchNorm, nnx.BatchNorm)
    )
    theirs.mean, theirs.var = map(nnx.BatchStat, (ours.mean[...], ours.var[...]))
    return ours, theirs


def check_close(ours, theirs, tolerance):
    close = functools.partial(
        np.testing.assert_allclose, rtol=tolerance, atol=tolerance
    )
    jax.tree.map(close, *map(jax.tree.leaves, (ours, theirs)))


def pure(norm, function):
    """`function(norm, x)` of the layer's parameters and `x`."""
    graphdef, params, rest = nnx.split(norm, nnx.Param, ...)

    def call(params, x):
        layer = nnx.merge(graphdef, params, rest, copy=True)
        return function(layer(x))

    return call, params


@quick
def applied(norm, x, **options):
    """What a layer gives, and the layer afterwards."""
    y = norm(x, **options)
    return y, norm


@pytest.mark.parametrize("kwargs", [{}, {"use_scale": False}, {"use_bias": False}])
def test_values_and_gradients_are_those_of_nnx(kwargs):
    with jax.enable_x64(True):
        images = arrays((6, 3, 2, 4), (5, 1, 1, 4), (8, 4), (2, 7, 4))

        @quick
        def both(images):
            results = []
            for norm in both_layers(4, param_dtype=jnp.float64, **kwargs):
                call, params = pure(norm, lambda y: jnp.sum(jnp.sin(3 * y) + y**3))
                slopes = jax.value_and_grad(call, (0, 1))
                results.append([slopes(params, x) for x in images])
            return results

        check_close(*both(images), 1e-10)


def test_every_order_and_mode_of_differentiation():
    with jax.enable_x64(True):
        (x,) = arrays((6, 2, 3))

        @quick
        def both(x):
            results = []
            for norm in both_layers(3, param_dtype=jnp.float64):
                call, params = pure(norm, lambda y: jnp.sum(jnp.sin(y)))
                value = functools.partial(call, params)
                slope = jax.grad(lambda x, value=value: jnp.sum(value(x) ** 2))
                results.append(
                    [
                        jax.jacfwd(value)(x),
                        jax.jacfwd(slope)(x),
                        jax.grad(lambda x, slope=slope: jnp.sum(slope(x) ** 2))(x),
                        jax.vmap(slope)(jnp.stack([x, x * x])),
                    ]
                )
            return results

        check_close(*both(x), 1e-9)


def test_gradients_reach_the_running_statistics():
    with jax.enable_x64(True):
        (x,) = arrays((6, 3))
        ours, _ = both_layers(3, param_dtype=jnp.float64)

        def kept(x):
            graphdef, state = nnx.split(ours)
            layer = nnx.merge(graphdef, state, copy=True)
            layer(x)
            return jnp.sum(layer.mean[...] + layer.var[...] ** 2)

        def expected(x):
            return jnp.sum(0.1 * x.mean(0) + (0.9 + 0.1 * x.var(0, ddof=1)) ** 2)

        got, wanted = quick(lambda x: [jax.grad(f)(x) for f in (kept, expected)])(x)
        np.testing.assert_allclose(got, wanted, rtol=1e-10)


@pytest.mark.parametrize(
    ("given", "kwargs"),
    [
        (jnp.bfloat16, {}),
        (jnp.bfloat16, {"dtype": jnp.bfloat16}),
        (jnp.float32, {"dtype": jnp.bfloat16}),
        (jnp.bfloat16, {"param_dtype": jnp.bfloat16}),
        (jnp.int32, {}),
    ],
)
def test_dtypes_are_those_of_nnx(given, kwargs):
    x = jnp.asarray(np.round(4 * arrays((6, 5, 3), dtype=np.float32)[0]), given)
    ours, theirs = both_layers(3, **kwargs)
    (y, ours), (expected, _) = applied(ours, x), applied(theirs, x)
    assert y.dtype == expected.dtype
    assert ours.mean[...].dtype == ours.var[...].dtype == jnp.float32
    tolerance = 1e-5 if y.dtype == jnp.float32 else 1e-2
    y, expected = (np.asarray(array, np.float32) for array in (y, expected))
    check_close(y, expected, tolerance)


def test_complex_images_are_left_to_nnx():
    real, imaginary = arrays((6, 3), (6, 3), dtype=np.float32)
    x = np.asarray(real) + 2j * np.asarray(imaginary) ** 2
    layers = both_layers(3, param_dtype=jnp.complex64)
    (y, _), (expected, _) = (applied(norm, x) for norm in layers)
    assert y.dtype == jnp.complex64
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)


def test_keeps_what_pytorch_keeps():
    (x,) = arrays((4, 3, 2, 5), dtype=np.float32)
    y, norm = applied(BatchNorm(5, rngs=nnx.Rngs(0)), x)
    flat = np.asarray(x, np.float64).reshape(-1, 5)
    mean, biased, unbiased = flat.mean(0), flat.var(0), flat.var(0, ddof=1)
    normalised = (np.asarray(x) - mean) / np.sqrt(biased + 1e-5)
    np.testing.assert_allclose(y, normalised, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(norm.mean[...], 0.1 * mean, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(norm.var[...], 0.9 + 0.1 * unbiased, rtol=1e-6)
    _, norm = applied(norm, x)
    expected = 0.9 * (0.9 + 0.1 * unbiased) + 0.1 * unbiased
    np.testing.assert_allclose(norm.var[...], expected, rtol=1e-6)

    before = values(norm)
    norm.eval()
    y, norm = applied(norm, x)
    expected = (np.asarray(x) - before["mean"]) / np.sqrt(before["var"] + 1e-5)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
    assert_same(values(norm), before)


def test_keeps_one_image_for_its_backward_pass():
    layers, x, w = 8, jnp.ones((64, 8, 8, 16)), jnp.eye(16)

    def loss(x, w):
        for _ in range(layers):
            x = jax.nn.relu(BatchNorm(16, rngs=nnx.Rngs(0))(x @ w))
        return x.sum()

    lowered = jax.jit(jax.grad(loss, (0, 1))).lower(x, w)
    compiled = lowered.compile(compiler_options())
    images = compiled.memory_analysis().temp_size_in_bytes / x.nbytes
    # The centred one, and what the product needs; left alone, XLA keeps a third.
    assert images < 2 * layers + 2


def test_is_right_where_the_mean_is_thousands_of_deviations():
    (x,) = arrays((4096, 2), dtype=np.float32)
    x = np.asarray(x) + 3000
    y, norm = applied(BatchNorm(2, momentum=0.0, rngs=nnx.Rngs(0)), x)
    exact = np.asarray(x, np.float64).var(0, ddof=1)
    np.testing.assert_allclose(norm.var[...], exact, rtol=1e-5)
    np.testing.assert_allclose(np.std(y, 0), 1, rtol=1e-3)


def test_counts_only_what_it_averages():
    (x,) = arrays((6, 3, 2), dtype=np.float32)
    mask = (np.arange(6) < 4)[:, None, None]
    _, norm = applied(BatchNorm(2, momentum=0.0, rngs=nnx.Rngs(0)), x, mask=mask)
    exact = np.asarray(x)[:4].reshape(-1, 2).var(0, ddof=1)
    np.testing.assert_allclose(norm.var[...], exact, rtol=1e-5)

    def variance(x):
        norm = BatchNorm(2, momentum=0.0, axis_name="devices", rngs=nnx.Rngs(0))
        norm(x)
        return norm.var[...]

    shards = quick(jax.vmap(variance, axis_name="devices"))(x)
    exact = np.asarray(x).reshape(-1, 2).var(0, ddof=1)
    np.testing.assert_allclose(shards, np.tile(exact, (6, 1)), rtol=1e-5)


def test_refuses_a_single_value_in_training_only():
    norm, x = BatchNorm(3, rngs=nnx.Rngs(0)), np.ones((1, 1, 1, 3), np.float32)
    with pytest.raises(ValueError, match=r"more than one value.*\(1, 1, 1, 3\)"):
        norm(x)
    evaluate = functools.partial(norm, use_running_average=True)
    assert jax.eval_shape(evaluate, x).shape == x.shape


def test_computes_statistics_of_bfloat16_in_float32():
    (x,) = arrays((64, 4), dtype=jnp.bfloat16)
    y, norm = applied(BatchNorm(4, dtype=jnp.bfloat16, rngs=nnx.Rngs(0)), x)
    assert y.dtype == jnp.bfloat16
    assert norm.var[...].dtype == jnp.float32
    exact = np.asarray(x, np.float64).var(0, ddof=1)
    np.testing.assert_allclose(norm.var[...], 0.9 + 0.1 * exact, rtol=1e-4)


def test_of_float64_parameters_keeps_float64_statistics():
    with jax.enable_x64(True):
        (x,) = arrays((64, 4))
        _, norm = applied(BatchNorm(4, param_dtype=jnp.float64, rngs=nnx.Rngs(0)), x)
        exact = 0.9 + 0.1 * np.var(x, 0, ddof=1)
        np.testing.assert_allclose(norm.var[...], exact, rtol=1e-14)
