"""The arrays of Variables as flat lists, read and written at slot speed.

The Variables stay the owners of their arrays: a value written by hand between two steps
is read by the next one.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

Variables = Sequence[nnx.Variable]


def accessors(
    kind: type[nnx.Variable],
) -> tuple[Callable[..., jax.Array], Callable[..., None]]:
    """What reads and what writes the array of a Variable.

    A Variable keeps its array in a slot, whose descriptor does in 50 ns what the public
    methods, which also run hooks, do in 300.

    Args:
        kind: The class that has the slot; with another one it is the public methods.

    Example:
        >>> get, put = accessors(nnx.Variable)
        >>> variable = nnx.Variable(1)
        >>> put(variable, 2)
        >>> get(variable)
        2
    """
    slot = vars(kind).get("_raw_value")
    return (
        getattr(slot, "__get__", kind.get_raw_value),
        getattr(slot, "__set__", kind.set_raw_value),
    )


_get, _set = accessors(nnx.Variable)


def read(variables: Variables) -> list[jax.Array]:
    """The arrays of `variables`.

    Example:
        >>> read([nnx.Param(jnp.zeros(2))])[0].tolist()
        [0.0, 0.0]
    """
    return list(map(_get, variables))


def write(variables: Variables, arrays: Iterable[jax.Array]) -> None:
    """Store `arrays` in `variables`, one each.

    Example:
        >>> variable = nnx.Param(jnp.zeros(2))
        >>> write([variable], [jnp.ones(2)])
        >>> variable.get_value().tolist()
        [1.0, 1.0]
    """
    deque(map(_set, variables, arrays), 0)


def as_arrays(variables: Variables) -> list[jax.Array]:
    """The arrays of `variables`, and what Python numbers in them will be as arrays.

    Example:
        >>> as_arrays([nnx.Param(1.0)])
        [Array(1., dtype=float32)]
    """
    return [  # with a dtype: otherwise it would be weakly typed and compile once more
        jnp.asarray(x, type(x)) if isinstance(x, int | float) else x
        for x in read(variables)
    ]


def _references() -> int:
    """What `sys.getrefcount` says of an array that a Variable and one list hold."""
    variable = nnx.Param(np.zeros(()))  # of NumPy, so as not to start JAX
    return next(map(sys.getrefcount, read([variable])))


_UNSHARED = _references()


def unshared(arrays: list[jax.Array]) -> list[jax.Array]:
    """`arrays` with a copy for each that anybody else holds too, so it may be donated.

    A step donates its buffers. Without this, an array kept from before the step
    (`before = model.head.kernel.get_value()`) would be deleted under its owner. Only a
    second `jax.Array` over the same buffer, such as `jax.device_put` to the device
    where an array is, can't be seen.
    """
    if sum(map(sys.getrefcount, arrays)) > _UNSHARED * len(arrays):
        counts = list(map(sys.getrefcount, arrays))
        return [
            jnp.copy(array) if count > _UNSHARED else array
            for array, count in zip(arrays, counts, strict=True)
        ]
    return arrays
