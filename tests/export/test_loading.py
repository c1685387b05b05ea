"""Files of exported steps: what damage is seen, and what can't be read here."""

import re

import pytest

from graphlr.export.batch_sizes import ExportError
from graphlr.export.loading import load
from graphlr.state import archive
from tests.models import IMAGE, LABEL


def altered(path, to, programs=None, **manifest):
    """The same file with other entries in its manifest."""
    made, parts = archive.read(path)
    archive.write(to, {**made, **manifest}, {**parts, **(programs or {})}.items())
    return to


def test_damaged_files(path, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no file .*nowhere\.zip"):
        load(tmp_path / "nowhere.zip")
    whole, file = path.read_bytes(), tmp_path / "damaged.zip"
    for length in (0, 10, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:length])
        with pytest.raises(ExportError, match="is truncated, damaged or no exported"):
            load(file)
    at = whole.index(b"StableHLO") + 2000
    file.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    with pytest.raises(ExportError, match=r"Bad CRC-32 for file 'step\.jax'"):
        load(file)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"format": 2, "graphlr": "3.0"},
            r"has format 2, of graphlr 3\.0, and this graphlr reads format 1: install",
        ),
        ({"format": None}, "has format None"),
        (
            {"calling_convention": 99, "jax": "9.0"},
            r"with jax 9\.0, and this is jax .*: its calling convention is 99, and \d+ "
            r"to \d+ can be read\. pip install 'jax==9\.0', or export the graph again",
        ),
        (
            {"platforms": ["tpu"]},
            r"is for tpu, and this machine is \w+: graph\.export\(\.\.\., platforms=\[",
        ),
        ({"wide": True}, r"with 64-bit types: jax\.config\.update\('jax_enable_x64'"),
    ],
    ids=str,
)
def test_what_can_not_be_read_here_says_what_can(path, tmp_path, changes, message):
    with pytest.raises(ExportError, match=message):
        load(altered(path, tmp_path / "other.zip", **changes))


def test_a_program_of_a_newer_jax(path, tmp_path):
    _, parts = archive.read(path)
    step = re.sub(rb"custom_call_v\d", b"custom_call_v9", parts["step.jax"])
    other = altered(path, tmp_path / "new.zip", {"step.jax": step}, jax="9.0")
    with pytest.raises(ExportError, match=r"with jax 9\.0, .*: it can't be read\. pip"):
        load(other)
    broken = altered(path, tmp_path / "broken.zip", {"step.jax": b"nothing"}, jax="9.0")
    with pytest.raises(ExportError, match=r"it can't be read"):
        load(broken)


def test_another_jax_that_can_be_read(path, graph, tmp_path):
    other = load(altered(path, tmp_path / "old.zip", jax="0.9.9"))
    assert float(other(IMAGE, LABEL)) == float(graph(IMAGE, LABEL))
