"""A file of named parts: whole or not at all, and no damage goes unseen."""

import json
import os
import zipfile

import ml_dtypes
import numpy as np
import pytest

from graphlr.state import archive
from graphlr.state.archive import ArchiveError

PARTS = {"text": b"hello", "empty": b"", "numbers.npy": archive.pack(np.arange(100.0))}


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "file"
    archive.write(path, {"what": "greeting"}, PARTS.items())
    return path


def test_what_is_written_is_read(path):
    manifest, parts = archive.read(path)
    assert manifest["what"] == "greeting"
    assert manifest["parts"]["text"]["bytes"] == 5
    assert parts == PARTS


def test_numpy_and_zip_open_it(path):
    assert np.load(path)["numbers"].tolist() == list(range(100))
    assert zipfile.ZipFile(path).testzip() is None


def test_same_content_makes_the_same_file(path, tmp_path):
    archive.write(tmp_path / "again", {"what": "greeting"}, PARTS.items())
    assert (tmp_path / "again").read_bytes() == path.read_bytes()


def test_every_truncation_is_seen(path):
    whole = path.read_bytes()
    for length in [*range(0, len(whole), 37), len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(
            ArchiveError, match=r"file is truncated, damaged or .*again"
        ):
            archive.read(path)


def test_no_flipped_bit_changes_what_is_read(path):
    whole, seen = path.read_bytes(), 0
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
        try:
            manifest, parts = archive.read(path)
        except ArchiveError:
            seen += 1
        else:  # a field of zip that says nothing about the content, as the date
            assert parts == PARTS
            assert manifest["what"] == "greeting"
    assert seen > 0.8 * len(whole)


def test_damage_that_zip_does_not_see_names_the_part(path):
    manifest, parts = archive.read(path)
    with zipfile.ZipFile(path, "w") as file:
        for name, data in {**parts, "text": b"hullo"}.items():
            file.writestr(name, data)
        file.writestr("manifest.json", json.dumps(manifest))
    with pytest.raises(ArchiveError, match=r"is damaged: its part text \(5 bytes\)"):
        archive.read(path)


def test_other_files_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no file .*nowhere"):
        archive.read(tmp_path / "nowhere")
    np.savez(tmp_path / "weights.npz", a=1)
    with pytest.raises(ArchiveError, match=r"no item named 'manifest\.json'"):
        archive.read(tmp_path / "weights.npz")


def test_a_failed_write_keeps_the_old_file(path):
    before = path.read_bytes()

    def parts():
        yield "text", b"new"
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        archive.write(path, {}, parts())
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == ["file"]


def test_places_that_can_not_be_written(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*missing: make"):
        archive.write(tmp_path / "missing" / "file", {}, [])
    with pytest.raises(IsADirectoryError, match="is a folder: give the name of a file"):
        archive.write(tmp_path, {}, [])


@pytest.mark.parametrize(
    "array",
    [
        np.float32(0.1),
        np.zeros((0, 3), np.int8),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.arange(4).astype(ml_dtypes.bfloat16),
        np.array(True),
        np.arange(3).astype(ml_dtypes.float8_e4m3fn),
    ],
    ids=lambda array: str(array.dtype),
)
def test_arrays_of_every_type(array):
    again = archive.unpack(archive.pack(array), str(array.dtype))
    assert again.dtype == array.dtype
    np.testing.assert_array_equal(again, array)
