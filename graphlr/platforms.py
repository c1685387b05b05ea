"""One result, in the form that each platform computes fastest."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import jax
from jax.core import Tracer

# Of all that is traced; None where it isn't known. A part of the keys of JAX's caches.
_platform = jax.make_user_context(None)


def for_platform_of(arrays: object) -> AbstractContextManager[None]:
    """Within it, what is traced is for the platform that `arrays` are on.

    `by_platform` then traces one form instead of both, which takes MobileNetV2's step a
    third less time. If the arrays are on several platforms, or on none as NumPy's are,
    nothing changes.

    Args:
        arrays: Arrays or a tree of them.

    Example:
        >>> import jax.numpy as jnp
        >>> def double(x):
        ...     return by_platform(x, cpu=lambda x: x + x, default=lambda x: 2 * x)
        >>> with for_platform_of(jnp.ones(2, device=jax.devices("cpu")[0])):
        ...     print(jax.make_jaxpr(double)(1.0))
        { lambda ; a:f32[]. let b:f32[] = add a a in (b,) }
    """
    shardings = {
        array.sharding
        for array in jax.tree.leaves(arrays)
        if isinstance(array, jax.Array) and not isinstance(array, Tracer)
    }
    platforms = {device.platform for each in shardings for device in each.device_set}
    return _platform(platforms.pop() if len(platforms) == 1 else None)


def by_platform(
    *arrays: Any, cpu: Callable[..., Any], default: Callable[..., Any]
) -> Any:
    """`cpu(*arrays)` on CPU and `default(*arrays)` elsewhere.

    Within `for_platform_of` the choice is made now, and otherwise when the program is
    lowered: one that is exported for another platform has its form too.

    Args:
        arrays: Arrays or trees of them, of any shape and dtype.
        cpu: What to call with them on CPU.
        default: The same elsewhere; its results have the same shapes and dtypes.

    Example:
        >>> int(by_platform(3, cpu=lambda x: x + x, default=lambda x: 2 * x))
        6
    """
    if _platform.value is None:
        return jax.lax.platform_dependent(*arrays, cpu=cpu, default=default)
    return (cpu if _platform.value == "cpu" else default)(*arrays)


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
    return by_platform(
        *arrays,
        cpu=lambda *these: jax.lax.optimization_barrier(these),
        default=lambda *these: these,
    )
