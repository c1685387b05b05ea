"""The scale of the loss: for float16, whose smallest numbers are not small enough."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True, kw_only=True)
class GradScaler:
    """A loss scale that grows until gradients overflow: for float16.

    The loss is multiplied by the scale and the gradients divided by it. If one of them
    isn't finite, the update is skipped (parameters, slots, statistics, step count and
    schedules stay) and the scale multiplied by `backoff_factor`; after
    `growth_interval` good steps it is multiplied by `growth_factor`.
    Source: PyTorch `torch.amp.GradScaler`; OneFlow `GradScaler`.

    Raises:
        ValueError: A number is out of range.

    Example:
        >>> scaler = GradScaler(init_scale=4.0, growth_interval=2)
        >>> scale, good = jnp.float32(4.0), jnp.int32(1)
        >>> [float(x) for x in scaler.update(scale, good, jnp.bool_(True))]
        [8.0, 0.0]
        >>> [float(x) for x in scaler.update(scale, good, jnp.bool_(False))]
        [2.0, 0.0]
    """

    init_scale: float = 2.0**16
    growth_factor: float = 2.0
    backoff_factor: float = 0.5
    growth_interval: int = 2000

    def __post_init__(self) -> None:
        for name, ok, need in (
            ("init_scale", self.init_scale > 0, "above 0"),
            ("growth_factor", self.growth_factor > 1, "above 1"),
            ("backoff_factor", 0 < self.backoff_factor < 1, "between 0 and 1"),
            ("growth_interval", self.growth_interval >= 1, "at least 1"),
        ):
            if not ok:
                value = getattr(self, name)
                raise ValueError(f"GradScaler: {name} is {value!r}, and must be {need}")

    def update(
        self, scale: jax.Array, good: jax.Array, ok: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """The scale and the number of good steps after one more."""
        grown = scale * self.growth_factor
        full = good + 1 >= self.growth_interval
        larger = jnp.where(full & jnp.isfinite(grown), grown, scale)
        new_scale = jnp.where(ok, larger, scale * self.backoff_factor)
        return new_scale, jnp.where(ok & ~full, good + 1, 0)


@dataclasses.dataclass(frozen=True)
class StaticGradScaler:
    """A loss scale that stays; an update that overflows is skipped.

    Source: OneFlow `StaticGradScaler`.

    Example:
        >>> StaticGradScaler(128.0).init_scale
        128.0
    """

    scale_factor: float

    def __post_init__(self) -> None:
        if not self.scale_factor > 0:
            raise ValueError(
                f"StaticGradScaler: scale_factor is {self.scale_factor!r}, and must be "
                "above 0"
            )

    @property
    def init_scale(self) -> float:
        """The scale."""
        return self.scale_factor

    def update(
        self, scale: jax.Array, good: jax.Array, ok: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """The same scale, and the number of good steps after one more."""
        return scale, jnp.where(ok, good + 1, 0)


Scaler = GradScaler | StaticGradScaler
