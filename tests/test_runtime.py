"""Memory and the cache of compiled programs, also as another process sees them."""

import gc
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

import graphlr as glr
from graphlr.runtime import garbage_collection_off
from tests import ROOT
from tests.models import Train, X, linear


def step():
    """The loss of a step, and how many programs came from the cache and how many not.

    A new process and this one compile the same program.
    """
    train = Train(linear(), glr.optim.SGD("**", lr=0.1))
    loss = float(train(X))
    return loss, train.compiles.hits, train.compiles.misses, str(train.compiles)


IN_ANOTHER_PROCESS = """
import sys
import graphlr as glr
from tests.test_runtime import step

glr.runtime.compile_cache(sys.argv[1])
print(*step()[:3])
"""


def test_programs_are_kept_and_a_broken_entry_is_healed(tmp_path, off):
    folder = tmp_path / "new" / "cache"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", IN_ANOTHER_PROCESS, str(folder)],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    loss, *counts = map(float, done.stdout.split())
    assert counts == [0, 1]
    glr.runtime.compile_cache(folder)
    second = step()
    assert second[:3] == (loss, 1, 0)
    assert "(1 from the cache)" in second[3]
    (entry,) = folder.glob("jit_step-*-cache")
    whole = entry.read_bytes()
    entry.write_bytes(whole[: len(whole) // 2])
    os.utime(entry, (0, 0))
    message = "had entries that can't be read, of jit_step"
    with pytest.warns(UserWarning, match=message) as caught:
        assert step()[:3] == (loss, 0, 1)
    assert len(caught) == 1
    assert step()[:3] == (loss, 0, 1)  # kept again ...
    assert step()[:3] == (loss, 1, 0)


@pytest.fixture
def off():
    yield
    glr.runtime.compile_cache(None)


def test_the_folder_can_be_switched_off(tmp_path, off):
    assert glr.runtime.compile_cache(tmp_path) == tmp_path
    assert glr.runtime.compile_cache(None) is None


def test_a_folder_that_cannot_be_written_to(tmp_path, off):
    (tmp_path / "file").touch()
    with pytest.warns(UserWarning, match=r"no compiled programs are kept.*another"):
        assert glr.runtime.compile_cache(tmp_path / "file" / "cache") is None


def test_the_default_is_the_users_cache_folder(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "somewhere")
    assert glr.runtime.default_cache() == Path("somewhere/graphlr")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert glr.runtime.default_cache() == Path.home() / ".cache" / "graphlr"


TUNED = """
import resource, sys
import graphlr as glr

print(sys.argv[1] == "tuned" and glr.runtime.tune_cpu())
import jax
big = jax.numpy.ones((3200, 3200))  # 41 MB: glibc itself keeps up to 32
step = jax.jit(lambda x: x[::-1] + 1)
for _ in range(30):  # until there is room for two, as a result may go a step later
    step(big).block_until_ready()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    step(big).block_until_ready()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(which):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", TUNED, which],
        capture_output=True,
        text=True,
        check=True,
    )
    said, count = done.stdout.split()
    assert said == str(which == "tuned")
    return int(count)


@pytest.mark.skipif(sys.platform != "linux", reason="mallopt is glibc's")
def test_tuned_memory_is_kept_from_step_to_step():
    assert faults("tuned") < 0.5 * faults("plain")


def test_tuning_too_late_is_said():
    jax.devices()
    with pytest.warns(UserWarning, match=r"too late.*first in main"):
        assert not glr.runtime.tune_cpu()


@pytest.mark.parametrize("enabled", [True, False])
def test_garbage_collection_is_as_before(enabled):
    (gc.enable if enabled else gc.disable)()
    try:
        with pytest.raises(ZeroDivisionError), garbage_collection_off():
            1 / gc.isenabled()
        assert gc.isenabled() == enabled
    finally:
        gc.enable()
