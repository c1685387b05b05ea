"""What earlier versions saved loads for ever; see `corpus/make.py`."""

import numpy as np
import pytest

import graphlr as glr
from tests.corpus.make import HERE, IMAGE, LABEL, Evaluate, Net, Scaler, Train, steps

VERSIONS = sorted(path.name for path in HERE.glob("*.*.*"))


@pytest.fixture(params=VERSIONS)
def folder(request):
    return HERE / request.param


@pytest.fixture
def expected(folder):
    return saved(folder / "expected.npz")


@pytest.fixture(scope="module")
def train():
    """One for all tests; each loads a state."""
    return Train(seed=1)


@pytest.fixture(scope="module")
def evaluate():
    return Evaluate(Net(seed=1))


def saved(path):
    with np.load(path) as file:
        return dict(file)


def test_there_is_something_to_load():
    assert "0.1.0" in VERSIONS


def test_training_goes_on_from_a_state(folder, expected, train):
    train.load_state_dict(saved(folder / "train.npz"))
    assert train.loss_scale == 16.0  # grown once, after two good steps
    np.testing.assert_allclose(steps(train, 3), expected["losses"], rtol=1e-5)
    np.testing.assert_allclose([*train.lr.values()], expected["lr"])
    kernel, average = expected["kernel"], train.ema_state["model.head.kernel"]
    np.testing.assert_allclose(train.model.head.kernel.get_value(), kernel, rtol=1e-5)
    np.testing.assert_allclose(average, expected["average"], rtol=1e-5)
    assert train.optimizers["head"].param_groups[0]["weight_decay"] == 0.25
    assert train.optimizers["body"].param_groups["frozen"]["frozen"] is True
    assert (train.step, train.skipped) == (6, 0)


def test_a_forward_pass_takes_a_training_state(folder, expected, evaluate):
    evaluate.load_state_dict(saved(folder / "train.npz"))
    np.testing.assert_allclose(evaluate(IMAGE), expected["logits"], rtol=1e-5)


def test_an_exported_step_goes_on(folder, expected, train):
    exported = glr.export.load(folder / "train.zip")
    np.testing.assert_allclose(steps(exported, 3), expected["losses"], rtol=1e-5)
    np.testing.assert_allclose([*exported.lr.values()], expected["lr"])
    train.load_state_dict(exported.state_dict())
    assert float(train(IMAGE, LABEL)) == pytest.approx(float(exported(IMAGE, LABEL)))


def test_an_exported_forward_pass(folder, expected):
    exported = glr.export.load(folder / "evaluate.zip")
    np.testing.assert_allclose(exported(IMAGE), expected["logits"], rtol=1e-5)
    exported.load_state_dict(saved(folder / "train.npz"))
    np.testing.assert_allclose(exported(IMAGE), expected["logits"], rtol=1e-5)


def test_names_that_the_library_uses_too(folder, expected):
    graph = Scaler(scaled=False)
    graph.load_state_dict(saved(folder / "scaler.npz"))
    losses = [float(graph(IMAGE)) for _ in range(2)]
    np.testing.assert_allclose(losses, expected["scaler"], rtol=1e-5)


def test_what_a_state_of_0_1_0_could_not_hold_stays_as_it_is():
    folder = HERE / "0.1.0"
    graph = Scaler(scaled=True)
    scale = np.asarray(graph.scaler.scale.get_value())
    with pytest.warns(UserWarning, match=r"no self\.scaler\.scale, ema\.self\.taken"):
        graph.load_state_dict(saved(folder / "scaler_scaled.npz"))
    np.testing.assert_array_equal(graph.scaler.scale.get_value(), scale)
    others, state = saved(folder / "scaler.npz"), graph.state_dict()
    for key, old in (("self.scaler.bias", "scaler.bias"), ("taken", "taken")):
        np.testing.assert_array_equal(state[key], others[old])
    assert (graph.loss_scale, graph.step) == (8.0, 2)
