"""A loaded program: what it lets change, what it refuses, and what damage it sees."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import graphlr as glr
from graphlr.export.batch_sizes import ExportError
from graphlr.export.loading import load
from graphlr.state import archive

DRAW = np.random.default_rng(0)
X = DRAW.normal(size=(8, 4)).astype(np.float32)
Y = np.arange(8) % 3


class Train(glr.Graph):
    def __init__(self):
        super().__init__()
        self.model = nnx.Linear(4, 3, rngs=nnx.Rngs(0))
        self.optimizer = [
            glr.optim.Adam(
                [
                    {"params": "**.bias", "name": "bias", "lr_scale": 0.5},
                    {"params": "**.kernel", "name": "kernel", "weight_decay": 0.1},
                ],
                lr=0.1,
            )
        ]
        schedule = glr.optim.lr_scheduler.ExponentialLR(gamma=0.5)
        self.add_optimizer(self.optimizer[0], lr_sch=schedule)

    def build(self, x, y):
        logits = self.model(x)
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()
        self.backward(loss)
        return loss


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("exported") / "train.zip"
    Train().export(path, X, Y)
    return path


@pytest.fixture(scope="module")
def loaded(path):
    """One for the tests that change nothing."""
    return load(path)


def altered(path, to, programs=None, **manifest):
    """The same file with other entries in its manifest."""
    made, parts = archive.read(path)
    archive.write(to, {**made, **manifest}, {**parts, **(programs or {})}.items())
    return to


# --- numbers --------------------------------------------------------------------------


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


def test_numbers_are_live(path, lowered):
    exported, train = load(path), Train()
    groups = train.optimizer[0].param_groups
    for step in range(4):
        assert float(exported(X, Y)) == float(train(X, Y))
        exported.numbers["bias.lr_scale"] = groups["bias"]["lr_scale"] = 0.1 * step
        exported.numbers["kernel.betas"] = groups["kernel"]["betas"] = (0.8, 0.9)
        assert exported.lr == pytest.approx(train.lr)
    assert exported.state_dict()["groups.bias.lr_scale"] == 0.1 * step
    np.testing.assert_array_equal(
        exported.state_dict()["model.kernel"], train.state_dict()["model.kernel"]
    )
    assert lowered.count("run") == train.compiles.count == 1


@pytest.mark.parametrize(
    ("name", "value", "error", "message"),
    [
        ("bias.lr_sclae", 0.1, KeyError, "did you mean 'bias.lr_scale'"),
        ("head.lr", 0.1, KeyError, "numbers has no 'head.lr'"),
        ("bias.lr", -0.1, ValueError, "Invalid learning rate: -0.1"),
        ("bias.lr", "fast", TypeError, "lr must be a number"),
        ("bias.lr", lambda step: 0.1, TypeError, "bias.lr is 0.1 in the exported step"),
        ("bias.betas", (0.9, 1.5), ValueError, "Invalid beta parameter at index 1"),
        ("bias.betas", 0.9, TypeError, "betas must be two numbers"),
    ],
)
def test_bad_numbers_change_nothing(loaded, name, value, error, message):
    before = dict(loaded.numbers)
    with pytest.raises(error, match=message):
        loaded.numbers[name] = value
    assert dict(loaded.numbers) == before
    assert len(before) == 10


# --- state ----------------------------------------------------------------------------


def test_state_is_safe_to_keep_and_to_go_back_to(path):
    exported = load(path)
    exported(X, Y)
    state = exported.state_dict()
    kept = {key: np.array(value) for key, value in state.items()}
    then = [float(exported(X, Y)) for _ in range(2)]
    for key, value in kept.items():
        np.testing.assert_array_equal(state[key], value)
    exported.numbers["bias.lr"] = 0.7
    exported.load_state_dict(state)
    assert exported.numbers["bias.lr"] == 0.1
    assert [float(exported(X, Y)) for _ in range(2)] == then
    assert exported.step == 3


def test_states_that_do_not_fit(path):
    exported = load(path)
    state = exported.state_dict()
    short = {key: value for key, value in state.items() if "bias" not in key}
    with pytest.raises(ValueError, match=r"missing: model\.bias"):
        exported.load_state_dict(short)
    loaded = exported.load_state_dict(short | {"more": 1}, strict=False)
    assert "model.bias" in loaded.missing
    assert loaded.unexpected == ["more"]
    with pytest.raises(ValueError, match=r"model\.bias is float32\[4\], and .*\[3\]"):
        exported.load_state_dict({**state, "model.bias": np.zeros(4, "f4")})
    with pytest.raises(ExportError, match=r"bias\.frozen is True .* a constant False"):
        exported.load_state_dict({**state, "groups.bias.frozen": True})
    for key, value in exported.state_dict().items():
        np.testing.assert_array_equal(value, state[key])


def test_a_failed_step_says_how_to_go_on(path, monkeypatch):
    exported = load(path)
    saved = exported.state_dict()

    def broken(self, state, *rest):
        for array in jax.tree.leaves(state):
            array.delete()
        raise RuntimeError("out of memory")

    exported(X, Y)
    monkeypatch.setattr(jax.stages.Compiled, "__call__", broken)
    with pytest.raises(RuntimeError, match=r"lost: graph\.load_state_dict\(saved\)"):
        exported(X, Y)
    monkeypatch.undo()
    exported.load_state_dict(saved)
    assert exported(X, Y) == Train()(X, Y)


def test_saved_again(path, tmp_path):
    exported = load(path)
    exported.save(tmp_path / "same.zip")
    assert (tmp_path / "same.zip").read_bytes() == path.read_bytes()
    exported(X, Y)
    exported.numbers["bias.lr"] = 0.3
    exported.save(tmp_path / "later.zip")
    later = load(tmp_path / "later.zip")
    assert (later.step, later.numbers["bias.lr"]) == (1, 0.3)
    assert float(later(X, Y)) == float(exported(X, Y))


# --- arguments ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "kwargs", "error", "message"),
    [
        ((X,), {}, TypeError, r"Train: missing a required argument: 'y'; Train \(expo"),
        ((X, Y, Y), {}, TypeError, r"too many positional arguments; .* takes x: float"),
        ((X,), {"z": Y}, TypeError, r"missing a required argument: 'y'"),
        (
            (X[0], Y),
            {},
            ValueError,
            r"x is float32\[4\], .* takes float32\[b,4\]: give",
        ),
        ((X[:, :3], Y), {}, ValueError, r"x is float32\[8,3\], .* float32\[b,4\]"),
        ((X, Y[:5]), {}, ValueError, r"y is int32\[5\], .* where b is 8 as in x: give"),
        ((X > 0, Y), {}, TypeError, r"x is bool\[8,4\], .*x\.astype\('float32'\), or"),
        (
            (X, X[:, 0]),
            {},
            TypeError,
            r"y is float32\[8\], .* takes int32\[b\]: convert",
        ),
        (([[1.0]], Y), {}, TypeError, r"x is a list, and .* takes float32\[b,4\]"),
        ((X, Y + 2), {}, ValueError, r"y\[1\] is 3, but it indexes 3 entries"),
        ((X, None), {}, TypeError, r"y is a NoneType, and .* takes int32\[b\]"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_wrong_arguments_are_told_before_anything_runs(
    loaded, args, kwargs, error, message
):
    with pytest.raises(error, match=message):
        loaded(*args, **kwargs)
    assert loaded.step == 0


def test_arguments_by_name_and_from_the_device(path):
    first, second = load(path), load(path)
    expected = float(first(X, Y))
    assert float(second(y=jnp.asarray(Y), x=jnp.asarray(X))) == expected


# --- files ----------------------------------------------------------------------------


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


def test_another_jax_that_can_be_read(path, tmp_path):
    other = load(altered(path, tmp_path / "old.zip", jax="0.9.9"))
    assert float(other(X, Y)) == float(Train()(X, Y))


def test_a_failed_export_keeps_the_old_file(path, tmp_path, monkeypatch):
    file = tmp_path / "train.zip"
    file.write_bytes(path.read_bytes())

    def full(array):
        raise OSError("no space left on device")

    monkeypatch.setattr(archive, "pack", full)
    with pytest.raises(OSError, match="no space left"):
        Train().export(file, X, Y)
    assert file.read_bytes() == path.read_bytes()
    assert [*tmp_path.iterdir()] == [file]
