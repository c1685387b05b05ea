"""Moving averages of parameters: exponential, or equal weights (SWA)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

Decay = float | Callable[[Any], Any]


def averaged(
    average: Sequence[jax.Array],
    params: Sequence[jax.Array],
    decay: Decay,
    taken: jax.Array,
) -> list[jax.Array]:
    """`decay * average + (1 - decay) * params`, in the dtype of each average.

    Args:
        average: The averages so far.
        params: The parameters after this update.
        decay: A number, or a function of `taken`.
        taken: Averages taken so far, int32[]; the first one copies the parameters.

    Source: PyTorch `torch.optim.swa_utils.AveragedModel`, `get_ema_multi_avg_fn`.

    Example:
        >>> now = averaged([jnp.ones(1)], [jnp.zeros(1)], 0.75, jnp.int32(3))
        >>> now[0].tolist()
        [0.75]
    """
    keep = decay(taken) if callable(decay) else decay
    keep = jnp.where(taken == 0, 0.0, keep)
    return [
        (keep * old + (1 - keep) * new).astype(old.dtype)
        for old, new in zip(average, params, strict=True)
    ]


def swa(start: int = 0, every: int = 1) -> Callable[[Any], Any]:
    """The decay of a stochastic weight average: equal weights, `taken / (taken + 1)`.

    Args:
        start: Updates before the first average is taken.
        every: Updates between two averages: the steps of an epoch.

    Source: Izmailov et al. 2018; PyTorch `AveragedModel` without `avg_fn`.

    Example:
        >>> decay = swa(start=2, every=2)  # averages what updates 3, 5, 7, ... give
        >>> [round(float(decay(jnp.int32(n))), 2) for n in range(7)]
        [0.0, 0.0, 0.0, 1.0, 0.5, 1.0, 0.67]
    """
    for name, value, least in (("start", start, 0), ("every", every, 1)):
        if not isinstance(value, int) or value < least:
            raise ValueError(f"swa: {name} is {value!r}, not an int >= {least}")

    def decay(taken: Any) -> Any:
        since = taken - start
        before = jnp.maximum(since, 0) // every
        wanted = (since < 0) | (since % every == 0)
        return jnp.where(wanted, before / (before + 1), 1.0)

    return decay
