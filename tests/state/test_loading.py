"""A state taken over: everything goes on as it would have, or nothing is changed."""

import signal

import jax
import numpy as np
import pytest

from graphlr.modules.variables import write
from graphlr.optim import SGD, Adam
from graphlr.optim.lr_scheduler import CosineDecayLR
from graphlr.state import loading
from graphlr.state.loading import StateError, compare, copied
from tests.models import (
    IMAGE,
    LABEL,
    Classify,
    Evaluate,
    Net,
    Train,
    X,
    assert_close,
    assert_same,
    chain,
    linear,
    state_of,
    values,
)


def made(seed):
    model = Net(seed)
    groups = [
        {"params": model.features, "name": "features", "lr_scale": 0.5},
        {"params": ...},
    ]
    return Classify(model, Adam(groups, lr=0.1), lr_sch=CosineDecayLR(10))


@pytest.fixture(scope="module")
def straight():
    """Losses of ten steps, the state after five, and what there is after them."""
    graph = made(seed=0)
    losses = [float(graph(IMAGE, LABEL)) for _ in range(5)]
    state = graph.state_dict()
    losses += [float(graph(IMAGE, LABEL)) for _ in range(5)]
    return losses, state, values(graph.model), graph.lr


@pytest.fixture
def state(straight):
    """The state after five steps."""
    return straight[1]


@pytest.fixture(scope="module")
def compiled():
    """Another graph, compiled once for every test that loads into it."""
    graph = made(seed=1)
    start = state_of(graph)
    graph.compile(IMAGE, LABEL)
    return graph, start


@pytest.fixture
def other(compiled):
    """It, as it was at first."""
    graph, start = compiled
    graph.load_state_dict(start)
    yield graph
    assert graph.compiles.count == 1


def group(graph):
    return graph.optimizers[0].param_groups[0]


# --- what fits ------------------------------------------------------------------------


def test_resume_equals_not_stopping(straight, other):
    """Dropout draws the same too."""
    losses, state, after, lr = straight
    assert float(other(IMAGE, LABEL)) != losses[5]
    other.load_state_dict(state)
    assert other.step == 5
    assert [float(other(IMAGE, LABEL)) for _ in range(5)] == losses[5:]
    assert_same(values(other.model), after)
    assert (other.step, other.lr) == (10, lr)


def test_arrays_of_another_library_are_taken(straight, other, tmp_path):
    losses, state, *_ = straight
    np.savez(tmp_path / "state.npz", **state)
    with np.load(tmp_path / "state.npz") as saved:
        other.load_state_dict({key: saved[key] for key in saved})
    assert float(other(IMAGE, LABEL)) == losses[5]
    assert group(other)["betas"] == (0.9, 0.999)


def test_what_was_loaded_is_not_donated(state, other):
    other.load_state_dict(state)
    other(IMAGE, LABEL)
    assert not any(getattr(v, "is_deleted", bool)() for v in state.values())


def test_a_part_is_loaded_when_not_strict(state, other):
    other.load_state_dict(state)
    new = {
        "model.classifier.kernel": np.zeros((8, 3), np.float32),
        "head.old": np.zeros(3),
    }
    with pytest.raises(
        ValueError, match=r"missing.*and \d+ more.*unexpected: head.old"
    ):
        other.load_state_dict(new)
    bias = np.asarray(other.model.classifier.bias.get_value())
    loaded = other.load_state_dict(new, strict=False)
    assert loaded.unexpected == ["head.old"]
    assert "model.classifier.bias" in loaded.missing
    assert not np.any(other.model.classifier.kernel.get_value())
    np.testing.assert_array_equal(other.model.classifier.bias.get_value(), bias)
    assert other.step == 5
    for key, value in other.state_dict().items():
        if key.startswith("slots."):
            np.testing.assert_array_equal(value, state[key])


def test_an_eval_graph_takes_a_training_state(straight):
    _, state, *_ = straight
    evaluate = Evaluate(Net(seed=5))
    evaluate.load_state_dict(state)
    variables = {
        f"model.{path}": value for path, value in values(evaluate.model).items()
    }
    assert_same(variables, {key: np.asarray(state[key]) for key in variables})
    with pytest.raises(ValueError, match=r"missing: model\.classifier\.bias"):
        evaluate.load_state_dict({"step": 1})
    with pytest.raises(TypeError, match=r"np\.load"):
        evaluate.load_state_dict("state.npz")


def test_loading_restores_edited_numbers_and_flags():
    def made():
        groups = [{"params": "kernel", "name": "kernel"}, {"params": ...}]
        return Train(linear(), SGD(groups, lr=0.1, momentum=0.9))

    edits = {"frozen": True, "lr_scale": 0.25, "weight_decay": 0.1}
    graph, other = made(), made()
    group(graph).update(edits)
    graph(X), other(X)
    other.load_state_dict(graph.state_dict())
    assert {key: group(other)[key] for key in edits} == edits
    assert_same(values(graph.model), values(other.model))


@pytest.mark.parametrize(
    "edit",
    [
        {"momentum": 0.9},
        {"momentum": 0.9, "nesterov": True},
        {"clip_grad_max_norm": 1.0},
    ],
)
def test_edits_that_change_structure_are_restored(edit):
    """Made in mid-training; the script that resumes starts without them."""
    first, second = (Train(linear(), SGD("**", lr=0.1)) for _ in range(2))
    group(first).update(edit)
    first(X)
    second.load_state_dict(first.state_dict())
    assert {key: group(second)[key] for key in edit} == edit
    np.testing.assert_array_equal(first(X), second(X))


def test_slots_are_matched_by_parameter_when_groups_are_cut_differently():
    def made(groups):
        return Train(chain(4, 8, 3), Adam(groups, lr=0.01))

    names = ["layers.0", "layers.1"]
    fine = made([{"params": f"{name}.*", "name": name} for name in names])
    for _ in range(3):
        fine(IMAGE)
    coarse = made([{"params": "**", "name": "all"}])
    with pytest.raises(ValueError, match=r"missing: groups\.all.*unexpected: groups"):
        coarse.load_state_dict(fine.state_dict())
    coarse.load_state_dict(fine.state_dict(), strict=False)
    fine(IMAGE), coarse(IMAGE)
    assert_close(values(fine.model), values(coarse.model), rtol=1e-5, atol=1e-7)


# --- what does not fit ----------------------------------------------------------------


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize(
    ("key", "value", "match"),
    [
        (
            "model.classifier.bias",
            np.zeros(2, np.float32),
            r"float32\[2\], and.*float32\[3\]",
        ),
        ("model.classifier.bias", np.zeros(3, np.int32), r"int32\[3\], and the"),
        (
            "slots.model.classifier.bias.exp_avg",
            np.zeros(2, np.float32),
            "exp_avg is float32",
        ),
        (
            "groups.features.betas",
            (0.9,),
            r"float64\[1\], and .*64\[2\]",
        ),
        ("groups.features.lr", np.zeros(2), "has a number"),
    ],
)
def test_what_does_not_fit_is_named(state, other, key, value, match, strict):
    with pytest.raises(ValueError, match=match) as error:
        other.load_state_dict({**state, key: value}, strict=strict)
    assert key in str(error.value)


def test_a_bad_state_changes_no_flag(state, other):
    bad = {**state, "groups.features.amsgrad": True}
    del bad["model.classifier.kernel"]
    with pytest.raises(ValueError, match="missing"):
        other.load_state_dict(bad)
    assert not group(other)["amsgrad"]


def test_a_state_that_does_not_fit_changes_nothing(state, other):
    before = state_of(other)
    bad = dict(state)
    del bad["model.features.bias"]
    bad["model.extra"] = np.zeros(3)
    bad["model.classifier.kernel"] = np.zeros((8, 4), np.float32)
    with pytest.raises(ValueError, match="doesn't fit") as error:
        other.load_state_dict(bad)
    for part in (
        "missing: model.features.bias",
        "unexpected: model.extra",
        "model.classifier.kernel is float32[8, 4], and the graph has float32[8, 3]",
    ):
        assert part in str(error.value)
    assert_same(before, state_of(other))


def test_a_group_without_a_name_that_held_other_parameters(state, other):
    """Its number says nothing of what is in it."""
    with pytest.raises(StateError, match=r"'name': 'head'.*'group1' held other param"):
        other.load_state_dict({**state, "groups.group1.members": 7})


# --- the parts of it ------------------------------------------------------------------


def test_keys_are_compared_and_only_what_an_optimizer_needs_may_be_too_much():
    state, expected = {"a": 1, "step": 2, "b": 3}, {"a": 5, "c": 6}
    keys = {"strict": False, "training": False}
    assert compare(state, expected, **keys) == (["c"], ["b"])
    keys["training"] = True
    assert compare(state, expected, **keys) == (["c"], ["step", "b"])


@pytest.mark.parametrize("value", [np.arange(3.0), jax.numpy.arange(3.0)])
def test_a_copy_shares_no_memory(value):
    copy = copied(value, np.float32)
    assert copy.dtype == np.float32
    copy.delete()
    np.testing.assert_array_equal(value, [0.0, 1.0, 2.0])


def test_an_interrupt_waits_until_everything_is_stored(monkeypatch):
    graph = Train(linear(), Adam("**", lr=0.1))
    graph(X)
    state = graph.state_dict()
    graph(X)

    def interrupted(variables, arrays):
        signal.raise_signal(signal.SIGINT)
        write(variables, arrays)

    monkeypatch.setattr(loading, "write", interrupted)
    old = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            graph.load_state_dict(state)
    finally:
        signal.signal(signal.SIGINT, old)
    assert_same(state, graph.state_dict())
