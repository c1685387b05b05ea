"""Ctrl-C waits for a step's results; lost buffers and unknown modules are told."""

import signal
import threading

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import graphlr as glr
from graphlr.engine.guards import check_not_lost, hold_interrupts


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


def test_a_module_that_no_attribute_holds_is_noticed():
    teacher = nnx.Linear(2, 1, rngs=nnx.Rngs(0))

    class Evaluate(glr.Graph):
        def __init__(self):
            super().__init__()
            self.model = nnx.Linear(2, 1, rngs=nnx.Rngs(1))

        def build(self, x):
            return self.model(x) - teacher(x)

    with pytest.warns(UserWarning, match=r"2 Variables of modules .* self.teacher = "):
        Evaluate()(np.ones((1, 2), np.float32))
