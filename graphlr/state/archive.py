"""A file of named parts with a manifest: written whole or not at all, read with checks.

It is a zip file, so any tool opens it; parts named `*.npy` are what `np.load(path)`
sees. The manifest has the size and the SHA-256 of every part.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import ArrayLike

_MANIFEST = "manifest.json"


class ArchiveError(ValueError):
    """A file is missing parts, damaged, or none that `write` made."""


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A file to write to, which becomes `path` once all of it is on the disk.

    Raises:
        FileNotFoundError: The folder doesn't exist.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "new")
        ...     with replacing(path) as file:
        ...         _ = file.write(b"text")
        ...     path.read_bytes(), len(os.listdir(folder))
        (b'text', 1)
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(
            f"{path} can't be written, there is no folder {path.parent}: make it first"
        )
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder: give the name of a file")
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with draft.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def write(
    path: str | os.PathLike[str],
    manifest: Mapping[str, Any],
    parts: Iterable[tuple[str, bytes]],
) -> None:
    """Write parts and a manifest, all or nothing: a file at `path` is kept till then.

    Args:
        path: Of the file.
        manifest: What JSON can hold.
        parts: Name and content of each; they are asked for one after another.
    """
    with replacing(path) as file, zipfile.ZipFile(file, "w") as archive:
        listed = {}
        for name, data in parts:
            archive.writestr(zipfile.ZipInfo(name), data)
            digest = hashlib.sha256(data).hexdigest()
            listed[name] = {"bytes": len(data), "sha256": digest}
        text = json.dumps({**manifest, "parts": listed}, indent=1)
        archive.writestr(zipfile.ZipInfo(_MANIFEST), text)


def read(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The manifest and the parts of a file, every one checked.

    Raises:
        FileNotFoundError: There is no such file.
        ArchiveError: It is truncated or damaged, or none that `write` made; names the
            part.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write(f"{folder}/file", {"what": "greeting"}, [("text", b"hello")])
        ...     manifest, parts = read(f"{folder}/file")
        >>> manifest["what"], parts
        ('greeting', {'text': b'hello'})
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        with zipfile.ZipFile(path) as archive:
            manifest = json.loads(_part(archive, _MANIFEST))
            listed = manifest["parts"]
            parts = {name: _part(archive, name) for name in listed}
    except Exception as error:  # damage can show itself anywhere in zipfile
        raise ArchiveError(
            f"{path} is truncated, damaged or no exported program "
            f"({error or type(error).__name__}): copy or export it again"
        ) from error
    for name, data in parts.items():
        if hashlib.sha256(data).hexdigest() != listed[name]["sha256"]:
            raise ArchiveError(
                f"{path} is damaged: its part {name} ({len(data)} bytes) isn't what "
                "was written: copy or export it again"
            )
    return manifest, parts


def _part(archive: zipfile.ZipFile, name: str) -> bytes:
    try:
        return archive.read(name)
    except Exception as error:
        error.add_note(f"in part {name}")
        raise


def pack(array: ArrayLike) -> bytes:
    """An array as the content of an `.npy` file.

    Example:
        >>> unpack(pack(np.ones(2, np.float32)), "float32").tolist()
        [1.0, 1.0]
    """
    file = io.BytesIO()
    np.save(file, np.asarray(array), allow_pickle=False)
    return file.getvalue()


def unpack(data: bytes, dtype: str) -> np.ndarray[Any, Any]:
    """The array of an `.npy` file; types that NumPy hasn't, as bfloat16, by name."""
    array = np.load(io.BytesIO(data), allow_pickle=False)
    kind = np.dtype(dtype)
    return array if array.dtype == kind else array.view(kind)
