"""What a graph is exported for: a signature, the names and the sizes of its arrays."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.export

from graphlr.engine.runner import Args, Kwargs, Runner
from graphlr.messages import listing
from graphlr.step.definition import Definition
from graphlr.step.signature import Constant, Signature, read_arguments

Specs = list[jax.ShapeDtypeStruct]
_Result = TypeVar("_Result")

_log = logging.getLogger(__name__)


class ExportError(ValueError):
    """A graph can't be exported, or a file can't be loaded here."""


class Request(NamedTuple):
    """What is to be exported.

    Attributes:
        runner: Of the graph.
        definition: Of the same.
        args: Like those of a call; with no `kwargs` either, the last ones compiled.
        kwargs: Likewise.
    """

    runner: Runner
    definition: Definition
    args: Args
    kwargs: Kwargs

    @property
    def name(self) -> str:
        """Of the graph."""
        return self.definition.name

    def signature(self) -> Signature:
        """The signature that is asked for."""
        last = self.runner.programs.last
        if not (self.args or self.kwargs) and last is not None:
            return last[0]
        return read_arguments(self.definition.build, self.args, self.kwargs)[0]

    def names(self, given: Signature) -> list[str]:
        """What each array among the arguments is called."""
        pairs = zip(given.kinds, given.names(self.definition.build), strict=True)
        return [name for kind, name in pairs if not isinstance(kind, Constant)]


def with_batch_sizes(
    request: Request,
    given: Signature,
    attempt: Callable[[Specs], _Result],
    symbolic: bool | None,
) -> _Result:
    """`attempt(specs)` with a symbol for the batch size, or with fixed sizes.

    Args:
        request: What is to be exported.
        given: The arguments' signature.
        attempt: Traces the graph for arrays like these specs.
        symbolic: Whether the leading axis of all arrays is a symbol; None if it can be.

    Raises:
        ExportError: `symbolic` is asked for, and the leading axes differ.
    """
    kinds = given.kinds_as_leaves()
    fixed = [spec_of(kind) for kind in kinds]
    shown = ", ".join(kind.str_short() for kind in kinds)
    sizes = {kind.shape[0] for kind in kinds if kind.shape}
    if not all(isinstance(n, int) for kind in kinds for n in kind.shape):
        return _noting(request, shown, attempt, fixed)
    parts = request.runner.config.gradient_accumulation_steps
    given.check_parts(parts, request.definition.build)
    if symbolic is False or not sizes:
        return _noting(request, shown, attempt, fixed)
    why = f"the leading axes of the arrays differ, {listing(map(str, sorted(sizes)))}"
    if len(sizes) == 1:
        specs = _symbolic(kinds, "b" if parts == 1 else f"{parts}*b")
        try:
            return _noting(request, "a symbolic batch size", attempt, specs)
        except Exception as error:
            if symbolic:
                raise
            why = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    if symbolic:
        raise ExportError(
            f"{request.name} can't be exported for any batch size, {why}. Put the "
            "symbol where it belongs, b, = jax.export.symbolic_shape('b') and "
            "jax.ShapeDtypeStruct((b, 3), 'float32'), or fix the sizes, symbolic=False"
        )
    result = _noting(request, shown, attempt, fixed)
    text = "%s is exported for %s alone, not for any batch size (%s)"
    _log.warning(text, request.name, shown, why)
    return result


def _noting(
    request: Request, what: str, attempt: Callable[[Specs], _Result], specs: Specs
) -> _Result:
    try:
        return attempt(specs)
    except Exception as error:
        error.add_note(
            f"while exporting {request.name}.build with {what or 'no arguments'}"
        )
        raise


def _symbolic(kinds: Sequence[Any], leading: str) -> Specs:
    (b,) = jax.export.symbolic_shape(leading)
    return [spec_of(kind, (b, *kind.shape[1:]) if kind.shape else ()) for kind in kinds]


def spec_of(kind: Any, shape: Any = None) -> jax.ShapeDtypeStruct:
    """Shape and dtype of an array, or of one like it with another shape."""
    shape = kind.shape if shape is None else shape
    weak = getattr(kind, "weak_type", False)
    return jax.ShapeDtypeStruct(shape, kind.dtype, weak_type=weak)
