"""Programs that are found in the cache folder without being lowered."""

import platform
import subprocess
import sys
import warnings

import jax
import pytest

import graphlr as glr
from graphlr.export import binaries
from tests.models import Train, X, assert_same, linear, quick, state_of


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A graph, and the file of its step."""
    graph = Train(linear(), glr.optim.SGD("**", lr=0.1, momentum=0.9))
    path = tmp_path_factory.mktemp("made") / "train.zip"
    graph.export(path, X)
    return graph, path


@pytest.fixture
def path(made):
    return made[1]


def kept(folder):
    return sorted(folder.glob("graphlr-*"))


def losses(graph, steps=3):
    return [float(graph(X)) for _ in range(steps)]


def test_the_next_start_loads_the_step_without_lowering_it(folder, made, lowered):
    graph, path = made
    first = losses(glr.export.load(path))
    assert len(lowered) == 1
    assert len(kept(folder)) == 1
    exported = glr.export.load(path)
    assert losses(exported) == first
    assert len(lowered) == 1
    assert losses(graph) == first
    assert_same(state_of(exported), state_of(graph))


def test_what_is_loaded_takes_over_the_memory_of_its_state(folder, path):
    exported = glr.export.load(path)
    losses(exported)
    exported = glr.export.load(path)
    places = []
    for _ in range(3):
        losses(exported, 1)
        state = exported.state_dict()
        arrays = [x for key, x in state.items() if key.startswith("model.")]
        places.append({array.unsafe_buffer_pointer() for array in arrays})
        del state, arrays  # or the next step copies them
    assert places[0] == places[1] == places[2]


def test_every_batch_size_is_a_program(folder, path, lowered):
    exported = glr.export.load(path)
    losses(exported)
    exported(X[:3])
    assert len(kept(folder)) == len(lowered) == 2


def test_a_damaged_program_is_removed_and_compiled(folder, path, lowered):
    first = losses(glr.export.load(path))
    (program,) = kept(folder)
    data = bytearray(program.read_bytes())
    data[len(data) // 2] ^= 1
    program.write_bytes(data)
    with pytest.warns(UserWarning, match="can't be read .*damaged.* removed"):
        assert losses(glr.export.load(path)) == first
    assert len(lowered) == 2
    assert not kept(folder)  # JAX read its own copy, which can't be written again


def test_other_settings_are_another_program(folder, path, monkeypatch, lowered):
    losses(glr.export.load(path))
    monkeypatch.setenv("LIBTPU_INIT_ARGS", "--other")
    losses(glr.export.load(path))
    assert len(lowered) == 2


def test_other_processors_and_options_are_other_programs(folder, monkeypatch):
    double = quick(lambda x: 2 * x)

    def keep(identity, options):
        device = jax.devices()[0]
        binaries.load_or_compile(identity, device, lambda: double.lower(X), options)
        return len(kept(folder))

    level = {"xla_backend_optimization_level": 1}
    counts = [keep("step", None), keep("step", level), keep("another", None)]
    monkeypatch.setattr(platform, "processor", lambda: "another")
    assert [*counts, keep("step", None)] == [1, 2, 3, 4]


def test_without_a_folder_nothing_is_kept(path, lowered):
    assert losses(glr.export.load(path)) == losses(glr.export.load(path))
    assert len(lowered) == 2


def test_a_folder_that_went_away(folder, path):
    for file in [*folder.iterdir()]:
        file.unlink()
    folder.rmdir()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Error writing persistent")  # by JAX
        assert losses(glr.export.load(path))


def test_a_program_that_can_not_be_written(folder, path, monkeypatch):
    def full(*args):
        raise OSError("No space left on device")

    monkeypatch.setattr(binaries.archive, "write", full)
    with pytest.warns(UserWarning, match="not kept in .*: No space left"):
        assert losses(glr.export.load(path))


def test_on_the_device_that_holds_the_state(tmp_path, path):
    code = f"""
import sys
import jax, numpy as np, graphlr as glr
jax.config.update("jax_num_cpu_devices", 2)
glr.runtime.compile_cache({str(tmp_path / "cache")!r})
x = np.ones((6, 2), "f4")
losses = []
for place in (0, 1, 1):
    with jax.default_device(jax.devices()[place]):
        exported = glr.export.load({str(path)!r})
        losses.append(float(exported(x)))
        kernel = exported.state_dict()["model.kernel"]
        assert kernel.devices() == {{jax.devices()[place]}}
elsewhere = jax.device_put(x, jax.devices()[0])
try:
    exported(elsewhere)
except ValueError as error:
    print("sharding" in str(error))
print(len({{*losses}}))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stdout.split() == ["True", "1"], run.stderr
    assert len(kept(tmp_path / "cache")) == 2
