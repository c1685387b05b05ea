"""Memory and the cache of compiled programs, each seen from fresh processes."""

import gc
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

import graphlr as glr
from graphlr.runtime import garbage_collection_off

PROGRAM = """
import logging, sys, warnings
import numpy as np
from flax import nnx
import graphlr as glr

glr.runtime.compile_cache(sys.argv[1])

class Train(glr.Graph):
    def __init__(self):
        super().__init__()
        self.model = nnx.Linear(4, 3, rngs=nnx.Rngs(0))
        self.add_optimizer(glr.optim.SGD(self.model, lr=0.1))

    def build(self, x):
        loss = (self.model(x) ** 2).mean()
        self.backward(loss)
        return loss

train = Train()
print(float(train(np.ones((2, 4), np.float32))))
print(train.compiles.hits, train.compiles.misses)
print(train.compiles)
"""


def run(folder):
    done = subprocess.run(
        [sys.executable, "-W", "always::UserWarning", "-c", PROGRAM, str(folder)],
        capture_output=True,
        text=True,
        check=True,
    )
    loss, counts, text = done.stdout.splitlines()
    return loss, counts, text, done.stderr


def test_programs_are_kept_and_a_broken_entry_is_healed(tmp_path):
    folder = tmp_path / "new" / "cache"
    first = run(folder)
    assert first[1] == "0 1"
    second = run(folder)
    assert (second[0], second[1]) == (first[0], "1 0")
    assert "(1 from the cache)" in second[2]
    (entry,) = folder.glob("jit_step-*-cache")
    whole = entry.read_bytes()
    entry.write_bytes(whole[: len(whole) // 2])
    os.utime(entry, (0, 0))
    broken = run(folder)
    assert (broken[0], broken[1]) == (first[0], "0 1")
    assert broken[3].count("had entries that can't be read, of jit_step") == 1
    assert "Error reading persistent" not in broken[3]
    assert run(folder)[1] == "0 1"  # kept again ...
    last = run(folder)
    assert (last[1], last[3]) == ("1 0", "")


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
big = jax.numpy.ones((4096, 4096))  # 64 MB
step = jax.jit(lambda x: x[::-1] + 1)
for _ in range(10):
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
