"""Ctrl-C waits for a step's results; what is lost or no input of a step is told."""

import signal
import subprocess
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import graphlr as glr
from graphlr.engine.guards import check_not_lost, hold_interrupts
from graphlr.optim import SGD
from tests.models import Evaluate, Train, X, linear


def test_lost_buffers_are_told():
    array = jnp.ones(2)
    check_not_lost([array], OSError("harmless"))
    array.delete()
    cause = OSError("unplugged")
    with pytest.raises(RuntimeError, match=r"load_state_dict.*config\.donate") as error:
        check_not_lost([array], cause)
    assert error.value.__cause__ is cause


def interrupt():
    signal.raise_signal(signal.SIGINT)


@pytest.fixture
def handler():
    """A handler of the user's own, and what it was called with."""
    calls = []
    old = signal.signal(signal.SIGINT, lambda *args: calls.append(args))
    yield calls
    signal.signal(signal.SIGINT, old)


@pytest.fixture(autouse=True)
def pythons_own_handler():
    """A shell starts what runs in the background with Ctrl-C ignored."""
    old = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, old)


def interrupted(error=None, then=lambda: None):
    """A block in which Ctrl-C comes and something else happens after it."""
    with hold_interrupts():
        interrupt()
        then()
        if error:
            raise error


def test_an_interrupt_waits_for_the_end_of_the_block():
    reached = []
    with pytest.raises(KeyboardInterrupt):
        interrupted(then=lambda: reached.append(True))
    assert reached
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_the_users_handler_is_called_once_and_restored(handler):
    mine = signal.getsignal(signal.SIGINT)
    with hold_interrupts():
        interrupt()
        interrupt()
        assert handler == []
    assert [number for number, _ in handler] == [signal.SIGINT]
    assert signal.getsignal(signal.SIGINT) is mine


def test_the_handler_is_restored_when_the_body_raises(handler):
    mine = signal.getsignal(signal.SIGINT)
    with pytest.raises(OSError, match="body"):
        interrupted(OSError("body"))
    assert signal.getsignal(signal.SIGINT) is mine
    assert len(handler) == 1


def test_an_ignored_interrupt_stays_ignored():
    old = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with hold_interrupts():
            interrupt()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, old)


def test_other_threads_leave_signals_alone():
    seen = []

    def body():
        with hold_interrupts():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert seen == [signal.default_int_handler]


# --- what build reads that is no input -----------------------------------------------


def test_a_module_that_no_attribute_holds_is_noticed():
    teacher = linear()

    class Compare(Evaluate):
        def build(self, x):
            return self.model(x) - teacher(x)

    with pytest.warns(UserWarning, match=r"2 Variables of modules .* self.teacher = "):
        Compare(linear(seed=1))(X)


def test_a_model_reached_by_another_name_is_an_error():
    model = linear()

    class Closure(Train):
        def loss(self, x):
            return ((self.model(x) + model(x)) ** 2).mean()

    with pytest.raises(ValueError, match=r"uses model\.bias, model\.kernel as a const"):
        Closure(model, SGD("**"))(X)


@pytest.mark.parametrize("run", [glr.Graph.__call__, glr.Graph.compile])
@pytest.mark.parametrize("frozen", [True, False], ids=["frozen", "eval"])
def test_a_model_by_another_name_is_an_error_where_it_is_not_trained_too(frozen, run):
    model = nnx.Sequential(linear(), nnx.BatchNorm(1, rngs=nnx.Rngs(0)))

    class Global(Train):
        def build(self, x):
            loss = self.head(model.layers[0](x)).mean()
            if frozen:
                self.backward(loss)
            return loss

    groups = [{"params": "model.**", "frozen": True}, {"params": "head.*"}]
    graph = Global(model, *([SGD(groups)] if frozen else []))
    graph.head = linear(1, 1)
    with pytest.raises(
        ValueError, match=r"uses model\.layers\.0\.bias, model\.layers\.0\.kernel as a "
    ):
        run(graph, X)


class Near(Train):
    """Trains a layer not to go far from `at`."""

    def __init__(self, at, model, *optimizers):
        super().__init__(model, *optimizers)
        self.at = at

    def build(self, x):
        far = ((self.model.kernel - self.at) ** 2).sum()
        self.backward(self.model(x).sum() + far)
        return far


def test_an_array_changed_in_place_stays_what_it_was_at_the_first_call():
    table = np.ones((2, 1), np.float32)

    class Table(Near):
        def build(self, x):
            return super().build(x), self.at + 0, table + 0

    graph = Table(table.copy(), linear(), SGD("**", lr=0.0))
    first = jax.device_get(graph(X))
    table[:], graph.at[:] = 5.0, 7.0
    for before, after in zip(first, graph(X), strict=True):
        np.testing.assert_array_equal(after, before)
    assert first[1][0] == first[2][0] == 1
    assert graph.compiles.count == 1


def test_where_a_model_started_may_be_captured():
    """The weights move on, and the array that they were stays a constant."""
    model = linear()
    graph = Near(model.kernel.get_value(), model, SGD("**", lr=0.05))
    start = np.array(graph.at)
    far = [float(graph(X)) for _ in range(3)]
    assert far[0] == 0
    assert far[1] == pytest.approx(((0.05 * X.sum(0)) ** 2).sum(), rel=1e-4)
    assert far[2] > far[1]
    np.testing.assert_array_equal(graph.at, start)
    assert graph.compiles.count == 1


def test_a_handler_from_outside_python_stays(capfd):
    """Python says None of the handler of a program that it is embedded in."""
    code = """
import signal, sys, types
sys.modules["_signal"] = types.SimpleNamespace(getsignal=lambda number: None)
from graphlr.engine.guards import hold_interrupts
with hold_interrupts():
    print("inside")
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    assert capfd.readouterr().out == "inside\n"
