"""Ahead of time, programs shared and counted, what a step costs."""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import graphlr as glr


class Train(glr.Graph):
    def __init__(self):
        super().__init__()
        self.model = nnx.Linear(4, 3, rngs=nnx.Rngs(0))
        self.add_optimizer(glr.optim.SGD(self.model, lr=0.1))

    def build(self, x, scale=1.0):
        loss = (self.model(x) ** 2).mean() * scale
        self.backward(loss)
        return loss


def batch(size):
    return np.ones((size, 4), np.float32)


def test_compiled_ahead_for_several_shapes():
    graph = Train()
    for size in (8, 5):
        compiles = graph.compile(jax.ShapeDtypeStruct((size, 4), jnp.float32))
    assert compiles.count == 2
    assert compiles.why[1] == "x float32[5,4] (was float32[8,4])"
    assert (graph.step, graph.lr) == (0, {"group0": 0.1})
    for size in (8, 5, 8):
        graph(batch(size))
    assert (graph.step, graph.compiles.count) == (3, 2)


def test_arrays_and_shapes_ask_for_the_same_program():
    graph = Train()
    graph.compile(batch(8))
    graph.compile(jax.ShapeDtypeStruct((8, 4), np.float32))
    assert graph.compiles.count == 1


def test_cost():
    graph = Train()
    small, large = graph.cost(batch(8)), graph.cost(batch(512))
    assert large["flops"] > 20 * small["flops"]
    assert small["argument_memory"] >= 4 * (8 * 4 + 4 * 3 + 3)
    assert small["peak_memory"] >= small["temporary_memory"]
    assert graph.cost() == large  # the last one compiled
    assert (graph.compiles.count, graph.step) == (2, 0)


def test_lowered_text():
    text = Train().lower(batch(8)).as_text()
    assert "stablehlo.dot_general" in text
    assert "8x4xf32" in text


def test_compilations_are_logged(caplog):
    graph = Train()
    with caplog.at_level(logging.INFO, "graphlr"):
        graph(batch(8)), graph(batch(3)), graph(batch(8))
    assert [r.message.split(" s: ")[1] for r in caplog.records] == [
        "first call",
        "x float32[3,4] (was float32[8,4])",
    ]


def test_batches_that_do_not_divide():
    graph = Train()
    graph.config.gradient_accumulation_steps = 4
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
    def run(call):
        graph = Train()
        graph.config.gradient_accumulation_steps = 2
        graph.config.clip_grad_norm = 0.5
        graph.config.skip_nonfinite = True
        graph.config.ema_decay = 0.9
        graph.config.group_stats = True
        losses = [call(graph)(batch(8)) for _ in range(3)]
        return losses, graph

    compiled, a = run(lambda graph: graph)
    eager, b = run(lambda graph: graph.eager)
    np.testing.assert_allclose(compiled, eager, rtol=1e-6)
    for key, value in a.state_dict().items():
        np.testing.assert_allclose(b.state_dict()[key], value, rtol=1e-6, err_msg=key)
    assert a.group_stats["group0"] == pytest.approx(b.group_stats["group0"])
    assert b.compiles.count == 0


def test_an_error_in_build_shows_the_users_line():
    class Wrong(Train):
        def build(self, x):
            return self.model(x) @ jnp.ones((5, 5))  # the user's line

    for call in (Wrong(), Wrong().eager):
        with pytest.raises(TypeError, match="dot_general") as caught:
            call(batch(8))
        lines = [str(entry.statement) for entry in caught.traceback]
        assert any("the user's line" in line for line in lines)
    with pytest.raises(TypeError) as caught:
        Wrong()(batch(8))
    assert (
        "while tracing Wrong.build with x: float32[8,4]" in caught.value.__notes__[-1]
    )
