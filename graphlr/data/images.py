"""Labelled images as NumPy arrays, and their shuffled batches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False, repr=False)
class Images:
    """Images (n, height, width, channels) and labels (n,), checked once, here.

    Channels-first images pass the checks and train badly: transpose them first.

    Raises:
        TypeError: Not NumPy arrays, or labels that are not integers.
        ValueError: A wrong shape, or a label outside [0, `num_classes` (if given)).

    Example:
        >>> data = Images(np.zeros((5, 8, 8, 3)), np.arange(5), num_classes=5)
        >>> data.num_batches(2), [len(labels) for _, labels in data.batches(2)]
        (3, [2, 2, 1])
    """

    images: NDArray[Any]
    labels: NDArray[Any]
    num_classes: int | None = None

    def __post_init__(self):
        images, labels, count = self.images, self.labels, self.num_classes
        for name, array in (("images", images), ("labels", labels)):
            if not isinstance(array, np.ndarray):
                raise TypeError(f"{name} is {type(array)}: give np.asarray({name})")
        if images.ndim != 4 or labels.shape != images.shape[:1]:
            fault = f"images has shape {images.shape} and labels {labels.shape}"
            raise ValueError(f"{fault}: give (n, height, width, channels) and (n,)")
        if labels.dtype.kind not in "iu":
            raise TypeError(f"labels is {labels.dtype}: give labels.astype(np.int32)")
        bad = (labels < 0) | (labels >= (np.inf if count is None else count))
        if bad.any():
            fault = f"labels[{bad.argmax()}] is {labels[bad.argmax()]}"
            raise ValueError(f"{fault}: give labels in [0, {count or 'num_classes'})")

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        return f"Images({self.images.shape} {self.images.dtype})"

    def num_batches(self, batch_size: int, *, drop_last: bool = False) -> int:
        """Return how many batches one epoch has; raises as `batches` does."""
        check_whole(1, batch_size=batch_size)
        return (len(self) + (0 if drop_last else int(batch_size) - 1)) // int(
            batch_size
        )

    def batches(
        self,
        batch_size: int,
        *,
        shuffle: bool = True,
        seed: int = 0,
        epoch: int = 0,
        drop_last: bool = False,
    ) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
        """Return (images, labels) batches of one epoch: every example once, copied.

        The order depends on `seed` and `epoch` alone: pass the epoch's number, or all
        epochs are alike. The last batch may be smaller; `drop_last` leaves it out.

        Raises:
            ValueError: Not whole numbers: `batch_size` ≥ 1, `seed` and `epoch` ≥ 0.
        """
        stop = self.num_batches(batch_size, drop_last=drop_last) * int(batch_size)
        check_whole(0, seed=seed, epoch=epoch)
        rng, n, size = np.random.default_rng((seed, epoch)), len(self), int(batch_size)
        order = rng.permutation(n) if shuffle else np.arange(n)
        parts = (order[i : i + size] for i in range(0, stop, size))
        return ((np.ascontiguousarray(self.images[i]), self.labels[i]) for i in parts)


class Dataset(NamedTuple):
    """A training set, a test set and the names of their classes."""

    train: Images
    test: Images
    classes: tuple[str, ...]


def pad(size: int, *arrays: NDArray[Any]) -> tuple[NDArray[Any], ...]:
    """Bring a smaller batch to `size`, so that nothing is compiled for it.

    The last entry is repeated, so that no value is out of range. Weigh with the mask
    what you sum: `(loss * mask).sum() / mask.sum()`. BatchNorm in train mode does count
    the entries that were added.

    Args:
        size: Of the batch that comes out.
        arrays: Each (n, ...) with the same n, 1 to `size`.

    Returns:
        The arrays, (size, ...), and the mask, float32[size]: 1 for the entries given, 0
        for those added.

    Raises:
        ValueError: The arrays differ in size, are empty or larger than `size`.

    Example:
        >>> image, mask = pad(3, np.array([[1.0], [2.0]]))
        >>> image.ravel().tolist(), mask.tolist()
        ([1.0, 2.0, 2.0], [1.0, 1.0, 0.0])
    """
    sizes = {len(array) for array in arrays}
    if len(sizes) != 1 or not 1 <= max(sizes) <= size:
        raise ValueError(
            f"pad({size}, ...) takes arrays of one size from 1 to {size}, not "
            f"{sorted(sizes)}"
        )
    (n,) = sizes
    indices = np.minimum(np.arange(size), n - 1)
    mask = (np.arange(size) < n).astype(np.float32)
    return (*(np.asarray(array)[indices] for array in arrays), mask)


def check_whole(least: int, **numbers: object) -> None:
    """Refuse what isn't a whole number from `least` up, by name."""
    for name, value in numbers.items():
        if not isinstance(value, int | np.integer) or value is True or value < least:
            raise ValueError(f"{name}={value!r}: give a whole number from {least} up")
