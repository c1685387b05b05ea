"""Images: checked once, every example once an epoch."""

import itertools

import numpy as np
import pytest

from graphlr import data
from graphlr.data.images import Images
from tests.models import IMAGE, LABEL, Evaluate, linear


def numbered(n, num_classes=None):
    pixels = np.arange(n * 2 * 2 * 3, dtype=np.float32).reshape(n, 2, 2, 3)
    return Images(pixels, np.arange(n, dtype=np.int32), num_classes)


def labels_of(batches):
    return [labels.tolist() for _, labels in batches]


@pytest.mark.parametrize(
    ("images", "labels", "error", "message"),
    [
        (
            [[0.0]],
            np.zeros(1, int),
            TypeError,
            r"images is <class 'list'>: give np.asar",
        ),
        (np.zeros((1, 2, 2, 3)), [0], TypeError, r"labels is <class 'list'>"),
        (np.zeros((5, 2, 2)), np.zeros(5, int), ValueError, r"shape \(5, 2, 2\)"),
        (np.zeros((5, 2, 2, 3)), np.zeros(4, int), ValueError, r"labels \(4,\)"),
        (np.zeros((5, 2, 2, 3)), np.zeros((5, 3), int), ValueError, r"labels \(5, 3\)"),
        (
            np.zeros((5, 2, 2, 3)),
            np.zeros(5),
            TypeError,
            r"float64.*astype\(np.int32\)",
        ),
        (np.zeros((5, 2, 2, 3)), np.zeros(5, bool), TypeError, "bool"),
        (
            np.zeros((3, 2, 2, 3)),
            np.array([0, 10, 11]),
            ValueError,
            r"labels\[1\] is 10: give labels in \[0, 10\)",
        ),
        (
            np.zeros((3, 2, 2, 3)),
            np.array([0, 1, -1]),
            ValueError,
            r"labels\[2\] is -1",
        ),
    ],
)
def test_images_are_checked_at_construction(images, labels, error, message):
    with pytest.raises(error, match=message):
        Images(images, labels, num_classes=10)


def test_unknown_number_of_classes_still_refuses_negative_labels():
    pixels = np.zeros((2, 2, 2, 3))
    assert len(Images(pixels, np.array([0, 10**6]))) == 2
    with pytest.raises(ValueError, match=r"labels\[0\] is -1: .*num_classes"):
        Images(pixels, np.array([-1, 0]))


def test_unsigned_labels_and_a_short_repr():
    images = Images(np.zeros((2, 4, 4, 3), np.uint8), np.array([0, 255], np.uint8), 256)
    assert repr(images) == "Images((2, 4, 4, 3) uint8)"


@pytest.mark.parametrize("n", [0, 1, 7, 8, 9])
@pytest.mark.parametrize("size", [1, 4, 8, 100, np.int64(3), np.uint8(4)])
@pytest.mark.parametrize("shuffle", [True, False])
def test_every_example_once(n, size, shuffle):
    whole = numbered(n)
    batches = list(whole.batches(size, shuffle=shuffle))
    assert len(batches) == whole.num_batches(size) == -(-n // int(size))
    seen = [label for _, labels in batches for label in labels.tolist()]
    assert sorted(seen) == list(range(n))
    for images, labels in batches:
        np.testing.assert_array_equal(images, whole.images[labels])

    kept = list(whole.batches(size, shuffle=shuffle, drop_last=True))
    assert len(kept) == whole.num_batches(size, drop_last=True) == n // int(size)
    assert all(len(labels) == size for _, labels in kept)
    assert labels_of(kept) == labels_of(batches)[: len(kept)]


def test_a_batch_size_of_a_narrow_type_does_not_overflow():
    assert labels_of(numbered(600).batches(np.uint8(200), shuffle=False)) == [
        list(range(start, start + 200)) for start in (0, 200, 400)
    ]


def test_order_depends_on_seed_and_epoch_alone():
    whole = numbered(50)
    first = labels_of(whole.batches(8, seed=3, epoch=2))
    np.random.default_rng().random()
    assert labels_of(whole.batches(8, seed=3, epoch=2)) == first
    expected = np.random.default_rng((3, 2)).permutation(50).tolist()
    assert list(itertools.chain(*first)) == expected
    orders = {
        tuple(itertools.chain(*labels_of(whole.batches(8, seed=seed, epoch=epoch))))
        for seed in range(4)
        for epoch in range(4)
    }
    assert len(orders) == 16
    assert labels_of(whole.batches(50, shuffle=False, epoch=5)) == [list(range(50))]


@pytest.mark.parametrize("strided", [False, True])
def test_batches_are_contiguous_copies(strided):
    pixels = np.arange(5 * 3 * 2 * 2, dtype=np.float32).reshape(5, 3, 2, 2)
    pixels = pixels.transpose(0, 2, 3, 1) if strided else pixels
    whole = Images(pixels, np.arange(5, dtype=np.int16))
    before = pixels.copy()
    for images, labels in whole.batches(2, shuffle=False):
        assert images.flags.c_contiguous
        assert labels.flags.c_contiguous
        assert images.dtype == np.float32
        assert labels.dtype == np.int16
        images[...] = -1
        labels[...] = -1
    np.testing.assert_array_equal(whole.images, before)
    assert whole.labels.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("size", [0, -1, 2.0, "2", None, True, float("nan")])
def test_a_bad_batch_size_raises_before_the_first_batch(size):
    whole = numbered(4)
    with pytest.raises(ValueError, match=r"batch_size=.*whole number from 1 up"):
        whole.batches(size)
    with pytest.raises(ValueError, match="batch_size="):
        whole.num_batches(size)


@pytest.mark.parametrize("bad", [{"seed": -1}, {"epoch": -1}, {"epoch": 0.5}])
def test_a_bad_seed_or_epoch_is_named(bad):
    with pytest.raises(ValueError, match=f"{next(iter(bad))}=.*from 0 up"):
        numbered(4).batches(2, **bad)


# --- the last batch -------------------------------------------------------------------


def test_a_padded_batch_needs_no_compilation_and_counts_right():
    class Score(Evaluate):
        def build(self, x, label, mask):
            logits = self.model(x)
            right = (logits.argmax(-1) == label) * mask
            return right.sum(), (logits.sum(-1) * mask).sum() / mask.sum()

    graph = Score(linear(4, 3))
    kernel = np.asarray(graph.model.kernel.get_value())
    for n in (8, 3, 1):
        x, label = IMAGE[:n], LABEL[:n]
        right, mean = graph(*data.pad(8, x, label))
        logits = x @ kernel
        assert right == (logits.argmax(-1) == label).sum()
        np.testing.assert_allclose(mean, logits.sum(-1).mean(), rtol=1e-5)
    assert graph.compiles.count == 1


@pytest.mark.parametrize("sizes", [(9,), (0,), (3, 4), ()])
def test_pad_refuses_other_sizes(sizes):
    with pytest.raises(ValueError, match=r"arrays of one size from 1 to 8"):
        data.pad(8, *(np.zeros((n, 2)) for n in sizes))
