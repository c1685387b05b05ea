"""A graph's whole state, given and taken back."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import graphlr as glr

X = np.ones((4, 8), np.float32)


class Model(nnx.Module):
    def __init__(self, seed):
        self.dropout = nnx.Dropout(0.5, rngs=nnx.Rngs(seed))
        self.head = nnx.Linear(8, 1, rngs=nnx.Rngs(seed))

    def __call__(self, x):
        return self.head(self.dropout(x))


class Train(glr.Graph):
    def __init__(self, seed=0, optimizer=None):
        super().__init__()
        self.model = Model(seed)
        self.optimizer = [optimizer or glr.optim.Adam("**", lr=0.1)]
        self.add_optimizer(self.optimizer[0])

    def build(self, x):
        out = self.model(x)
        self.backward((out**2).mean())
        return out


def group(graph):
    return graph.optimizer[0].param_groups[0]


@pytest.fixture(scope="module")
def trained():
    """A graph after two steps, its state then, and what the third one returned."""
    graph = Train()
    graph(X), graph(X)
    state = graph.state_dict()
    return state, np.asarray(graph(X))


@pytest.fixture(scope="module")
def other():
    """One graph for every test that loads into it."""
    return Train(seed=1)


def test_dropout_goes_on_identically(trained, other):
    state, third = trained
    assert not np.array_equal(other(X), third)
    other.load_state_dict(state)
    np.testing.assert_array_equal(other(X), third)
    assert other.step == 3


def test_keys_are_dotted_paths(trained):
    state, _ = trained
    variables = {key for key in state if key.startswith("model.")}
    assert variables == {
        "model.head.kernel",
        "model.head.bias",
        "model.dropout.rngs.key",
        "model.dropout.rngs.count",
    }
    assert {"slots.model.head.bias.steps", "groups.group0.lr", "step"} <= state.keys()
    assert state["step"] == 2


def test_everything_in_it_is_plain(trained):
    """Any format that stores arrays and numbers can store it."""
    state, _ = trained
    for key, value in state.items():
        assert np.asarray(value).dtype.kind in "fiub", key


def test_arrays_of_another_library_are_taken(trained, other, tmp_path):
    state, third = trained
    np.savez(tmp_path / "state.npz", **state)
    with np.load(tmp_path / "state.npz") as saved:
        other.load_state_dict({key: saved[key] for key in saved})
    np.testing.assert_array_equal(other(X), third)
    assert group(other)["betas"] == (0.9, 0.999)


def test_what_was_loaded_is_not_donated(trained, other):
    state, _ = trained
    other.load_state_dict(state)
    other(X)
    assert not any(getattr(v, "is_deleted", bool)() for v in state.values())


def test_a_part_is_loaded_when_not_strict(trained, other):
    state, _ = trained
    other.load_state_dict(state)
    new = {"model.head.kernel": np.zeros((8, 1), np.float32), "head.old": np.zeros(3)}
    with pytest.raises(
        ValueError, match=r"missing.*and \d+ more.*unexpected: head.old"
    ):
        other.load_state_dict(new)
    bias = np.asarray(other.model.head.bias.get_value())
    other.load_state_dict(new, strict=False)
    assert not np.any(other.model.head.kernel.get_value())
    np.testing.assert_array_equal(other.model.head.bias.get_value(), bias)
    assert other.step == 2
    slots = {k: v for k, v in other.state_dict().items() if k.startswith("slots.")}
    for key, value in slots.items():
        np.testing.assert_array_equal(value, state[key])


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize(
    ("key", "value", "match"),
    [
        (
            "model.head.bias",
            np.zeros(2, np.float32),
            r"float32\[2\], and.*float32\[1\]",
        ),
        ("model.head.bias", np.zeros(1, np.int32), r"int32\[1\], and the"),
        (
            "slots.model.head.bias.exp_avg",
            np.zeros(2, np.float32),
            "exp_avg is float32",
        ),
        (
            "groups.group0.betas",
            (0.9,),
            r"float64\[1\], and .*64\[2\]",
        ),
        ("groups.group0.lr", np.zeros(2), "has a number"),
    ],
)
def test_what_does_not_fit_is_named(trained, other, key, value, match, strict):
    with pytest.raises(ValueError, match=match) as error:
        other.load_state_dict({**trained[0], key: value}, strict=strict)
    assert key in str(error.value)


def test_a_bad_state_changes_no_flag(trained, other):
    state = {**trained[0], "groups.group0.amsgrad": True}
    del state["model.head.kernel"]
    with pytest.raises(ValueError, match="missing"):
        other.load_state_dict(state)
    flag = group(other)["amsgrad"]
    group(other)["amsgrad"] = False
    assert not flag


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
    first, second = (Train(optimizer=glr.optim.SGD("**", lr=0.1)) for _ in range(2))
    group(first).update(edit)
    first(X)
    second.load_state_dict(first.state_dict())
    assert {key: group(second)[key] for key in edit} == edit
    np.testing.assert_array_equal(first(X), second(X))


def test_a_state_before_the_first_call_is_complete():
    graph = Train()
    state = graph.state_dict()
    assert state["step"] == 0
    assert "slots.model.head.kernel.exp_avg" in state
    assert graph.compiles.count == 0


def test_plain_values_in_variables_are_part_of_it():
    """A Variable may hold a Python number until a step writes an array."""
    graph = Train()
    graph.model.scale = nnx.Variable(2.0)
    state = graph.state_dict()
    assert float(state["model.scale"]) == 2.0
    graph.load_state_dict({**state, "model.scale": jnp.float32(3.0)})
    assert float(graph.model.scale.get_value()) == 3.0


def test_each_optimizer_keeps_its_own_count():
    """One that two graphs share has taken more steps than the other."""
    shared, own = (glr.optim.SGD(f"{name}.*", lr=0.1) for name in ("a", "b"))
    graph = Train(optimizer=glr.optim.SGD("model.**"))
    graph.a, graph.b = (nnx.Linear(1, 1, rngs=nnx.Rngs(0)) for _ in range(2))
    graph.add_optimizer(shared)
    graph.add_optimizer(own)
    shared.step, own.step = 6, 1
    graph.load_state_dict(graph.state_dict())
    assert (shared.step, own.step) == (6, 1)
