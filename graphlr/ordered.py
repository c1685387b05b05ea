"""Order that XLA for CPU must keep, and that other platforms need not."""

from typing import Any

import jax


def ordered_on_cpu(*arrays: Any) -> Any:
    """`arrays`, computed before anything that follows; as they are on GPU and TPU.

    XLA for CPU otherwise computes again what is cheap to compute, and so keeps what it
    is computed from, and it can't see that nothing reads an array any more.

    Args:
        arrays: Arrays or trees of them, of any shape and dtype.

    Returns:
        The same, a tuple if there are several.

    Example:
        >>> import jax.numpy as jnp
        >>> ordered_on_cpu(jnp.ones(2), [jnp.zeros(1)])
        (Array([1., 1.], dtype=float32), [Array([0.], dtype=float32)])
    """
    both = jax.lax.platform_dependent(
        *arrays,
        cpu=lambda *these: jax.lax.optimization_barrier(these),
        default=lambda *these: these,
    )
    return both if len(arrays) > 1 else both[0]
