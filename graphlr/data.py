"""Small labelled image sets as NumPy arrays, and their shuffled batches."""

import hashlib
import importlib
import io
import os
import pickle
import shutil
import tarfile
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any, NamedTuple
from urllib.error import URLError

import numpy as np
from numpy.typing import NDArray

CIFAR10_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
CIFAR10_MD5 = "c58f30108f718f92721af3b95e74349a"
CIFAR10_MEAN = (0.4914, 0.4822, 0.4465)  # per channel, of the training pixels in [0, 1]
CIFAR10_STD = (0.2470, 0.2435, 0.2616)
_CIFAR10_CLASSES = "airplane automobile bird cat deer dog frog horse ship truck"
_CIFAR10_FILES = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")
_PICKLED_ARRAY = {  # all that a batch may name, and what stands for it: only bytes load
    "numpy.core.multiarray._reconstruct": lambda *_: np.empty(0, np.uint8),
    "numpy.ndarray": None,
    "numpy.dtype": lambda *_: np.dtype(np.uint8),
}


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
        _check_whole(1, batch_size=batch_size)
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
        _check_whole(0, seed=seed, epoch=epoch)
        rng, n, size = np.random.default_rng((seed, epoch)), len(self), int(batch_size)
        order = rng.permutation(n) if shuffle else np.arange(n)
        parts = (order[i : i + size] for i in range(0, stop, size))
        return ((np.ascontiguousarray(self.images[i]), self.labels[i]) for i in parts)


class Dataset(NamedTuple):
    """A training set, a test set and the names of their classes."""

    train: Images
    test: Images
    classes: tuple[str, ...]


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
    _check_whole(0, seed=seed)
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


def cifar10(root: str | os.PathLike[str] = "data", *, download: bool = True) -> Dataset:
    """Return CIFAR-10: 50,000 training and 10,000 test images, 0.7 GiB of float32.

    Read from `root`: the complete folder `cifar-10-batches-py`, else the archive
    `cifar-10-python.tar.gz`, which is downloaded (163 MiB) into `root` if missing.

    Returns:
        `images` (n, 32, 32, 3) float32, `labels` (n,) int32. The pixels in [0, 1] are
        normalised per channel by `CIFAR10_MEAN` and `CIFAR10_STD`.

    Raises:
        ConnectionError: The download failed; nothing is left behind.
        FileNotFoundError: Not in `root`, and `download` is False.
        ValueError: A wrong checksum, or a file that is not a batch of plain arrays.

    Example:
        >>> cifar10("no/such/folder", download=False)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        FileNotFoundError: no ...cifar-10-python.tar.gz: put https://... there by hand
    """
    folder = Path(root).expanduser().resolve() / "cifar-10-batches-py"
    archive = folder.with_name("cifar-10-python.tar.gz")
    paths = [folder / name for name in _CIFAR10_FILES]
    if all(path.is_file() for path in paths):
        found = {path: _read_batch(path, path.read_bytes()) for path in paths}
    else:
        if archive.is_file():
            _check_md5(archive, "delete it and call cifar10() again")
        elif download:
            _download(archive)
        else:
            raise FileNotFoundError(f"no {archive}: put {CIFAR10_URL} there by hand")
        with tarfile.open(archive, "r|gz") as tar:
            files = ((folder.parent / item.name, tar.extractfile(item)) for item in tar)
            found = {p: _read_batch(p, f.read()) for p, f in files if f and p in paths}
    pixels = np.concatenate([found[path][0] for path in paths])
    labels = np.concatenate([found[path][1] for path in paths])
    images = pixels * np.divide(1 / 255, CIFAR10_STD, dtype=np.float32)
    images -= np.divide(CIFAR10_MEAN, CIFAR10_STD, dtype=np.float32)
    n = len(labels) - len(found[paths[-1]][1])
    train, test = Images(images[:n], labels[:n], 10), Images(images[n:], labels[n:], 10)
    return Dataset(train, test, tuple(_CIFAR10_CLASSES.split()))


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


def _download(archive: Path) -> None:
    wrap_file = importlib.import_module("rich.progress").wrap_file
    part = archive.with_name(f"{archive.name}.{os.getpid()}.part")
    part.parent.mkdir(parents=True, exist_ok=True)
    try:
        reply = urllib.request.urlopen(CIFAR10_URL, timeout=60)
        with reply, part.open("wb") as file:
            total = int(reply.headers["Content-Length"] or 0)
            with wrap_file(reply, total, description="CIFAR-10") as body:
                shutil.copyfileobj(body, file)
            if file.tell() < total:
                raise ConnectionError(f"{file.tell()} of {total} bytes came")
        _check_md5(part, f"see what {CIFAR10_URL} sends (a proxy's page?), call again")
        part.replace(archive)
    except (URLError, HTTPException, TimeoutError, ConnectionError) as error:
        remedy = f"download {CIFAR10_URL} by hand and put it at {archive}"
        raise ConnectionError(f"download failed, {error}: {remedy}") from error
    finally:
        part.unlink(missing_ok=True)


def _check_md5(path: Path, remedy: str) -> None:
    md5 = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
    if md5 != CIFAR10_MD5:
        raise ValueError(f"{path} has md5 {md5}, expected {CIFAR10_MD5}: {remedy}")


class _BatchUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str, /) -> Any:
        place = f"{module}.{name}".replace("numpy._core.", "numpy.core.")
        if place not in _PICKLED_ARRAY:
            raise pickle.UnpicklingError(f"it names {place}, which is refused")
        return _PICKLED_ARRAY[place]


def _read_batch(path: Path, content: bytes) -> tuple[NDArray[Any], NDArray[Any]]:
    try:
        batch = _BatchUnpickler(io.BytesIO(content), encoding="bytes").load()
        labels = np.array(batch[b"labels"], np.int32)
        images = batch[b"data"].reshape(len(labels), 3, 32, 32).transpose(0, 2, 3, 1)
        return np.ascontiguousarray(images), labels
    except Exception as error:  # a damaged pickle raises almost anything
        raise ValueError(f"{path} is no CIFAR-10 batch ({error}): delete it") from error


def _check_whole(least: int, **numbers: object) -> None:
    for name, value in numbers.items():
        if not isinstance(value, int | np.integer) or value is True or value < least:
            raise ValueError(f"{name}={value!r}: give a whole number from {least} up")
