"""The digits: what they are, and how they are split."""

import sys

import numpy as np
import pytest

from graphlr.data.digits import digits


@pytest.fixture(scope="module")
def small_digits():
    return digits(size=8)


@pytest.mark.parametrize("size", [8, 16, 32])
def test_digits_shapes_dtypes_and_normalisation(size):
    train, test, classes = digits(size=size)
    assert len(train) + len(test) == 1797
    assert classes == tuple("0123456789")
    for part in (train, test):
        assert part.images.shape == (len(part), size, size, 3)
        assert part.images.dtype == np.float32
        assert part.images.flags.c_contiguous
        assert part.labels.dtype == np.int32
        assert part.num_classes == 10
        assert set(part.labels.tolist()) == set(range(10))
        np.testing.assert_array_equal(part.images[..., 0], part.images[..., 2])
    assert abs(train.images.mean(dtype=np.float64)) < 1e-6
    assert abs(train.images.std(dtype=np.float64) - 1) < 1e-6
    assert abs(test.images.mean(dtype=np.float64)) < 0.05  # not its own mean


def test_digits_are_the_bundled_images_in_two_disjoint_parts(small_digits):
    from sklearn.datasets import load_digits

    source = load_digits()
    both = np.concatenate([part.images[..., 0] for part in small_digits[:2]])
    labels = np.concatenate([part.labels for part in small_digits[:2]])
    # One affine map takes the images back to their grey values 0 … 16.
    grey = np.rint((both - both.min()) / (both.max() - both.min()) * 16).astype(int)

    def rows(images, targets):
        flat = np.column_stack([images.reshape(len(images), -1), targets])
        return sorted(map(tuple, flat.astype(int).tolist()))

    expected = rows(source.images, source.target)
    assert len(set(expected)) == 1797  # no two alike: equal multisets mean disjoint
    assert rows(grey, labels) == expected


@pytest.mark.parametrize("fraction", [0.01, 0.2, 0.5, 0.99])
def test_digits_split_is_stratified(fraction):
    train, test, _ = digits(size=8, test_fraction=fraction)
    in_train, in_test = np.bincount(train.labels), np.bincount(test.labels)
    np.testing.assert_array_equal(in_test, np.rint(fraction * (in_train + in_test)))
    assert in_train.min() > 0
    assert in_test.min() > 0


def test_digits_split_is_decided_by_the_seed(small_digits):
    again, other = digits(size=8), digits(size=8, seed=1)
    for part, same, different in zip(
        small_digits[:2], again[:2], other[:2], strict=True
    ):
        np.testing.assert_array_equal(part.images, same.images)
        np.testing.assert_array_equal(part.labels, same.labels)
        assert not np.array_equal(part.images, different.images)
    for part in small_digits[:2]:  # the classes are mixed, not one after the other
        assert len(set(part.labels[:30].tolist())) > 7
        assert len(set(part.labels[-30:].tolist())) > 7


def test_digits_are_scaled_up_bilinearly(small_digits):
    large = digits(size=16).train.images[..., 0].astype(np.float64)
    small = small_digits.train.images[..., 0].astype(np.float64)
    # Half-pixel centres: corners keep their value, inner pixels are 3/4 and 1/4.
    rows = np.empty((len(small), 16, 8))
    rows[:, 0], rows[:, -1] = small[:, 0], small[:, -1]
    rows[:, 1:-1:2] = 0.75 * small[:, :-1] + 0.25 * small[:, 1:]
    rows[:, 2:-1:2] = 0.25 * small[:, :-1] + 0.75 * small[:, 1:]
    full = np.empty((len(small), 16, 16))
    full[..., 0], full[..., -1] = rows[..., 0], rows[..., -1]
    full[..., 1:-1:2] = 0.75 * rows[..., :-1] + 0.25 * rows[..., 1:]
    full[..., 2:-1:2] = 0.25 * rows[..., :-1] + 0.75 * rows[..., 1:]
    np.testing.assert_allclose(large, (full - full.mean()) / full.std(), atol=1e-5)


@pytest.mark.parametrize("size", [0, -8, 7, 12, 16.0, "32", None, True])
def test_digits_bad_size(size):
    with pytest.raises(ValueError, match=r"size=.* is not a positive multiple of 8"):
        digits(size=size)


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 1.5, 0.001, float("nan")])
def test_digits_bad_test_fraction(fraction):
    with pytest.raises(ValueError, match=r"test_fraction=.*\[0.01, 0.99\]"):
        digits(test_fraction=fraction)


def test_digits_bad_seed():
    with pytest.raises(ValueError, match="seed=-1"):
        digits(seed=-1)


@pytest.mark.parametrize("module", ["sklearn", "sklearn.datasets"])
def test_missing_scikit_learn_names_the_extra(monkeypatch, module):
    monkeypatch.delitem(sys.modules, "sklearn.datasets", raising=False)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=r'pip install "graphlr\[data\]"'):
        digits()
