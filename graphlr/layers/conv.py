"""Convolutions that are fast on CPU too, and drop into `nnx.Conv`'s place.

XLA has no CPU kernel for depthwise convolutions and a slow one for 1×1 kernels, so
on CPU `Conv` writes both differently: as a sum of shifted slices and as one matrix
product. Other platforms get `jax.lax.conv_general_dilated` untouched. Parameters
have the names and shapes of `nnx.Conv`: checkpoints fit both.
"""

import functools
import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.custom_derivatives import SymbolicZero

from graphlr.platforms import by_platform

_NHWC = ("NHWC", "HWIO", "NHWC")
_NO_EDGE = (0, 0, 0)
_TERMS = 72  # of a written-out sum: 9 kernel positions in 8 slabs of rows


class _Tap(NamedTuple):
    """A kernel position along an axis of the image.

    Attributes:
        place: In the kernel.
        reads: Where in the image each result reads; outside it there is padding.
        inside: The results that read inside the image.
    """

    place: int
    reads: range
    inside: range


class _Axis(NamedTuple):
    """How a kernel meets an axis of the image.

    Attributes:
        taps: The kernel positions that meet data; others only ever see padding.
        size: Of the result.
        padding: What the taps read beyond the image; negative amounts crop.
    """

    taps: list[_Tap]
    size: int
    padding: tuple[int, int, int]


def _axis(
    size: int, window: int, stride: int, pads: tuple[int, int], dilation: int
) -> _Axis:
    reach = dilation * (window - 1) + 1
    span = max(0, (size + sum(pads) - reach) // stride + 1)
    taps = []
    for place in range(window):
        start = place * dilation - pads[0]
        reads = range(start, start + stride * span, stride)
        inside = [i for i, at in enumerate(reads) if 0 <= at < size]
        if inside:
            taps.append(_Tap(place, reads, range(inside[0], inside[-1] + 1)))
    if not taps:
        return _Axis([], span, _NO_EDGE)
    padding = (-taps[0].reads[0], taps[-1].reads[-1] + 1 - size, 0)
    return _Axis(taps, span, padding)


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


def _axes(
    x: jax.Array, window: Sequence[int], strides: Any, padding: Any, dilation: Any
) -> tuple[_Axis, _Axis, tuple[int, ...]]:
    """How a kernel meets rows and columns of the image, and the shape of the result."""
    batch, *sizes, channels = x.shape
    rows, columns = map(_axis, sizes, window, strides, padding, dilation)
    return rows, columns, (batch, rows.size, columns.size, channels)


def _wide(x: jax.Array) -> jax.Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _padded(x: jax.Array, *edges: tuple[int, int, int]) -> jax.Array:
    """`x` with zeros before and after its rows and columns."""
    if not any(map(any, edges)):
        return x
    return lax.pad(x, jnp.zeros((), x.dtype), [_NO_EDGE, *edges, _NO_EDGE])


def _moved(reads: range, by: int) -> range:
    return range(reads.start + by, reads.stop + by, reads.step)


def _crop(x: jax.Array, rows: range, columns: range) -> jax.Array:
    """`x` at these rows and columns."""
    batch, _, _, channels = x.shape
    end = (batch, rows[-1] + 1, columns[-1] + 1, channels)
    start, steps = (0, rows[0], columns[0], 0), (1, rows.step, columns.step, 1)
    return lax.slice(x, start, end, steps)


def _taps(
    x: jax.Array, rows: _Axis, columns: _Axis
) -> dict[tuple[_Tap, _Tap], jax.Array]:
    """What every position of the kernel multiplies, in the shape of the result."""
    # Pad once: with a pad per tap XLA would compute for each of them what comes before
    # the convolution, and many pads in one sum are slow by themselves.
    padded = _padded(_wide(x), rows.padding, columns.padding)
    return {
        (row, column): _crop(
            padded,
            _moved(row.reads, rows.padding[0]),
            _moved(column.reads, columns.padding[0]),
        )
        for row in rows.taps
        for column in columns.taps
    }


# `lax.add` and not `+`, here and below: jax traces it faster, and there are thousands.
def _sum(arrays: Iterable[jax.Array]) -> jax.Array:
    return functools.reduce(lax.add, arrays)


def _weight(kernel: jax.Array, row: _Tap, column: _Tap) -> jax.Array:
    """What a position of the kernel multiplies with, `(channels,)`."""
    at, (*_, channels) = (row.place, column.place, 0, 0), kernel.shape
    weight = lax.slice(kernel, at, (row.place + 1, column.place + 1, 1, channels))
    return _wide(lax.reshape(weight, (channels,)))


def _sum_of_taps(x: jax.Array, kernel: jax.Array, *geometry: Any) -> jax.Array:
    rows, columns, shape = _axes(x, kernel.shape[:2], *geometry)
    if not rows.taps or not columns.taps:
        return jnp.zeros(shape, x.dtype)
    # Broadcast by hand: implicitly, a 1×1 image would leave the gradient a sum over the
    # batch axis alone, which XLA does ten times slower.
    return _sum(
        lax.mul(tap, lax.broadcast_in_dim(_weight(kernel, *at), shape, [3]))
        for at, tap in _taps(x, rows, columns).items()
    ).astype(x.dtype)


def _sum_by_slabs(x: jax.Array, kernel: jax.Array, *geometry: Any) -> jax.Array:
    """The same, written so that its transpose in `kernel` is fast.

    One broadcast weight serves several slabs of rows: transposed, their products are
    added up in one pass, and only an image as high as a slab is left to be summed. The
    weights of a kernel column are one array, so that these images are: XLA's library
    would sum a single one with its products, and copy every slice for it. A product
    with padding is left out, as a padded image would be kept for the backward pass.
    """
    rows, columns, shape = _axes(x, kernel.shape[:2], *geometry)
    if not rows.taps or not columns.taps:
        return jnp.zeros(shape, x.dtype)
    batch, height, width, channels = shape
    most = max(1, _TERMS // (len(rows.taps) * len(columns.taps)))
    depth = height // max(n for n in range(1, most + 1) if height % n == 0)
    image = _wide(x)

    def weights(column: _Tap) -> list[jax.Array]:
        held = jnp.stack([_weight(kernel, row, column) for row in rows.taps])
        size = (len(held), batch, depth, len(column.inside), channels)
        parts = lax.split(lax.broadcast_in_dim(held, size, [0, 4]), [1] * len(held))
        return [lax.squeeze(part, [0]) for part in parts]

    def product(row: _Tap, column: _Tap, weight: jax.Array, top: int) -> jax.Array:
        first, end = max(row.inside[0], top), min(row.inside[-1] + 1, top + depth)
        if end - first < depth:
            weight = lax.slice_in_dim(weight, first - top, end - top, axis=1)
        reads = column.reads[column.inside[0] : column.inside[-1] + 1]
        term = lax.mul(_crop(image, row.reads[first:end], reads), weight)
        return _padded(term, (first - top, top + depth - end, 0), _NO_EDGE)

    def of_column(column: _Tap) -> list[jax.Array]:
        """What a kernel column adds to each slab."""
        edge = (column.inside[0], width - column.inside[-1] - 1, 0)
        pairs = list(zip(rows.taps, weights(column), strict=True))
        slabs = []
        for top in range(0, height, depth):
            terms = [
                product(row, column, weight, top)
                for row, weight in pairs
                if row.inside[0] < top + depth and top <= row.inside[-1]
            ]
            empty = (batch, depth, len(column.inside), channels)
            total = _sum(terms) if terms else jnp.zeros(empty, image.dtype)
            slabs.append(_padded(total, _NO_EDGE, edge))
        return slabs

    slabs = map(_sum, zip(*map(of_column, columns.taps), strict=True))
    return lax.concatenate(list(slabs), 1).astype(x.dtype)


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
    """Return the convolution as one matrix product over all patches, written out.

    The patches are cut by columns first and then by rows: each cut is a kernel to
    compile, and there are fewer of them.
    """
    rows, columns, (*size, _) = _axes(x, kernel.shape[:2], *geometry)
    if not rows.taps or not columns.taps:
        return jnp.zeros((*size, kernel.shape[-1]), x.dtype)
    patches = _padded(_wide(x), rows.padding, columns.padding)
    for axis, (taps, _, padding) in ((2, columns), (1, rows)):
        reads = [_moved(tap.reads, padding[0]) for tap in taps]
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
