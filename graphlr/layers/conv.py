"""Convolutions that are fast on CPU too, and drop into `nnx.Conv`'s place.

XLA has no CPU kernel for depthwise convolutions and a slow one for 1×1 kernels, so
on CPU `Conv` writes both differently: as a sum of shifted slices and as one matrix
product. Other platforms get `jax.lax.conv_general_dilated` untouched. Parameters
have the names and shapes of `nnx.Conv`: checkpoints fit both.
"""

import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from graphlr.layers.depthwise import depthwise_conv
from graphlr.layers.geometry import Geometry, axes_of, moved, padded, widened
from graphlr.platforms import by_platform

_NHWC = ("NHWC", "HWIO", "NHWC")


def _pointwise_conv(
    x: jax.Array, kernel: jax.Array, strides: Sequence[int]
) -> jax.Array:
    """Return the 1×1 convolution as one matrix product over all pixels."""
    rows, columns = strides
    batch, height, width, channels = x[:, ::rows, ::columns].shape
    pixels = x[:, ::rows, ::columns].reshape(-1, channels)
    return (pixels @ kernel[0, 0]).reshape(batch, height, width, -1)


def _patches_conv(x: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    """Return the convolution as one matrix product over all patches, written out.

    The patches are cut by columns first and then by rows: each cut is a kernel to
    compile, and there are fewer of them.
    """
    rows, columns, (*size, _) = axes_of(x, kernel.shape[:2], geometry)
    if not rows.taps or not columns.taps:
        return jnp.zeros((*size, kernel.shape[-1]), x.dtype)
    patches = padded(widened(x), rows.padding, columns.padding)
    for axis, (taps, _, padding) in ((2, columns), (1, rows)):
        reads = [moved(tap.reads, padding[0]) for tap in taps]
        parts = [
            lax.slice_in_dim(patches, at[0], at[-1] + 1, at.step, axis) for at in reads
        ]
        patches = jnp.concatenate(parts, -1)
    weights = kernel
    if patches.shape[-1] < math.prod(kernel.shape[:3]):
        met = itertools.product(rows.taps, columns.taps)
        weights = jnp.stack([kernel[row.place, column.place] for row, column in met])
    weights = weights.reshape(-1, kernel.shape[-1]).astype(patches.dtype)
    pixels = patches.reshape(-1, len(weights)) @ weights
    return pixels.reshape(*size, -1).astype(x.dtype)


def _is_plain(
    lhs: jax.Array,
    rhs: jax.Array,
    dimension_numbers: lax.ConvGeneralDilatedDimensionNumbers = None,
    lhs_dilation: Sequence[int] | None = None,
    precision: lax.PrecisionLike = None,
    **others: Any,
) -> bool:
    """Whether this is an NHWC convolution of floats, not transposed, nothing more."""
    del precision  # of no effect on CPU: products are never taken in fewer bits there
    return (
        lhs.ndim == rhs.ndim == 4
        and lhs.dtype == rhs.dtype
        and jnp.issubdtype(lhs.dtype, jnp.floating)
        and lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
        == lax.conv_dimension_numbers(lhs.shape, rhs.shape, _NHWC)
        and set(lhs_dilation or ()) <= {1}
        and all(value is None for value in others.values())
    )


def conv_general_dilated(
    lhs: jax.Array,
    rhs: jax.Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    *,
    rhs_dilation: Sequence[int] | None = None,
    feature_group_count: int = 1,
    **options: Any,
) -> jax.Array:
    """Return `jax.lax.conv_general_dilated(...)`, in its fastest form on CPU.

    Depthwise and 1×1 convolutions of NHWC floats are computed as in `Conv` on CPU.
    Everything else, and every other platform, is the original: the choice is made
    when the program is lowered, so a program exported for another platform is right
    too. Hand it to any `nnx` or Linen convolution as its `conv_general_dilated`.

    Arguments and result are those of `jax.lax.conv_general_dilated`.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> fast = {"conv_general_dilated": conv_general_dilated}
        >>> conv = nnx.Conv(8, 4, (1, 1), **fast, rngs=nnx.Rngs(0))
        >>> conv(jnp.ones((1, 5, 5, 8))).shape
        (1, 5, 5, 4)
    """
    if not _is_plain(lhs, rhs, **options):
        return lax.conv_general_dilated(
            lhs,
            rhs,
            window_strides,
            padding,
            rhs_dilation=rhs_dilation,
            feature_group_count=feature_group_count,
            **options,
        )
    strides, dilation = tuple(window_strides), tuple(rhs_dilation or (1, 1))
    if isinstance(padding, str):
        sizes = zip(rhs.shape[:2], dilation, strict=True)
        reach = [step * (size - 1) + 1 for size, step in sizes]
        padding = lax.padtype_to_pads(lhs.shape[1:3], reach, strides, padding)
    pads = tuple((before, after) for before, after in padding)
    precision = options.get("precision")
    geometry = Geometry(strides, pads, dilation)
    return _plain(lhs, rhs, geometry, feature_group_count, precision)


# Layers of equal shapes are traced once; XLA sees no difference.
@functools.partial(jax.jit, static_argnums=range(2, 5))
def _plain(
    x: jax.Array,
    kernel: jax.Array,
    geometry: Geometry,
    groups: int,
    precision: lax.PrecisionLike,
) -> jax.Array:
    strides, pads, dilation = geometry
    native = functools.partial(
        lax.conv_general_dilated,
        window_strides=strides,
        padding=pads,
        rhs_dilation=dilation,
        dimension_numbers=_NHWC,
        feature_group_count=groups,
        precision=precision,
    )
    *window, depth, outputs = kernel.shape
    channels = x.shape[-1]
    if depth == 1 and groups == channels:

        def fast(x: jax.Array, kernel: jax.Array) -> jax.Array:
            x = x if outputs == channels else jnp.repeat(x, outputs // channels, -1)
            return depthwise_conv(x, kernel, *geometry)

    elif window == [1, 1] and depth == channels and not any(map(any, pads)):
        fast = functools.partial(_pointwise_conv, strides=strides)
    elif depth == channels == 3 and outputs >= 32 and math.prod(window) <= 25:
        fast = functools.partial(_patches_conv, geometry=geometry)
    else:
        return native(x, kernel)
    return by_platform(x, kernel, cpu=fast, default=native)


class Conv(nnx.Conv):
    """An `nnx.Conv` that computes depthwise and 1×1 kernels fast on CPU as well.

    Same arguments, parameters and results. `padding=1` is PyTorch's symmetric
    padding; the default `"SAME"` pads strided images differently from PyTorch. A
    convolution is depthwise if `feature_group_count`, `in_features` and
    `out_features` are equal.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> conv = Conv(
        ...     8, 8, (3, 3), 2, padding=1, feature_group_count=8, rngs=nnx.Rngs(0)
        ... )
        >>> conv(jnp.ones((1, 5, 5, 8))).shape, conv.kernel.shape
        ((1, 3, 3, 8), (3, 3, 1, 8))
    """

    def __init__(self, *args: Any, **kwargs: Any):
        kwargs.setdefault("conv_general_dilated", conv_general_dilated)
        super().__init__(*args, **kwargs)
