"""The form of each platform, chosen at once or when lowered; the same numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from graphlr.layers import Conv
from graphlr.optim import Adam
from graphlr.platforms import by_platform, for_platform_of, ordered_on_cpu
from graphlr.state import archive
from tests.models import ConvNet, Evaluate, Train, built


def sine_on_cpu(x):
    return by_platform(x, cpu=jnp.sin, default=jnp.cos)


def lowered_for(platform, function):
    exported = jax.export.export(jax.jit(function), platforms=[platform])
    return exported(jax.ShapeDtypeStruct((2,), jnp.float32)).mlir_module()


def primitives(function, *args):
    return str(jax.make_jaxpr(function)(*args))


@pytest.mark.parametrize(
    ("platform", "form"), [("cpu", "sine"), ("cuda", "cosine"), ("tpu", "cosine")]
)
def test_chosen_when_lowered(platform, form):
    text = lowered_for(platform, sine_on_cpu)
    assert [f"stablehlo.{f} " in text for f in ("sine", "cosine")] == [
        form == "sine",
        form == "cosine",
    ]


def test_chosen_when_traced_for_the_arrays_platform():
    assert "cond" in primitives(sine_on_cpu, 1.0)
    with for_platform_of({"x": jnp.ones(2, device=jax.devices("cpu")[0])}):
        assert primitives(sine_on_cpu, 1.0).count("sin") == 1
        assert "cos" not in primitives(sine_on_cpu, 1.0)
    assert "cond" in primitives(sine_on_cpu, 1.0)


def test_arrays_of_the_host_settle_nothing():
    with for_platform_of([np.ones(2), 3]):
        assert "cond" in primitives(sine_on_cpu, 1.0)


def conv(size, **keys):
    keys |= {"padding": size // 2, "kernel_init": nnx.initializers.ones}
    return Conv(4, 4, (size, size), rngs=nnx.Rngs(0), **keys)


IMAGES = np.ones((2, 5, 5, 4), np.float32)


def test_a_choice_is_not_remembered():
    """Layers are traced once for each shape, but again for another platform."""
    layer, x = conv(3, feature_group_count=4), jnp.asarray(IMAGES)
    with for_platform_of(x):
        assert "conv_general_dilated" not in primitives(layer, x)
    assert "conv_general_dilated" in primitives(layer, x)


def test_a_graph_is_traced_for_its_platform(capsys):
    graph = Evaluate(conv(1))
    graph.debug(2)
    np.testing.assert_allclose(graph(IMAGES), graph.model(IMAGES), rtol=1e-6)
    printed = capsys.readouterr().out
    assert "dot_general" in printed
    assert "cond[" not in printed
    assert "conv_general_dilated" not in printed


def test_the_step_lowers_for_gpu_and_tpu(tmp_path):
    """As far as a CPU can tell: native depthwise convolutions there, none here."""
    graph = Train(built(ConvNet), Adam("**", lr=0.01))
    images = np.ones((2, 8, 8, 3), np.float32)
    texts = []
    for platforms in (["cuda", "tpu"], ["cpu"]):
        graph.export(tmp_path / "step.zip", images, platforms=platforms)
        _, parts = archive.read(tmp_path / "step.zip")
        exported = jax.export.deserialize(bytearray(parts["step.jax"]))
        assert list(exported.platforms) == platforms
        texts.append(exported.mlir_module())
    assert "stablehlo.convolution" in texts[0]
    assert "feature_group_count = 8" in texts[0]
    assert "feature_group_count = 8" not in texts[1]


@pytest.mark.parametrize(
    ("platform", "barriers"), [("cpu", 1), ("cuda", 0), ("tpu", 0)]
)
def test_ordered_only_on_cpu(platform, barriers):
    text = lowered_for(platform, ordered_on_cpu)
    assert text.count("stablehlo.optimization_barrier") == barriers


def test_differentiates_and_batches():
    def f(x):
        squared, cubed = ordered_on_cpu(x**2, {"cubed": x**3})
        return squared + cubed["cubed"]

    for transform in (jax.jit, lambda f: f):
        slopes = jax.vmap(transform(jax.grad(jax.grad(f))))(jnp.array([1.0, 2.0]))
        assert slopes.tolist() == [8.0, 14.0]
        assert jax.jacfwd(transform(f))(2.0).item() == 16.0
