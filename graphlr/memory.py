"""What a training step remembers beside parameters and slots, by name.

`ema.<path>` and `ema.taken`, `scaler.scale` and `scaler.good`, `skipped.total` and
`skipped.in_a_row`: those of options that are off are left out, so they cost nothing.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from graphlr.average import averaged
from graphlr.config import Config
from graphlr.precision import Scaler

Memory = dict[str, jax.Array]


def start(
    config: Config, scaler: Scaler | None, params: Mapping[str, jax.Array]
) -> Memory:
    """The memory before the first step.

    Args:
        config: Which options are on.
        scaler: Scales the loss, or None.
        params: The trained parameters by path.

    Example:
        >>> config = Config()
        >>> config.ema_decay = 0.9
        >>> list(start(config, None, {"model.w": jnp.ones(2)}))
        ['ema.model.w', 'ema.taken']
    """
    memory: Memory = {}
    if config.ema_decay is not None:
        memory |= {f"ema.{path}": jnp.copy(param) for path, param in params.items()}
        memory["ema.taken"] = jnp.zeros((), jnp.int32)
    if scaler is not None:
        memory["scaler.scale"] = jnp.asarray(scaler.init_scale, jnp.float32)
        memory["scaler.good"] = jnp.zeros((), jnp.int32)
    if may_skip(config, scaler):
        memory["skipped.total"] = jnp.zeros((), jnp.int32)
        memory["skipped.in_a_row"] = jnp.zeros((), jnp.int32)
    return memory


def may_skip(config: Config, scaler: Scaler | None) -> bool:
    """Whether a step looks for NaN and infinity, and may change nothing."""
    return bool(config.skip_nonfinite) or scaler is not None


def advanced(memory: Memory, params: Mapping[str, jax.Array], config: Config) -> Memory:
    """With the averages after an update that gave `params`."""
    if config.ema_decay is None:
        return memory
    keys = [f"ema.{path}" for path in params]
    taken = memory["ema.taken"]
    old, new = [memory[key] for key in keys], list(params.values())
    now = averaged(old, new, config.ema_decay, taken)
    return {**memory, **dict(zip(keys, now, strict=True)), "ema.taken": taken + 1}


def counted(memory: Memory, ok: jax.Array, scaler: Scaler | None) -> Memory:
    """With the loss scale and the counts after a step that was `ok` or skipped."""
    total, in_a_row = memory["skipped.total"], memory["skipped.in_a_row"]
    new = {
        **memory,
        "skipped.total": jnp.where(ok, total, total + 1),
        "skipped.in_a_row": jnp.where(ok, 0, in_a_row + 1),
    }
    if scaler is not None:
        scale, good = memory["scaler.scale"], memory["scaler.good"]
        new["scaler.scale"], new["scaler.good"] = scaler.update(scale, good, ok)
    return new


def moved(memory: Memory, fresh: Memory) -> Memory:
    """`fresh` with what `memory` has of it already: parameters may come and go."""
    return {key: memory.get(key, array) for key, array in fresh.items()}
