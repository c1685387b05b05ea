"""Order that XLA for CPU must keep, and that other platforms need not."""

from typing import Any

import jax
from jax.core import Tracer


def ordered_on_cpu(*arrays: Any) -> tuple[Any, ...]:
    """`arrays`, computed before anything that follows; as they are on GPU and TPU.

    XLA for CPU otherwise computes again what is cheap to compute, and so keeps what it
    is computed from, and it can't see that nothing reads an array any more.

    Args:
        arrays: Arrays or trees of them, of any shape and dtype.

    Returns:
        The same; outside a trace, where there is nothing to order, untouched.

    Example:
        >>> import jax.numpy as jnp
        >>> ordered_on_cpu(jnp.ones(2), [jnp.zeros(1)])
        (Array([1., 1.], dtype=float32), [Array([0.], dtype=float32)])
    """
    if not any(isinstance(array, Tracer) for array in jax.tree.leaves(arrays)):
        return arrays
    return jax.lax.platform_dependent(
        *arrays,
        cpu=lambda *these: jax.lax.optimization_barrier(these),
        default=lambda *these: these,
    )
