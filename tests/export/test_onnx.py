"""Forward passes as ONNX, run by onnxruntime."""

import sys

import jax
import numpy as np
import pytest
from flax import nnx

import graphlr as glr
from graphlr.export.batch_sizes import ExportError
from tests.models import ConvNet, Evaluate, Train, built, linear

DRAW = np.random.default_rng(0)
IMAGE = DRAW.normal(size=(4, 32, 32, 3)).astype(np.float32)


class Eval(Evaluate):
    """A forward pass whose argument has a name."""

    def build(self, image):
        return self.model(image)


def trained(model):
    """The model with the statistics and sizes of one that has been trained."""
    for _, variable in nnx.to_flat_state(nnx.state(model, (nnx.Param, nnx.BatchStat))):
        array = np.asarray(variable.get_value())
        spread = 1 / np.sqrt(max(1, array[..., 0].size)) if array.ndim > 1 else 0.3
        draw = DRAW.normal(size=array.shape) * spread
        variable.set_value(np.float32(draw if array.ndim > 1 else 1 + np.abs(draw)))
    return model


def session(path):
    onnxruntime = pytest.importorskip("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options)


def check_same(graph, path, sizes):
    graph.export(path, IMAGE)
    run = session(path)
    assert [tensor.name for tensor in run.get_inputs()] == ["image"]
    assert [tensor.name for tensor in run.get_outputs()] == ["output"]
    for size in sizes:
        (found,) = run.run(None, {"image": IMAGE[:size]})
        expected = np.asarray(graph(IMAGE[:size]))
        assert expected.std() > 0.01
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_a_small_network(tmp_path):
    pytest.importorskip("jax2onnx", reason="pip install 'graphlr[onnx]'")
    evaluate = Eval(trained(built(ConvNet)))
    before = np.asarray(evaluate(IMAGE))
    check_same(evaluate, tmp_path / "model.onnx", (4, 3, 1))
    np.testing.assert_array_equal(evaluate(IMAGE), before)


JAX = tuple(map(int, jax.__version__.split(".")[:2]))


@pytest.mark.slow
@pytest.mark.skipif(JAX >= (0, 12), reason="jax2onnx 0.17 can't: inner jit, jax 0.12")
def test_mobilenet_v2(tmp_path):
    pytest.importorskip("jax2onnx")
    model = glr.models.mobilenet_v2(num_classes=10, rngs=nnx.Rngs(0))
    check_same(Eval(trained(model)), tmp_path / "model.onnx", (4, 3))


class Forms(glr.Graph):
    """A dict and a number."""

    def build(self, batch, offset):
        return {"sum": batch["x"] + offset, "index": batch["i"] * 2}


def test_names_and_types_of_inputs_and_outputs(tmp_path):
    pytest.importorskip("jax2onnx")
    batch = {"x": DRAW.normal(size=(3, 2)).astype("f4"), "i": np.arange(3, dtype="i4")}
    graph, path = Forms(), tmp_path / "forms.onnx"
    graph.export(path, batch, np.float32(2.0))
    run = session(path)
    given = {"batch_x": batch["x"], "batch_i": batch["i"], "offset": np.float32([2.0])}
    given["offset"] = given["offset"].reshape(())
    assert {tensor.name for tensor in run.get_inputs()} == {*given}
    index, total = run.run(["output_0", "output_1"], given)
    np.testing.assert_array_equal(index, [0, 2, 4])
    np.testing.assert_allclose(total, batch["x"] + 2.0)


def test_what_onnx_does_not_hold(tmp_path):
    path, train = tmp_path / "model.onnx", Train(linear(3), glr.optim.SGD("**"))
    with pytest.raises(
        ExportError, match=r"Train has an optimizer, and ONNX holds forw"
    ):
        train.export(path, IMAGE)
    pytest.importorskip("jax2onnx")

    class Draws(nnx.Module):
        def __init__(self):
            self.rngs = nnx.Rngs(0)

        def __call__(self, x):
            return x + jax.random.normal(self.rngs(), x.shape)

    with pytest.raises(
        ExportError, match=r"changes model\.rngs\.default\.count, and ON"
    ):
        Eval(Draws()).export(path, IMAGE)
    assert not path.exists()


def test_what_jax2onnx_can_not_do_is_told(tmp_path, monkeypatch):
    jax2onnx = pytest.importorskip("jax2onnx")

    def broken(*args, **kwargs):
        raise NotImplementedError("no plugin for eigh")

    monkeypatch.setattr(jax2onnx, "to_onnx", broken)
    path = tmp_path / "x.onnx"
    with pytest.raises(
        ExportError,
        match=r"jax2onnx \d.* with jax \d.* can't write Eval as ONNX \(NotImplemented"
        r"Error: no plugin for eigh\)",
    ):
        Eval(linear(3)).export(path, IMAGE)


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "jax2onnx", None)
    with pytest.raises(ImportError, match=r"pip install 'graphlr\[onnx\]'"):
        Eval(linear(3)).export(tmp_path / "x.onnx", IMAGE)
