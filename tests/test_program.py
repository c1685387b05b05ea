"""A compiled step: its books, its memory, and Ctrl-C."""

import signal
import threading

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import graphlr as glr
from graphlr.program import Compile, Compiles, Undisturbed, check_not_lost

X = np.ones((4, 2), np.float32)


class Train(glr.Graph):
    def __init__(self, donate=True):
        super().__init__()
        self.model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
        self.config.donate = donate
        self.add_optimizer(glr.optim.SGD("**", lr=0.1, momentum=0.9))

    def build(self, x):
        loss = (self.model(x) ** 2).mean()
        self.backward(loss)
        return loss


@pytest.mark.parametrize("donate", [True, False])
def test_donation_is_a_choice(donate):
    graph = Train(donate)
    graph(X)
    (alone,) = [graph.model.kernel.get_value()]
    pointer = alone.unsafe_buffer_pointer()
    del alone
    slot = graph._runner.optimizers[0].slots[0]
    graph(X)
    assert not slot.is_deleted()  # we hold it
    assert graph.compiles.count == 1
    reused = graph.model.kernel.get_value().unsafe_buffer_pointer() == pointer
    assert reused or not donate


def test_donation_changes_no_number():
    kept, donated = Train(False), Train(True)
    for _ in range(3):
        assert float(kept(X)) == float(donated(X))


@pytest.mark.parametrize(
    "view",
    [
        lambda array: array.addressable_shards[0].data,
        np.asarray,
    ],
)
def test_another_view_of_an_array_survives(view):
    """Each gives another object over the buffer that a step would like to reuse."""
    graph = Train()
    graph(X)
    kept = view(graph.model.kernel.get_value())
    expected = np.array(kept)
    graph(X), graph(X)
    np.testing.assert_array_equal(kept, expected)


def test_books_of_compilations():
    compiles = Compiles()
    assert repr(compiles) == "0 compiled in 0.0 s: nothing yet"
    compiles.records += [Compile("first call", 0.5, 1.0), Compile("x", 0.25, 0.25)]
    assert repr(compiles) == "2 compiled in 2.0 s: first call; x"
    assert (compiles.count, len(compiles), int(compiles)) == (2, 2, 2)
    assert (compiles.seconds, compiles.why) == (2.0, ["first call", "x"])


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
    with Undisturbed():
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
    with Undisturbed():
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
        with Undisturbed():
            interrupt()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, old)


def test_other_threads_leave_signals_alone():
    seen = []

    def body():
        with Undisturbed():
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
