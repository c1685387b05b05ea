"""Convolutions that are fast on CPU too, and drop into `nnx.Conv`'s place.

XLA has no CPU kernel for depthwise convolutions and a slow one for 1×1 kernels, so
on CPU `Conv` writes both differently: as a sum of shifted slices and as one matrix
product. Other platforms get `jax.lax.conv_general_dilated` untouched. Parameters
have the names and shapes of `nnx.Conv`: checkpoints fit both.
"""

import functools
import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.custom_derivatives import SymbolicZero

_NHWC = ("NHWC", "HWIO", "NHWC")
_TERMS = 72  # of a written-out sum: 9 kernel positions in 8 slabs of rows


class _Axis(NamedTuple):
    """How a kernel meets an axis of the image.

    Attributes:
        taps: The kernel positions that meet data; others only ever see padding.
        starts: Where each of them starts in the padded image.
        size: Of the result.
        extent: How much of the padded image a tap spans.
        padding: What the taps read beyond the image; negative amounts crop.
    """

    taps: list[int]
    starts: list[int]
    size: int
    extent: int
    padding: tuple[int, int, int]


def _axis(
    size: int, window: int, stride: int, pads: tuple[int, int], dilation: int
) -> _Axis:
    reach = dilation * (window - 1) + 1
    span = max(0, (size + sum(pads) - reach) // stride + 1)
    offsets = [stride * i - pads[0] for i in range(span)]
    taps = [
        i for i in range(window) if any(0 <= i * dilation + at < size for at in offsets)
    ]
    if not taps:
        return _Axis([], [], span, 0, (0, 0, 0))
    first, last = dilation * taps[0], dilation * taps[-1]
    starts = [dilation * tap - first for tap in taps]
    extent = stride * (span - 1) + 1
    padding = (-offsets[0] - first, offsets[-1] + last + 1 - size, 0)
    return _Axis(taps, starts, span, extent, padding)


def depthwise_conv(
    x: jax.Array,
    kernel: jax.Array,
    strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    dilation: Sequence[int] = (1, 1),
) -> jax.Array:
    """Convolve every channel with its own filter, as a sum of shifted slices.

    One multiply-add per kernel position, over the whole image at once; the kernel's
    derivative adds slabs of rows before it sums over the rest. Both modes of
    differentiation, of any order, and `jax.vmap` work. On CPU it is tens of times
    faster than the grouped convolution; on GPU and TPU it is not the right form, which
    is why `Conv` uses it on CPU only.

    Args:
        x: the images, `(batch, height, width, channels)`, floating.
        kernel: one filter per channel, `(height, width, 1, channels)`.
        strides: the steps along height and width.
        padding: the zeros `(before, after)` along height and width.
        dilation: the distances of kernel positions along height and width.

    Returns:
        `(batch, out_height, out_width, channels)` in the dtype of `x`. Half
        precision is accumulated in float32.

    Example:
        >>> import jax.numpy as jnp
        >>> x, kernel = jnp.ones((1, 4, 4, 8)), jnp.ones((3, 3, 1, 8))
        >>> y = depthwise_conv(x, kernel, (2, 2), ((1, 1), (1, 1)))
        >>> y[0, :, :, 0].tolist()
        [[4.0, 6.0], [6.0, 9.0]]
    """
    pads = tuple((before, after) for before, after in padding)
    return _depthwise(x, kernel, tuple(strides), pads, tuple(dilation))


def _taps(
    x: jax.Array, window: Sequence[int], strides: Any, padding: Any, dilation: Any
) -> tuple[dict[tuple[int, int], jax.Array], tuple[int, ...]]:
    """What of the padded image every position of the kernel multiplies, and its shape.

    At least float32.
    """
    batch, *sizes, channels = x.shape
    rows, columns = map(_axis, sizes, window, strides, padding, dilation)
    shape = (batch, rows.size, columns.size, channels)
    if not rows.taps or not columns.taps:
        return {}, shape

    # Pad once, so that every tap is a plain slice: a pad per tap takes 3 times longer.
    wide = jnp.promote_types(x.dtype, jnp.float32)
    edges = [(0, 0, 0), rows.padding, columns.padding, (0, 0, 0)]
    padded = lax.pad(x.astype(wide), jnp.zeros((), wide), edges)

    def tap(top: int, left: int) -> jax.Array:
        end = (batch, top + rows.extent, left + columns.extent, channels)
        return lax.slice(padded, (0, top, left, 0), end, (1, *strides, 1))

    return {
        (row, column): tap(top, left)
        for row, top in zip(rows.taps, rows.starts, strict=True)
        for column, left in zip(columns.taps, columns.starts, strict=True)
    }, shape


# `lax.add` and not `+`, here and below: jax traces it faster, and there are thousands.
def _sum(arrays: Iterable[jax.Array]) -> jax.Array:
    return functools.reduce(lax.add, arrays)


def _weights(kernel: jax.Array, taps: dict[tuple[int, int], jax.Array]) -> Any:
    """What each position of the kernel multiplies with: `(channels,)` by position."""
    (dtype,) = {tap.dtype for tap in taps.values()}
    flat = lax.convert_element_type(lax.squeeze(kernel, [2]), dtype)
    *_, channels = flat.shape
    return {
        (row, column): lax.reshape(
            lax.slice(flat, (row, column, 0), (row + 1, column + 1, channels)),
            (channels,),
        )
        for row, column in taps
    }


def _sum_of_taps(x: jax.Array, kernel: jax.Array, *geometry: Any) -> jax.Array:
    taps, shape = _taps(x, kernel.shape[:2], *geometry)
    if not taps:
        return jnp.zeros(shape, x.dtype)
    # Broadcast by hand: implicitly, a 1×1 image would leave the gradient a sum over the
    # batch axis alone, which XLA does ten times slower.
    weights = _weights(kernel, taps)
    wide = {at: lax.broadcast_in_dim(weights[at], shape, [3]) for at in taps}
    return _sum(lax.mul(taps[at], wide[at]) for at in taps).astype(x.dtype)


def _sum_by_slabs(x: jax.Array, kernel: jax.Array, *geometry: Any) -> jax.Array:
    """The same, written so that its transpose in `kernel` is fast.

    One broadcast weight serves several slabs of rows: transposed, their products are
    added up in one pass, and only an image as high as a slab is left to be summed.
    """
    taps, shape = _taps(x, kernel.shape[:2], *geometry)
    if not taps:
        return jnp.zeros(shape, x.dtype)
    batch, height, width, channels = shape
    most = max(1, _TERMS // len(taps))
    depth = height // max(n for n in range(1, most + 1) if height % n == 0)
    weights = jnp.stack(list(_weights(kernel, taps).values()))
    slab = (len(taps), batch, depth, width, channels)
    wide = lax.split(lax.broadcast_in_dim(weights, slab, [0, 4]), [1] * len(taps))
    wide = [lax.squeeze(weight, [0]) for weight in wide]
    return lax.concatenate(
        [
            _sum(
                lax.mul(lax.slice_in_dim(tap, top, top + depth, axis=1), weight)
                for tap, weight in zip(taps.values(), wide, strict=True)
            )
            for top in range(0, height, depth)
        ],
        1,
    ).astype(x.dtype)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2, 3, 4))
def _depthwise(x: jax.Array, kernel: jax.Array, *geometry: Any) -> jax.Array:
    return _sum_of_taps(x, kernel, *geometry)


@functools.partial(_depthwise.defjvp, symbolic_zeros=True)
def _product_rule(*arguments: Any) -> tuple[jax.Array, jax.Array]:
    """The product rule; the barrier keeps what follows from being computed per tap."""
    *geometry, (x, kernel), (dx, dkernel) = arguments
    y = _depthwise(x, kernel, *geometry)
    parts = []
    if not isinstance(dx, SymbolicZero):
        parts.append(_sum_of_taps(dx, kernel, *geometry))
    if not isinstance(dkernel, SymbolicZero):
        parts.append(_sum_by_slabs(x, dkernel, *geometry))
    return y, lax.optimization_barrier(_sum(parts))


def _pointwise_conv(x: jax.Array, kernel: jax.Array, strides: Any) -> jax.Array:
    """Return the 1×1 convolution as one matrix product over all pixels."""
    rows, columns = strides
    batch, height, width, channels = x[:, ::rows, ::columns].shape
    pixels = x[:, ::rows, ::columns].reshape(-1, channels)
    return (pixels @ kernel[0, 0]).reshape(batch, height, width, -1)


def _patches_conv(x: jax.Array, kernel: jax.Array, *geometry: Any) -> jax.Array:
    """Return the convolution as one matrix product over all patches, written out."""
    taps, (*size, _) = _taps(x, kernel.shape[:2], *geometry)
    if not taps:
        return jnp.zeros((*size, kernel.shape[-1]), x.dtype)
    patches = jnp.concatenate(list(taps.values()), -1)
    weights = jnp.concatenate([kernel[at] for at in taps]).astype(patches.dtype)
    pixels = patches.reshape(-1, len(weights)) @ weights
    return pixels.reshape(*size, -1).astype(x.dtype)


def _is_plain(
    lhs: jax.Array,
    rhs: jax.Array,
    dimension_numbers: Any = None,
    lhs_dilation: Sequence[int] | None = None,
    precision: Any = None,
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
    return _plain(lhs, rhs, strides, pads, dilation, feature_group_count, precision)


# Layers of equal shapes are traced once; XLA sees no difference.
@functools.partial(jax.jit, static_argnums=range(2, 7))
def _plain(
    x: jax.Array,
    kernel: jax.Array,
    strides: tuple[int, ...],
    padding: tuple[tuple[int, int], ...],
    dilation: tuple[int, ...],
    groups: int,
    precision: Any,
) -> jax.Array:
    native = functools.partial(
        lax.conv_general_dilated,
        window_strides=strides,
        padding=padding,
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
            return depthwise_conv(x, kernel, strides, padding, dilation)

    elif window == [1, 1] and depth == channels and not any(map(any, padding)):
        fast = functools.partial(_pointwise_conv, strides=strides)
    elif depth == channels == 3 and outputs >= 32 and math.prod(window) <= 25:

        def fast(x: jax.Array, kernel: jax.Array) -> jax.Array:
            return _patches_conv(x, kernel, strides, padding, dilation)

    else:
        return native(x, kernel)
    return lax.platform_dependent(x, kernel, cpu=fast, default=native)


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
