"""Programs that are found in the cache folder without being lowered."""

import platform
import subprocess
import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import graphlr as glr
from graphlr.export import binaries

X = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
Y = np.random.default_rng(1).normal(size=(6, 2)).astype(np.float32)


class Train(glr.Graph):
    def __init__(self):
        super().__init__()
        self.model = nnx.Linear(4, 2, rngs=nnx.Rngs(0))
        self.add_optimizer(glr.optim.Adam(self.model, lr=0.1))

    def build(self, x, y):
        loss = jnp.square(self.model(x) - y).mean()
        self.backward(loss)
        return loss


@pytest.fixture
def folder(tmp_path):
    yield glr.runtime.compile_cache(tmp_path / "cache")
    glr.runtime.compile_cache(None)


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "train.zip"
    Train().export(path, X, Y)
    return path


@pytest.fixture
def lowered(monkeypatch):
    """The names of everything that is lowered."""
    names = []
    lower = jax.stages.Traced.lower

    def note(self, *args, **kwargs):
        names.append(self.fun_name)
        return lower(self, *args, **kwargs)

    monkeypatch.setattr(jax.stages.Traced, "lower", note)
    return names


def kept(folder):
    return sorted(folder.glob("graphlr-*"))


def losses(exported, steps=3):
    return [float(exported(X, Y)) for _ in range(steps)]


def test_the_next_start_loads_the_step_without_lowering_it(folder, path, lowered):
    first = losses(glr.export.load(path))
    assert len(lowered) == 1
    assert len(kept(folder)) == 1
    exported = glr.export.load(path)
    assert losses(exported) == first
    assert len(lowered) == 1
    again = Train()
    assert first == [float(again(X, Y)) for _ in range(3)]
    state = again.state_dict()
    for key, value in exported.state_dict().items():
        np.testing.assert_array_equal(value, state[key])


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
    exported(X[:3], Y[:3])
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
    double = jax.jit(lambda x: 2 * x)

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
x, y = np.ones((6, 4), "f4"), np.ones((6, 2), "f4")
losses = []
for place in (0, 1, 1):
    with jax.default_device(jax.devices()[place]):
        exported = glr.export.load({str(path)!r})
        losses.append(float(exported(x, y)))
        kernel = exported.state_dict()["model.kernel"]
        assert kernel.devices() == {{jax.devices()[place]}}
elsewhere = jax.device_put(x, jax.devices()[0])
try:
    exported(elsewhere, y)
except ValueError as error:
    print("sharding" in str(error))
print(len({{*losses}}))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stdout.split() == ["True", "1"], run.stderr
    assert len(kept(tmp_path / "cache")) == 2
