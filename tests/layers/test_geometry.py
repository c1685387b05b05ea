"""Which positions of a kernel read what of an image, against a count by hand."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from graphlr.layers.geometry import (
    NO_EDGE,
    Axis,
    Geometry,
    axes_of,
    crop,
    moved,
    padded,
    widened,
)


def axis(size, window, stride, pads, dilation):
    """Along the height of an image that is one pixel wide."""
    geometry = Geometry((stride, 1), (pads, (0, 0)), (dilation, 1))
    image = np.zeros((2, size, 1, 3))
    rows, _, shape = axes_of(image, (window, 1), geometry)
    assert shape == (2, rows.size, 1, 3)
    return rows


def counted(size, window, stride, pads, dilation):
    """Size, `{place: (reads, inside)}` and padding, by a loop over the image."""
    starts = range(-pads[0], size + pads[1] - dilation * (window - 1), stride)
    taps = {}
    for place in range(window):
        reads = [start + place * dilation for start in starts]
        inside = [i for i, at in enumerate(reads) if 0 <= at < size]
        if inside:
            taps[place] = reads, inside
    every = [at for reads, _ in taps.values() for at in reads]
    edges = (-min(every), max(every) + 1 - size, 0) if every else NO_EDGE
    return len(starts), taps, edges


@pytest.mark.parametrize("pads", [(0, 0), (1, 1), (4, 0), (0, 5), (-1, 2)], ids=str)
def test_a_tap_reads_where_a_loop_over_the_image_does(pads):
    every = itertools.product((1, 2, 7), (1, 2, 3), (1, 2, 3), (1, 2))
    for size, window, stride, dilation in every:
        case = size, window, stride, pads, dilation
        rows = axis(*case)
        taps = {tap.place: ([*tap.reads], [*tap.inside]) for tap in rows.taps}
        assert (rows.size, taps, rows.padding) == counted(*case), case


def test_a_kernel_that_only_sees_padding_has_no_taps():
    assert axis(2, 3, 1, (9, -2), 1) == Axis([], 7, NO_EDGE)


def test_a_padded_and_cropped_image_is_numpys():
    image = np.arange(2 * 4 * 5 * 3, dtype=np.float32).reshape(2, 4, 5, 3)
    around = padded(jnp.asarray(image), (1, 2, 0), (0, 1, 0))
    np.testing.assert_array_equal(
        around, np.pad(image, ((0, 0), (1, 2), (0, 1), (0, 0)))
    )
    assert padded(image, NO_EDGE, NO_EDGE) is image
    rows, columns = range(0, 4, 2), range(1, 4)
    part = crop(jnp.asarray(image), rows, columns)
    np.testing.assert_array_equal(part, image[:, 0:4:2, 1:4])
    assert moved(rows, 3) == range(3, 7, 2)
    same = crop(around, moved(rows, 1), moved(columns, 0))
    np.testing.assert_array_equal(same, part)


@pytest.mark.parametrize(
    ("given", "wide"), [("bfloat16", "float32"), ("float32", "float32")]
)
def test_sums_are_in_float32_at_least(given, wide):
    assert widened(jnp.ones(2, given)).dtype == wide
