"""Parameters that no loss depends on: found, named, and left alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from graphlr.optim import SGD, AdamW
from graphlr.step.unused import Use
from tests.models import Train, X, linear, values


class TwoHeads(nnx.Module):
    """A layer, and another one that no call comes to."""

    def __init__(self):
        self.used, self.idle = linear(), linear(seed=1)

    def __call__(self, x):
        return self.used(x)


def test_a_backward_pass_shows_what_is_used():
    use, ones = Use(["a", "b", "c"]), jnp.ones(2)
    assert use.unused == {"a", "b", "c"}

    def loss(trained):
        a, b, c = use.noting(trained)
        return (a**2).sum() + b.shape[0] + jax.lax.stop_gradient(c).sum()

    grads = jax.grad(loss)([ones, ones, ones])
    assert use.unused == {"b", "c"}
    np.testing.assert_array_equal(grads, [2 * ones, 0 * ones, 0 * ones])
    with pytest.warns(UserWarning, match="no loss depends on b, c: they get no grad"):
        use.check()


def test_a_parameter_without_gradient_is_named_and_left_alone():
    model = TwoHeads()
    graph = Train(model, AdamW("**", lr=0.1, weight_decay=0.5))
    before = values(model)
    with pytest.warns(UserWarning, match=r"no loss depends on model\.idle\.bias"):
        graph(X)
    for key, value in graph.state_dict().items():
        if key.startswith("slots."):
            moved = bool(np.any(value))
            assert moved == (".idle." not in key), key
    graph(X)
    after = values(model)
    assert np.array_equal(before["idle.kernel"], after["idle.kernel"])  # no decay
    assert not np.array_equal(before["used.kernel"], after["used.kernel"])
    state = graph.state_dict()
    assert int(state["slots.model.idle.kernel.steps"]) == 0
    assert int(state["slots.model.used.kernel.steps"]) == 2


def test_loss_that_depends_on_nothing_trained():
    class Nothing(Train):
        def loss(self, x):
            return (x**2).sum()

    with pytest.raises(ValueError, match="depends on no trained parameter"):
        Nothing(linear(), SGD("**"))(X)
