"""Convolutions in the form that CPU computes fastest, with XLA's own numbers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from graphlr.layers import Conv
from tests.layers.convolutions import (
    arrays,
    check_like_native,
    chosen,
    lowered_convolutions,
    native,
)
from tests.models import assert_same, quick, values


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
        check_like_native(chosen, x, kernel, **options)
        for conv, left in ((native, 1), (chosen, 0)):
            function = functools.partial(conv, **options)
            assert lowered_convolutions(function, x, kernel) == left


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
        check_like_native(chosen, x, kernel, strides=strides, padding=padding)


@pytest.mark.parametrize("shape", [(3, 3, 1, 4), (1, 1, 4, 4), (1, 1, 4, 2)])
def test_second_derivatives_and_both_modes(shape):
    with jax.enable_x64(True):
        x, kernel = arrays((2, 5, 4, 4), shape)
        padding = [(size // 2, size // 2) for size in shape[:2]]

        def energy(conv, x, kernel):
            return jnp.sin(conv(x, kernel, (1, 1), padding)).sum()

        def slope(conv, x, kernel):
            return jnp.sum(jax.grad(energy, 1)(conv, x, kernel) ** 2)

        @quick
        def derivatives(x, kernel):
            slopes = [functools.partial(slope, conv, x) for conv in (native, chosen)]
            return [[d(f)(kernel) for f in slopes] for d in (jax.grad, jax.jacfwd)]

        for expected, got in derivatives(x, kernel):
            np.testing.assert_allclose(got, expected, rtol=1e-10, atol=1e-10)


def test_vmap():
    with jax.enable_x64(True):
        x, kernels = arrays((3, 2, 5, 4, 4), (3, 3, 3, 1, 4))
        conv = functools.partial(chosen, strides=(2, 2), padding=((1, 1), (1, 1)))

        @quick
        def both(x, kernels):
            apart = [conv(*pair) for pair in zip(x, kernels, strict=True)]
            return jax.vmap(conv)(x, kernels), jnp.stack(apart)

        np.testing.assert_allclose(*both(x, kernels), rtol=1e-12)


@pytest.mark.parametrize(
    ("channels", "shape"), [(4, (3, 3, 1, 4)), (4, (1, 1, 4, 8)), (3, (3, 3, 3, 32))]
)
def test_only_cpu_programs_are_reformulated(channels, shape):
    sizes = [(2, 5, 5, channels), shape]
    specs = [jax.ShapeDtypeStruct(dims, jnp.float32) for dims in sizes]

    def loss(x, kernel):
        return jnp.sum(chosen(x, kernel, (1, 1), "SAME") ** 2)

    gradients = jax.grad(loss, (0, 1))
    assert lowered_convolutions(gradients, *specs) == 0
    assert lowered_convolutions(gradients, *specs, platform="cuda") == 3
    assert lowered_convolutions(gradients, *specs, platform="tpu") == 3


def test_what_is_not_plain_is_left_to_xla():
    x, kernel = arrays((2, 7, 7, 4), (3, 3, 1, 4), dtype=np.float32)
    for options in (
        {"lhs_dilation": (2, 2)},
        {"preferred_element_type": jnp.float32},
    ):
        conv = functools.partial(
            chosen, strides=(1, 1), padding=[(0, 0)] * 2, **options
        )
        assert lowered_convolutions(conv, x, kernel) == 1
    whole = jnp.ones((2, 4, 4, 4), jnp.int32), jnp.ones((3, 3, 1, 4), jnp.int32)
    integers = functools.partial(chosen, strides=(1, 1), padding="VALID")
    assert lowered_convolutions(integers, *whole) == 1


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
    @quick
    def both(x):
        layers = [
            layer(6, 6, bias_init=nnx.initializers.ones, rngs=nnx.Rngs(0), **arguments)
            for layer in (Conv, nnx.Conv)
        ]
        return [(nnx.state(layer), layer(x)) for layer in layers]

    (x,) = arrays((2, *[5] * len(arguments["kernel_size"]), 6), dtype=np.float32)
    (ours, y), (theirs, expected) = both(x)
    assert_same(values(ours), values(theirs))
    assert y.dtype == expected.dtype
    tolerance = 1e-5 if y.dtype == jnp.float32 else 2e-2
    np.testing.assert_allclose(
        y.astype("float32"), expected.astype("float32"), rtol=tolerance, atol=tolerance
    )
