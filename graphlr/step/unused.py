"""Trained parameters that no loss depends on, found while a step is traced."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.custom_derivatives import CustomVJPPrimal, SymbolicZero

from graphlr.messages import listing
from graphlr.step.types import Arrays


class Use:
    """Notes which parameters a backward pass comes to.

    Args:
        names: Dotted paths of the trained parameters.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names
        self._used: set[str] = set()

    @property
    def unused(self) -> frozenset[str]:
        """The parameters that no backward pass has come to; call it after tracing."""
        return frozenset(self._names) - self._used

    def noting(self, trained: Arrays) -> Arrays:
        """The same arrays; their derivatives are noted as they are traced."""

        @jax.custom_vjp
        def note(arrays: Arrays) -> Arrays:
            return arrays

        def forward(arrays: list[CustomVJPPrimal]) -> tuple[Arrays, None]:
            return [array.value for array in arrays], None

        def backward(
            _: None, cotangents: list[jax.Array | SymbolicZero]
        ) -> tuple[Arrays]:
            # A symbolic zero is a derivative that JAX knows to be zero from the
            # structure of the program alone: no path leads from a loss to here.
            dense = []
            for name, array, cotangent in zip(
                self._names, trained, cotangents, strict=True
            ):
                if isinstance(cotangent, SymbolicZero):
                    dense.append(jnp.zeros(array.shape, array.dtype))
                else:
                    self._used.add(name)
                    dense.append(cotangent)
            return (dense,)

        note.defvjp(forward, backward, symbolic_zeros=True)
        return note(trained)

    def check(self) -> None:
        """Warn of parameters that stay as they are.

        Raises:
            ValueError: No loss depends on any parameter.
        """
        unused = self.unused
        if len(unused) == len(self._names):
            raise ValueError(
                "the loss given to self.backward depends on no trained parameter: "
                "compute it from self's modules, logits = self.model(image)"
            )
        if unused:
            warnings.warn(
                f"no loss depends on {listing(sorted(unused))}: they get no gradient "
                "and stay as they are. Is a module misspelt or not called? Freeze them "
                "to say that it is meant, {'params': ..., 'frozen': True}",
                stacklevel=2,
            )
