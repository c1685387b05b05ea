"""What a file of an exported step says of itself, and what it can't hold."""

import enum

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx

import graphlr as glr
from graphlr.export.batch_sizes import ExportError
from graphlr.export.manifest import from_file, to_file
from graphlr.step.carried import Averages, Carried, LossScale, Skips
from graphlr.step.types import OptimizerState, State
from tests.models import IMAGE, Computes, linear


class Mode(enum.Enum):
    DOUBLE = 2.0


def test_the_manifest_says_what_it_is(exported):
    manifest = exported.manifest
    assert manifest["name"] == "Classify"
    assert manifest["training"] is True
    assert manifest["platforms"] == ["cpu", "cuda", "tpu"]
    assert (manifest["graphlr"], manifest["jax"]) == (glr.__version__, jax.__version__)
    kernel = manifest["state"]["model.kernel"]
    assert kernel == {"dtype": "float32", "shape": [4, 3]}
    assert len(manifest["parts"]["step.jax"]["sha256"]) == 64


def test_results_that_no_file_holds_are_refused(tmp_path):
    path = tmp_path / "x.zip"
    with pytest.raises(ExportError, match=r"build\(\) returns the Mode <Mode.DOUBLE"):
        Computes(lambda x: (x, Mode.DOUBLE)).export(path, IMAGE)
    assert not path.exists()
    Computes(lambda x: (x, optax.EmptyState())).export(path, IMAGE)


def test_arguments_that_no_file_holds_are_refused(tmp_path):
    graph, state = Computes(lambda state, x: x), nnx.state(linear(4, 3))
    with pytest.raises(ExportError, match=r"build\(\) takes arrays in the State State"):
        graph.export(tmp_path / "x.zip", state, IMAGE)


def test_a_state_goes_into_a_file_and_back():
    one, two = jnp.float32(1), jnp.int32(2)
    carried = Carried(Averages({"kernel": one}, two), LossScale(one, two))
    for whole in (carried, carried._replace(skips=Skips(two, two)), Carried()):
        state = State([one], [OptimizerState([one, one], two)], whole)
        trained, slots, steps, entries = to_file(state)
        assert (trained, slots, steps) == ([one], [[one, one]], [two])
        assert all(isinstance(key, str) for key in entries)
        assert from_file(to_file(state)) == state
