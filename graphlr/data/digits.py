"""Handwritten digits, which scikit-learn ships."""

from __future__ import annotations

import importlib

import numpy as np

from graphlr.data.images import Dataset, Images, check_whole


def digits(*, size: int = 32, test_fraction: float = 0.2, seed: int = 0) -> Dataset:
    """Return the 1,797 handwritten 8×8 digits that scikit-learn ships, scaled up.

    Runs that are to be compared need the same `seed`: it splits each digit in two.

    Returns:
        `images` (n, size, size, 3) float32, three equal channels that have mean 0 and
        standard deviation 1 over the training set; `labels` (n,) int32.

    Raises:
        ImportError: scikit-learn is not installed.
        ValueError: Bad `size` (8, 16, 24, …), `test_fraction` (0.01 to 0.99) or `seed`.

    Example:
        >>> train, test, classes = digits(size=16)
        >>> train, len(test), classes[3]
        (Images((1438, 16, 16, 3) float32), 359, '3')
    """
    if not isinstance(size, int | np.integer) or size < 1 or size % 8:
        raise ValueError(f"size={size!r} is not a positive multiple of 8: try size=32")
    if not 0.01 <= test_fraction <= 0.99:
        raise ValueError(f"{test_fraction=} is not in [0.01, 0.99]: try 0.2")
    check_whole(0, seed=seed)
    try:
        source = importlib.import_module("sklearn.datasets").load_digits()
    except ImportError as error:
        raise ImportError('no scikit-learn: pip install "graphlr[data]"') from error
    labels = source.target.astype(np.int32)
    rng = np.random.default_rng(seed)
    in_test = np.zeros(len(labels), bool)
    for digit in range(10):
        members = rng.permutation(np.flatnonzero(labels == digit))
        in_test[members[: round(test_fraction * len(members))]] = True
    # Bilinear: row i weighs the 8 source pixels for target pixel i, centre to centre.
    at = np.clip((np.arange(size) + 0.5) * 8 / size - 0.5, 0, 7)
    weights = np.maximum(0, 1 - np.abs(at[:, None] - np.arange(8)))
    grey = weights @ source.images @ weights.T
    grey = (grey - grey[~in_test].mean()) / grey[~in_test].std()
    images = np.repeat(grey.astype(np.float32)[..., None], 3, axis=-1)
    train, test = (Images(images[i], labels[i], 10) for i in (~in_test, in_test))
    return Dataset(train, test, tuple("0123456789"))
