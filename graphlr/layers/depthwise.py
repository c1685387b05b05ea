"""Depthwise convolutions as sums of shifted slices, and their derivatives."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero

from graphlr.layers.geometry import (
    NO_EDGE,
    Axis,
    Geometry,
    Tap,
    axes_of,
    crop,
    moved,
    padded,
    widened,
)

_TERMS = 72  # of a written-out sum: 9 kernel positions in 8 slabs of rows


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
    return _depthwise(x, kernel, Geometry(tuple(strides), pads, tuple(dilation)))


def _taps(x: jax.Array, rows: Axis, columns: Axis) -> dict[tuple[Tap, Tap], jax.Array]:
    """What every position of the kernel multiplies, in the shape of the result."""
    # Pad once: with a pad per tap XLA would compute for each of them what comes before
    # the convolution, and many pads in one sum are slow by themselves.
    image = padded(widened(x), rows.padding, columns.padding)
    return {
        (row, column): crop(
            image,
            moved(row.reads, rows.padding[0]),
            moved(column.reads, columns.padding[0]),
        )
        for row in rows.taps
        for column in columns.taps
    }


# `lax.add` and not `+`, here and below: jax traces it faster, and there are thousands.
def _sum(arrays: Iterable[jax.Array]) -> jax.Array:
    return functools.reduce(lax.add, arrays)


def _weight(kernel: jax.Array, row: Tap, column: Tap) -> jax.Array:
    """What a position of the kernel multiplies with, `(channels,)`."""
    at, (*_, channels) = (row.place, column.place, 0, 0), kernel.shape
    weight = lax.slice(kernel, at, (row.place + 1, column.place + 1, 1, channels))
    return widened(lax.reshape(weight, (channels,)))


def _sum_of_taps(x: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    rows, columns, shape = axes_of(x, kernel.shape[:2], geometry)
    if not rows.taps or not columns.taps:
        return jnp.zeros(shape, x.dtype)
    # Broadcast by hand: implicitly, a 1×1 image would leave the gradient a sum over the
    # batch axis alone, which XLA does ten times slower.
    return _sum(
        lax.mul(tap, lax.broadcast_in_dim(_weight(kernel, *at), shape, [3]))
        for at, tap in _taps(x, rows, columns).items()
    ).astype(x.dtype)


def _sum_by_slabs(x: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    """The same, written so that its transpose in `kernel` is fast.

    One broadcast weight serves several slabs of rows: transposed, their products are
    added up in one pass, and only an image as high as a slab is left to be summed. The
    weights of a kernel column are one array, so that these images are: XLA's library
    would sum a single one with its products, and copy every slice for it. A product
    with padding is left out, as a padded image would be kept for the backward pass.
    """
    rows, columns, shape = axes_of(x, kernel.shape[:2], geometry)
    if not rows.taps or not columns.taps:
        return jnp.zeros(shape, x.dtype)
    batch, height, width, channels = shape
    most = max(1, _TERMS // (len(rows.taps) * len(columns.taps)))
    depth = height // max(n for n in range(1, most + 1) if height % n == 0)
    image = widened(x)

    def weights(column: Tap) -> list[jax.Array]:
        held = jnp.stack([_weight(kernel, row, column) for row in rows.taps])
        size = (len(held), batch, depth, len(column.inside), channels)
        parts = lax.split(lax.broadcast_in_dim(held, size, [0, 4]), [1] * len(held))
        return [lax.squeeze(part, [0]) for part in parts]

    def product(row: Tap, column: Tap, weight: jax.Array, top: int) -> jax.Array:
        first, end = max(row.inside[0], top), min(row.inside[-1] + 1, top + depth)
        if end - first < depth:
            weight = lax.slice_in_dim(weight, first - top, end - top, axis=1)
        reads = column.reads[column.inside[0] : column.inside[-1] + 1]
        term = lax.mul(crop(image, row.reads[first:end], reads), weight)
        return padded(term, (first - top, top + depth - end, 0), NO_EDGE)

    def of_column(column: Tap) -> list[jax.Array]:
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
            slabs.append(padded(total, NO_EDGE, edge))
        return slabs

    slabs = map(_sum, zip(*map(of_column, columns.taps), strict=True))
    return lax.concatenate(list(slabs), 1).astype(x.dtype)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _depthwise(x: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    return _sum_of_taps(x, kernel, geometry)


@functools.partial(_depthwise.defjvp, symbolic_zeros=True)
def _product_rule(
    geometry: Geometry,
    primals: tuple[jax.Array, jax.Array],
    tangents: tuple[jax.Array | SymbolicZero, jax.Array | SymbolicZero],
) -> tuple[jax.Array, jax.Array]:
    """The product rule; the barrier keeps what follows from being computed per tap."""
    (x, kernel), (dx, dkernel) = primals, tangents
    y = _depthwise(x, kernel, geometry)
    parts = []
    if not isinstance(dx, SymbolicZero):
        parts.append(_sum_of_taps(dx, kernel, geometry))
    if not isinstance(dkernel, SymbolicZero):
        parts.append(_sum_by_slabs(x, dkernel, geometry))
    return y, lax.optimization_barrier(_sum(parts))
