"""The losses that `build` gives to `backward`, collected while it is traced."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from graphlr.modules.calls import current_trace


class Losses:
    """The losses of one run of `build`.

    Args:
        training: Whether anything is trained by them.
    """

    def __init__(self, *, training: bool) -> None:
        self._training = training
        self._given: list[jax.Array] = []
        self._trace = current_trace()

    def add(self, loss: ArrayLike) -> None:
        """Note a scalar that is to be differentiated; see `Graph.backward`."""
        if not self._training:
            raise RuntimeError(
                "self.backward(loss) in a graph without optimizer: call "
                "self.add_optimizer(optimizer) in __init__, or leave backward out"
            )
        loss = jnp.asarray(loss)
        if loss.shape != ():
            raise ValueError(
                f"self.backward(loss) needs a scalar, and loss has shape {loss.shape}: "
                "self.backward(loss.mean())"
            )
        if not jnp.issubdtype(loss.dtype, jnp.floating):
            raise TypeError(f"self.backward(loss): loss is {loss.dtype}, not a float")
        if self._trace != current_trace():
            raise RuntimeError(
                "self.backward(loss) inside a transformation such as jax.checkpoint or "
                "jax.lax.scan can't see out of it: return the loss from there and call "
                "self.backward(loss) in build() itself"
            )
        self._given.append(loss)

    def total(self) -> jax.Array:
        """The sum of them, float[]; 0 where nothing is trained.

        Raises:
            RuntimeError: There is none.
        """
        if not self._training:
            return jnp.zeros(())
        if not self._given:
            raise RuntimeError(
                "build() of a graph with an optimizer never called self.backward(loss):"
                " call it, or make the graph without add_optimizer to evaluate"
            )
        return sum(self._given[1:], self._given[0])
