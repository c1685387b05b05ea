"""How a convolution's kernel meets an image: which positions read what."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

NO_EDGE = (0, 0, 0)


class Geometry(NamedTuple):
    """How a kernel is moved over an image, along height and width; hashable.

    Attributes:
        strides: The steps.
        pads: The zeros before and after the image.
        dilation: The distances of kernel positions.
    """

    strides: tuple[int, ...]
    pads: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]


class Tap(NamedTuple):
    """A kernel position along an axis of the image.

    Attributes:
        place: In the kernel.
        reads: Where in the image each result reads; outside it there is padding.
        inside: The results that read inside the image.
    """

    place: int
    reads: range
    inside: range


class Axis(NamedTuple):
    """How a kernel meets an axis of the image.

    Attributes:
        taps: The kernel positions that meet data; others only ever see padding.
        size: Of the result.
        padding: What the taps read beyond the image; negative amounts crop.
    """

    taps: list[Tap]
    size: int
    padding: tuple[int, int, int]


def _axis(
    size: int, window: int, stride: int, pads: tuple[int, int], dilation: int
) -> Axis:
    reach = dilation * (window - 1) + 1
    span = max(0, (size + sum(pads) - reach) // stride + 1)
    taps = []
    for place in range(window):
        start = place * dilation - pads[0]
        reads = range(start, start + stride * span, stride)
        inside = [i for i, at in enumerate(reads) if 0 <= at < size]
        if inside:
            taps.append(Tap(place, reads, range(inside[0], inside[-1] + 1)))
    if not taps:
        return Axis([], span, NO_EDGE)
    padding = (-taps[0].reads[0], taps[-1].reads[-1] + 1 - size, 0)
    return Axis(taps, span, padding)


def axes_of(
    x: jax.Array, window: Sequence[int], geometry: Geometry
) -> tuple[Axis, Axis, tuple[int, ...]]:
    """How a kernel meets rows and columns of the image, and the shape of the result."""
    batch, *sizes, channels = x.shape
    rows, columns = map(_axis, sizes, window, *geometry)
    return rows, columns, (batch, rows.size, columns.size, channels)


def widened(x: jax.Array) -> jax.Array:
    """`x` in float32 at least, to be summed."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def padded(x: jax.Array, *edges: tuple[int, int, int]) -> jax.Array:
    """`x` with zeros before and after its rows and columns."""
    if not any(map(any, edges)):
        return x
    return lax.pad(x, jnp.zeros((), x.dtype), [NO_EDGE, *edges, NO_EDGE])


def moved(reads: range, by: int) -> range:
    """Places in the image, in one that has `by` more in front."""
    return range(reads.start + by, reads.stop + by, reads.step)


def crop(x: jax.Array, rows: range, columns: range) -> jax.Array:
    """`x` at these rows and columns."""
    batch, _, _, channels = x.shape
    end = (batch, rows[-1] + 1, columns[-1] + 1, channels)
    start, steps = (0, rows[0], columns[0], 0), (1, rows.step, columns.step, 1)
    return lax.slice(x, start, end, steps)
