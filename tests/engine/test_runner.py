"""Ahead of time, programs shared and counted, what a step costs."""

import logging
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from graphlr.optim import SGD
from tests.models import Train, assert_close, assert_same, linear, state_of


class Scaled(Train):
    """A loss with a factor."""

    def build(self, x, scale=1.0):
        loss = self.loss(x) * scale
        self.backward(loss)
        return loss


def made(kind=Scaled, **config):
    return kind(linear(4, 3), SGD("**", lr=0.1), **config)


def batch(size):
    return np.ones((size, 4), np.float32)


def test_compiled_ahead_for_several_shapes():
    graph = made()
    for size in (8, 5):
        compiles = graph.compile(jax.ShapeDtypeStruct((size, 4), jnp.float32))
    assert compiles.count == 2
    assert compiles.why[1] == "x float32[5,4] (was float32[8,4])"
    assert (graph.step, graph.lr) == (0, {"group0": 0.1})
    for size in (8, 5, 8):
        graph(batch(size))
    assert (graph.step, graph.compiles.count) == (3, 2)


def test_arrays_and_shapes_ask_for_the_same_program():
    graph = made()
    graph.compile(batch(8))
    graph.compile(jax.ShapeDtypeStruct((8, 4), np.float32))
    assert graph.compiles.count == 1


def test_cost():
    graph = made()
    small, large = graph.cost(batch(8)), graph.cost(batch(512))
    assert large["flops"] > 20 * small["flops"]
    assert small["argument_memory"] >= 4 * (8 * 4 + 4 * 3 + 3)
    assert small["peak_memory"] >= small["temporary_memory"]
    assert graph.cost() == large  # the last one compiled
    assert (graph.compiles.count, graph.step) == (2, 0)


def test_lowered_text():
    text = made().lower(batch(8)).as_text()
    assert "stablehlo.dot_general" in text
    assert "8x4xf32" in text


def test_compilations_are_logged(caplog):
    graph = made()
    with caplog.at_level(logging.INFO, "graphlr"):
        graph(batch(8)), graph(batch(3)), graph(batch(8))
    assert [r.message.split(" s: ")[1] for r in caplog.records] == [
        "first call",
        "x float32[3,4] (was float32[8,4])",
    ]


def test_batches_that_do_not_divide():
    graph = made(gradient_accumulation_steps=4)
    with pytest.raises(ValueError, match=r"x has 6 entries.*4 parts: .* of 4 or 8"):
        graph(batch(6))
    with pytest.raises(ValueError, match=r"different sizes, {'x': 8, 'scale': 4}"):
        graph(batch(8), np.ones(4, np.float32))
    with pytest.raises(ValueError, match="x has 6 entries"):
        graph.eager(batch(6))
    loss = graph(batch(8), 2.0)  # a number is the same for all parts
    assert loss.shape == (4,)
    assert graph.compiles.count == 1


def test_eager_equals_compiled_with_every_option():
    options = {
        "gradient_accumulation_steps": 2,
        "clip_grad_norm": 0.5,
        "skip_nonfinite": True,
        "ema_decay": 0.9,
        "group_stats": True,
    }
    a, b = made(**options), made(**options)
    for _ in range(3):
        np.testing.assert_allclose(a(batch(8)), b.eager(batch(8)), rtol=1e-6)
    assert_close(state_of(b), state_of(a), rtol=1e-6)
    assert a.group_stats["group0"] == pytest.approx(b.group_stats["group0"])
    assert b.compiles.count == 0


def test_an_error_in_build_shows_the_users_line():
    class Wrong(Train):
        def build(self, x):
            return self.model(x) @ jnp.ones((5, 5))  # the user's line

    for call in (made(Wrong), made(Wrong).eager):
        with pytest.raises(TypeError, match="dot_general") as caught:
            call(batch(8))
        lines = [str(entry.statement) for entry in caught.traceback]
        assert any("the user's line" in line for line in lines)
    with pytest.raises(TypeError) as caught:
        made(Wrong)(batch(8))
    assert (
        "while tracing Wrong.build with x: float32[8,4]" in caught.value.__notes__[-1]
    )


def test_an_eager_step_can_be_interrupted():
    class Slow(Train):
        def build(self, x):
            loss = self.loss(x)
            self.backward(loss)
            signal.raise_signal(signal.SIGINT)
            pytest.fail("the interrupt waits for the end of the step")

    graph = made(Slow)
    before = state_of(graph)
    old = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            graph.eager(batch(2))
    finally:
        signal.signal(signal.SIGINT, old)
    assert_same(before, state_of(graph))


def test_statistics_are_of_the_groups_that_there_were():
    optimizer = SGD([{"params": "kernel", "name": "kernel"}], lr=0.1)
    graph = Train(linear(4, 3, use_bias=False), optimizer, group_stats=True)
    with pytest.raises(RuntimeError, match="group_stats = True and a call"):
        print(graph.group_stats)
    graph(batch(2))
    before = graph.group_stats
    optimizer.add_param_group({"params": [], "name": "none yet"})
    assert graph.group_stats == before
    assert before.keys() == {"kernel"}
