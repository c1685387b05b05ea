"""What keeps a step from losing or mistaking anything: checks around its run."""

from __future__ import annotations

import functools
import gc
import signal
import sys
import threading
import warnings
from collections.abc import Container, Iterable, Mapping, Sequence
from types import FrameType

import jax
from flax import nnx

from graphlr.messages import listing
from graphlr.step.indices import check_range
from graphlr.step.signature import Build, Constant, Signature
from graphlr.step.types import Batch

# A step takes a model's arrays and gives it others; two threads that do so with one
# model would take the same ones. Computing goes on after the lock is released.
one_at_a_time = threading.RLock()

# What is behind `signal`, whose functions take 15 us to translate handlers to enums.
_signal = sys.modules.get("_signal", signal)


def hold_interrupts() -> _Holding:
    """Hold Ctrl-C back until a step's results are written, then let it through.

    Between the call that donates the old buffers and the write of the new ones an
    exception would leave Variables without arrays.
    """
    return _Holding()


class _Holding:  # as a generator with @contextmanager it would take twice the time
    def __enter__(self) -> None:
        self._held: list[tuple[int, FrameType | None]] = []
        # Python gives signals to the main thread only, and lets it alone set handlers.
        # A handler that is None belongs to a program around Python: nobody here could
        # put it back.
        main = threading.current_thread() is threading.main_thread()
        self._handler = _signal.getsignal(signal.SIGINT) if main else None
        if self._handler is not None:
            note = self._held.append
            _signal.signal(signal.SIGINT, lambda *signalled: note(signalled))

    def __exit__(self, *error: object) -> None:
        if self._handler is None:
            return
        _signal.signal(signal.SIGINT, self._handler)
        if self._held and callable(self._handler):
            self._handler(*self._held[0])


def check_not_lost(arrays: Iterable[jax.Array], error: Exception) -> None:
    """After a step failed with `error`, say so if it took its donated buffers along.

    Raises:
        RuntimeError: The state is lost; says how to restore it.
    """
    if any(array.is_deleted() for array in arrays):
        raise RuntimeError(
            "a step failed after its buffers were donated, so parameters and slots are "
            "lost: graph.load_state_dict(saved) restores what graph.state_dict() gave "
            "before. With config.donate = False a failed step costs nothing, and every "
            "step costs the memory of a second copy."
        ) from error


def check_constants(
    constants: Sequence[object], paths: Mapping[int, str], known: Container[int]
) -> None:
    """Refuse a model that `build` reads through a name other than self's.

    Args:
        constants: What the traced step uses that isn't an input.
        paths: Of the Variable that each input belongs to, by the array's id.
        known: Ids of the Variables of the graph.

    Raises:
        ValueError: The step uses a parameter as a constant.
    """
    captured = sorted(paths[id(c)] for c in constants if id(c) in paths)
    if captured:
        raise ValueError(
            f"build() uses {listing(captured)} as a constant, because it reaches the "
            "module by a name other than self's; it would neither train nor change. "
            "Hold the module as an attribute and write self.model(image)"
        )
    loose = [c for c in constants if isinstance(c, jax.Array)]
    held = gc.get_referrers(*loose) if loose else []  # it looks at every object
    strangers = [v for v in held if isinstance(v, nnx.Variable) and id(v) not in known]
    if strangers:
        warnings.warn(
            f"build() uses {len(strangers)} Variables of modules that no attribute of "
            "the graph holds as constants: they don't train, and later changes of them "
            "are not seen. self.teacher = teacher in __init__",
            stacklevel=2,
        )


def check_ranges(
    limits: Mapping[int, int], batch: Batch, signature: Signature, build: Build
) -> None:
    """Refuse host arrays whose values are visibly out of range as indices.

    Arrays on a device are not read: that would wait for them.

    Args:
        limits: `{position in the batch: size}` of what integer arrays index.
        batch: The arrays of a call.
        signature: Of its arguments.
        build: For their names.

    Raises:
        ValueError: Names the argument, the value and its place.
    """

    def name(i: int) -> str:
        kinds = zip(signature.kinds, signature.names(build), strict=True)
        return [name for kind, name in kinds if not isinstance(kind, Constant)][i]

    for i, size in limits.items():
        if not isinstance(batch[i], jax.Array):
            check_range(batch[i], size, functools.partial(name, i))
