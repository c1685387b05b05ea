"""Compiled steps: found by what they were made for, and why there is a new one."""

import jax.numpy as jnp
import numpy as np
import pytest

import graphlr as glr
from graphlr.engine.program import Program
from graphlr.engine.programs import Asked, Programs
from graphlr.optim import SGD
from graphlr.step.definition import Definition
from graphlr.step.signature import read_arguments
from tests.models import Evaluate, Regress, Train, X, Y, linear

PROGRAM = Program(None, {}, 1.0, 2.0, cached=None)


def build(x, mode=None):
    """Only its parameters' names matter."""


def asked(*args, steps=0):
    """What is asked for by a call of a graph that is named Given."""
    definition = Definition("Given", {}, build, lambda attributes, losses: build)
    return Asked(definition, *read_arguments(build, args, {}), steps)


def test_a_program_is_found_by_signature_and_number_of_steps():
    programs, told = Programs(), []
    assert (programs.last, programs.find(asked(X))) == (None, None)
    programs.on_compile = lambda what, program: told.append((what, program))
    what = asked(X)
    assert programs.make(what, lambda: PROGRAM) is PROGRAM
    assert programs.find(asked(X + 1)) is PROGRAM
    assert programs.find(asked(X[:5])) is programs.find(asked(X, steps=2)) is None
    assert programs.last == (what.signature, PROGRAM)
    assert list(programs.items()) == [((what.signature, 0), PROGRAM)]
    assert told == [(what, PROGRAM)]
    assert programs.compiles.seconds == 3.0


def test_each_has_its_reason():
    programs = Programs()
    for what in (asked(X), asked(X[:5]), asked(X[:5], steps=4), asked(X[:5], "fast")):
        programs.make(what, lambda: PROGRAM)
    programs.clear("the structure of a group changed")
    assert programs.last is None
    programs.make(asked(X), lambda: PROGRAM)
    assert programs.compiles.why == [
        "first call",
        "x float32[5,2] (was float32[16,2])",
        "4 steps in one run",
        "one step in a run",
        "the structure of a group changed",
    ]


def test_what_fails_is_not_kept_and_says_with_what():
    def fails():
        raise TypeError("dot_general")

    programs, what = Programs(), asked(X, "fast")
    with pytest.raises(TypeError, match="dot_general") as caught:
        programs.make(what, fails)
    assert caught.value.__notes__ == [
        "while tracing Given.build with x: float32[16,2], mode: the str 'fast'"
    ]
    assert programs.find(what) is None
    assert programs.compiles.count == 0


# --- of a graph -----------------------------------------------------------------------


def test_constants_are_part_of_the_signature():
    class Power(glr.Graph):
        def build(self, x, kind, negative=False):
            y = x**2 if kind == "square" else x**3
            return -y if negative else y

    graph = Power()
    assert float(graph(2.0, "square")) == 4
    assert float(graph(3.0, "cube")) == 27
    assert float(graph(3.0, "cube", negative=True)) == -27
    assert float(graph(5.0, "square")) == 25
    assert graph.compiles.count == 3


def test_a_new_shape_compiles_once_more_and_says_why():
    class Named(Regress):
        def build(self, image, label):
            return super().build(image, label)

    graph = Named(linear(), SGD("**", lr=0.1))
    for _ in range(2):
        graph(X, Y)
        graph(X[:5], Y[:5])
    assert graph.compiles.count == 2
    assert graph.step == 4
    assert "image float32[5,2] (was float32[16,2])" in graph.compiles.why[1]
    assert graph.compiles.seconds > 0


def test_a_python_number_and_an_array_are_told_apart():
    class Scale(Evaluate):
        def build(self, x, a):
            return self.model(x) * a

    graph = Scale(linear())
    graph(X, 0.5), graph(X, np.float32(0.5)), graph(X, 0.25)
    assert graph.compiles.why == [
        "first call",
        "a Python number in place of an array, or the reverse",
    ]
    with pytest.raises(TypeError, match="positional argument") as caught:
        graph(X, 0.5, 1.0)
    assert "args[2]: float32[]" in caught.value.__notes__[-1]


def test_backward_of_the_loss_itself():
    class Torch(Train):
        def build(self, x, y):
            (self.model(x) - y).sum().backward()

    with pytest.raises(AttributeError) as caught:
        Torch(linear(), SGD("**"))(X, jnp.asarray(Y))
    assert "in build() it is self.backward(loss)" in caught.value.__notes__
