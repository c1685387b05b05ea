"""The record of a graph's compilations: how many, how long, and why."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Compile(NamedTuple):
    """One compilation.

    Attributes:
        why: What made it necessary.
        trace_seconds: Time to trace and lower.
        compile_seconds: Time that XLA took.
        cached: Whether `glr.runtime.compile_cache` had it; None without a cache.
    """

    why: str
    trace_seconds: float
    compile_seconds: float
    cached: bool | None = None


class Compiles:
    """Every compilation of a graph so far.

    Attributes:
        records: Each, in order.

    Example:
        >>> compiles = Compiles([Compile("first call", 0.5, 1.5)])
        >>> compiles.count, compiles.seconds, compiles.why
        (1, 2.0, ['first call'])
        >>> compiles
        1 compiled in 2.0 s: first call
    """

    def __init__(self, records: Sequence[Compile] = ()) -> None:
        self.records = list(records)

    @property
    def count(self) -> int:
        """How many."""
        return len(self.records)

    @property
    def seconds(self) -> float:
        """Trace and compile time of all together."""
        return sum(r.trace_seconds + r.compile_seconds for r in self.records)

    @property
    def hits(self) -> int:
        """How many were read from `glr.runtime.compile_cache`."""
        return sum(record.cached is True for record in self.records)

    @property
    def misses(self) -> int:
        """How many the cache did not have."""
        return sum(record.cached is False for record in self.records)

    @property
    def why(self) -> list[str]:
        """What made each necessary."""
        return [record.why for record in self.records]

    def __len__(self) -> int:
        return len(self.records)

    def __int__(self) -> int:
        return len(self.records)

    def __repr__(self) -> str:
        why = "; ".join(self.why)
        hits = f" ({self.hits} from the cache)" if self.hits else ""
        text = f"{self.count} compiled in {self.seconds:.1f} s{hits}"
        return f"{text}: {why or 'nothing yet'}"
