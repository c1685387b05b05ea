"""A barrier on CPU, nothing elsewhere; the same numbers everywhere."""

import jax
import jax.numpy as jnp
import pytest

from graphlr.ordered import ordered_on_cpu


@pytest.mark.parametrize(
    ("platform", "barriers"), [("cpu", 1), ("cuda", 0), ("tpu", 0)]
)
def test_only_on_cpu(platform, barriers):
    exported = jax.export.export(jax.jit(ordered_on_cpu), platforms=[platform])
    text = exported(jax.ShapeDtypeStruct((2,), jnp.float32)).mlir_module()
    assert text.count("stablehlo.optimization_barrier") == barriers


def test_differentiates_and_batches():
    def f(x):
        squared, cubed = ordered_on_cpu(x**2, {"cubed": x**3})
        return squared + cubed["cubed"]

    for transform in (jax.jit, lambda f: f):
        slopes = jax.vmap(transform(jax.grad(jax.grad(f))))(jnp.array([1.0, 2.0]))
        assert slopes.tolist() == [8.0, 14.0]
        assert jax.jacfwd(transform(f))(2.0).item() == 16.0
