"""CIFAR-10: downloaded once, checked, and read without running what a pickle says."""

from __future__ import annotations

import hashlib
import importlib
import io
import os
import pickle
import shutil
import tarfile
import urllib.request
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
from numpy.typing import NDArray

from graphlr.data.images import Dataset, Images

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


def cifar10(root: str | os.PathLike[str] = "data", *, download: bool = True) -> Dataset:
    """Return CIFAR-10: 50,000 training and 10,000 test images, 0.7 GiB of float32.

    Read from `root`: the complete folder `cifar-10-batches-py`, or the archive
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
