"""What a training step carries along beside parameters and slots.

Moving averages, the loss scale, the count of skipped batches: each a record, and None
where its option is off, so that the compiled program has no array of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from graphlr.average import averaged
from graphlr.precision.scalers import Scaler
from graphlr.step.config import Config


class Averages(NamedTuple):
    """Moving averages of the trained parameters.

    Attributes:
        values: By path, each like its parameter.
        taken: How many averages there were, int32[].
    """

    values: dict[str, jax.Array]
    taken: jax.Array


class LossScale(NamedTuple):
    """What the next loss is multiplied by.

    Attributes:
        value: float32[].
        good_steps: Steps since it changed, int32[].
    """

    value: jax.Array
    good_steps: jax.Array


class Skips(NamedTuple):
    """How many batches changed nothing.

    Attributes:
        total: int32[].
        in_a_row: Since the last batch that did change something, int32[].
    """

    total: jax.Array
    in_a_row: jax.Array


class Carried(NamedTuple):
    """All of it; what is off is None."""

    averages: Averages | None = None
    loss_scale: LossScale | None = None
    skips: Skips | None = None


def start(
    config: Config, scaler: Scaler | None, params: Mapping[str, jax.Array]
) -> Carried:
    """What is carried into the first step.

    Args:
        config: Which options are on.
        scaler: Scales the loss, or None.
        params: The trained parameters by path.

    Example:
        >>> config = Config()
        >>> config.ema_decay = 0.9
        >>> carried = start(config, None, {"model.w": jnp.ones(2)})
        >>> carried.averages.values, carried.skips
        ({'model.w': Array([1., 1.], dtype=float32)}, None)
    """
    averages = scale = skips = None
    if config.ema_decay is not None:
        copies = {path: jnp.copy(param) for path, param in params.items()}
        averages = Averages(copies, _zero())
    if scaler is not None:
        scale = LossScale(jnp.asarray(scaler.init_scale, jnp.float32), _zero())
    if may_skip(config, scaler):
        skips = Skips(_zero(), _zero())
    return Carried(averages, scale, skips)


def _zero() -> jax.Array:
    return jnp.zeros((), jnp.int32)


def may_skip(config: Config, scaler: Scaler | None) -> bool:
    """Whether a step looks for NaN and infinity, and may change nothing."""
    return bool(config.skip_nonfinite) or scaler is not None


def after_update(
    carried: Carried, params: Mapping[str, jax.Array], config: Config
) -> Carried:
    """`carried` with the averages after an update that gave `params`."""
    averages = carried.averages
    if averages is None or config.ema_decay is None:
        return carried
    old, new = [averages.values[path] for path in params], list(params.values())
    now = averaged(old, new, config.ema_decay, averages.taken)
    values = dict(zip(params, now, strict=True))
    return carried._replace(averages=Averages(values, averages.taken + 1))


def after_check(carried: Carried, ok: jax.Array, scaler: Scaler | None) -> Carried:
    """`carried` with the loss scale and the counts after a step.

    Args:
        carried: Before the step.
        ok: Whether the step was taken and not skipped, bool[].
        scaler: Has scaled the loss, or None.
    """
    scale, skips = carried.loss_scale, carried.skips
    if scale is not None and scaler is not None:
        scale = LossScale(*scaler.update(*scale, ok))
    if skips is not None:
        total = jnp.where(ok, skips.total, skips.total + 1)
        skips = Skips(total, jnp.where(ok, 0, skips.in_a_row + 1))
    return carried._replace(loss_scale=scale, skips=skips)


def moved(carried: Carried, fresh: Carried) -> Carried:
    """`fresh`, with what `carried` has of it already: parameters may come and go."""
    averages = fresh.averages
    if averages is not None and carried.averages is not None:
        old = carried.averages
        kept = {path: old.values.get(path, x) for path, x in averages.values.items()}
        averages = Averages(kept, old.taken)
    return Carried(
        averages,
        fresh.loss_scale and (carried.loss_scale or fresh.loss_scale),
        fresh.skips and (carried.skips or fresh.skips),
    )
