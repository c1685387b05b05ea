"""A loaded step: its state is its own, safe to keep, checked, and saved again."""

import jax
import numpy as np
import pytest

from graphlr.export.batch_sizes import ExportError
from graphlr.export.loading import load
from tests.models import IMAGE, LABEL, assert_same, state_of


def losses(exported, steps=2):
    return [float(exported(IMAGE, LABEL)) for _ in range(steps)]


def test_state_is_safe_to_keep_and_to_go_back_to(exported):
    exported(IMAGE, LABEL)
    state, kept = exported.state_dict(), state_of(exported)
    then = losses(exported)
    assert_same({key: np.asarray(value) for key, value in state.items()}, kept)
    exported.numbers["bias.lr"] = 0.7
    exported.load_state_dict(state)
    assert exported.numbers["bias.lr"] == 0.1
    assert losses(exported) == then
    assert exported.step == 3


def test_states_that_do_not_fit(exported):
    state = exported.state_dict()
    before = state_of(exported)
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
    assert_same(state_of(exported), before)


def test_a_failed_step_says_how_to_go_on(exported, monkeypatch):
    saved = exported.state_dict()

    def broken(self, state, *rest):
        for array in jax.tree.leaves(state):
            array.delete()
        raise RuntimeError("out of memory")

    first, _ = losses(exported)
    monkeypatch.setattr(jax.stages.Compiled, "__call__", broken)
    with pytest.raises(RuntimeError, match=r"lost: graph\.load_state_dict\(saved\)"):
        exported(IMAGE, LABEL)
    monkeypatch.undo()
    exported.load_state_dict(saved)
    assert losses(exported, 1) == [first]


def test_saved_again(path, exported, tmp_path):
    exported.save(tmp_path / "same.zip")
    assert (tmp_path / "same.zip").read_bytes() == path.read_bytes()
    exported(IMAGE, LABEL)
    exported.numbers["bias.lr"] = 0.3
    exported.save(tmp_path / "later.zip")
    later = load(tmp_path / "later.zip")
    assert (later.step, later.numbers["bias.lr"]) == (1, 0.3)
    assert losses(later, 1) == losses(exported, 1)
