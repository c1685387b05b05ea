"""What a graph is exported for: any batch size, or the reason why not."""

import logging

import jax
import numpy as np
import pytest

import graphlr as glr
from graphlr.export.batch_sizes import ExportError
from graphlr.export.loading import load
from tests.models import IMAGE, Computes, Train, linear

X = IMAGE[:8]


def in_parts(parts):
    optimizer = glr.optim.SGD("**", lr=0.1)
    return Train(linear(4, 1), optimizer, gradient_accumulation_steps=parts)


def test_accumulation_takes_multiples_of_its_parts(tmp_path):
    graph = in_parts(2)
    graph.export(tmp_path / "step.zip", X)
    exported = load(tmp_path / "step.zip")
    assert exported.manifest["arguments"] == {"batch[0]": "float32[2*b,4]"}
    for size in (8, 6):
        np.testing.assert_array_equal(exported(X[:size]), graph(X[:size]))
    with pytest.raises(ValueError, match="2"):
        exported(X[:5])
    message = r"argument batch\[0\] has 8 entries, which don't divide"
    with pytest.raises(ValueError, match=message):
        in_parts(3).export(tmp_path / "odd.zip", X)


def counted(x):
    return x * np.arange(x.shape[0])[:, None]  # NumPy needs to know the size


def test_fixed_sizes_where_a_symbol_does_not_work(tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    graph, path = Computes(counted), tmp_path / "x.zip"
    graph.export(path, X)
    (message,) = caplog.messages
    assert message.startswith(
        "Computes is exported for float32[8,4] alone, not for any batch"
    )
    exported = load(path)
    np.testing.assert_array_equal(exported(X), graph(X))
    with pytest.raises(
        ValueError,
        match=r"args\[0\] is float32\[5,4\], and .* takes float32\[8,4\]: give one",
    ):
        exported(X[:5])
    with pytest.raises(jax.errors.TracerBoolConversionError) as caught:
        graph.export(path, X, symbolic=True)
    note = "while exporting Computes.build with a symbolic batch size"
    assert caught.value.__notes__[-1] == note
    graph.export(path, X, symbolic=False)
    assert len(caplog.messages) == 1


def test_leading_axes_that_differ(tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    graph, path = Computes(lambda x, w: x * w), tmp_path / "x.zip"
    graph.export(path, X, X[0])
    assert "leading axes of the arrays differ, 4, 8" in caplog.messages[0]
    with pytest.raises(
        ExportError, match=r"differ, 4, 8. Put the symbol where it belo"
    ):
        graph.export(path, X, X[0], symbolic=True)
    (b,) = jax.export.symbolic_shape("b")
    graph.export(path, jax.ShapeDtypeStruct((b, 4), "float32"), X[0])
    exported = load(path)
    for size in (8, 2):
        np.testing.assert_array_equal(exported(X[:size], X[0]), X[:size] * X[0])
    assert len(caplog.messages) == 1


def test_errors_of_the_model_are_its_own(tmp_path):
    def broken(x):
        raise KeyError("no such layer")

    with pytest.raises(KeyError, match="no such layer") as caught:
        Computes(broken).export(tmp_path / "x.zip", X)
    note = "while exporting Computes.build with float32[8,4]"
    assert caught.value.__notes__[-1] == note
    with pytest.raises(TypeError, match="missing 1 required positional argument"):
        in_parts(1).export(tmp_path / "x.zip")
    assert [*tmp_path.iterdir()] == []


def test_the_last_signature_is_what_is_exported(tmp_path):
    graph, path = Computes(lambda *args: args[-1]), tmp_path / "x.zip"
    graph(X, X[:5, :2]), graph(X)
    graph.export(path)
    assert load(path).manifest["arguments"] == {"args[0]": "float32[b,4]"}
    graph.export(path, 3.0)
    assert load(path).manifest["arguments"] == {"args[0]": "float32[]"}
