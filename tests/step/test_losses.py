"""The losses that `build` gives to `backward`: they add up, and faults are named."""

import jax
import jax.numpy as jnp
import pytest

from graphlr.optim import SGD
from graphlr.step.losses import Losses
from tests.models import Train, X, Y, assert_close, linear, values


def trained(build, *optimizers):
    """Call a graph that has this `build`."""
    return type("Given", (Train,), {"build": build})(linear(), *optimizers)(X, Y)


def test_losses_add_up():
    class Twice(Train):
        def build(self, x):
            self.backward(super().build(x) * 2)

    once, thrice = (
        Train(linear(), SGD("**", lr=0.3)),
        Twice(linear(), SGD("**", lr=0.1)),
    )
    once(X), thrice(X)
    assert_close(values(once.model), values(thrice.model), rtol=1e-5)


def test_their_sum_is_what_is_differentiated():
    losses = Losses(training=True)
    losses.add(1.5)
    losses.add(jnp.float32(2.0))
    assert float(losses.total()) == 3.5
    assert float(Losses(training=False).total()) == 0.0  # nothing is


def test_build_without_backward():
    with pytest.raises(RuntimeError, match=r"never called self\.backward"):
        trained(lambda self, x, y: self.model(x).sum(), SGD("**"))


def test_backward_without_optimizer():
    with pytest.raises(RuntimeError, match="graph without optimizer"):
        trained(lambda self, x, y: self.backward(self.model(x).sum()))


def test_loss_that_is_no_scalar():
    with pytest.raises(
        ValueError, match=r"shape \(16, 1\): self\.backward\(loss\.mean"
    ):
        trained(lambda self, x, y: self.backward(self.model(x)), SGD("**"))


def test_loss_that_is_no_float():
    with pytest.raises(TypeError, match="not a float"):
        trained(lambda self, x, y: self.backward(self.model(x).argmax()), SGD("**"))


def test_backward_inside_a_transformation_is_an_error_that_says_so():
    def build(self, x, y):
        def loss(x):
            self.backward((self.model(x) ** 2).mean())
            return x

        jax.checkpoint(loss)(x)
        self.backward((self.model(x) ** 2).mean())

    with pytest.raises((RuntimeError, ValueError, TypeError), match="backward"):
        trained(build, SGD("**"))
