"""Words that messages share: lists that stay short, and what was meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def listing(paths: Iterable[str], limit: int = 5) -> str:
    """At most `limit` paths, then how many more.

    Example:
        >>> listing(["a", "b", "c"], limit=2)
        'a, b and 1 more'
    """
    paths = list(paths)
    rest = f" and {len(paths) - limit} more" if len(paths) > limit else ""
    return ", ".join(paths[:limit]) + rest


# What other libraries call a key, or what another class has in its place.
_ELSEWHERE = {
    "learning_rate": "lr",
    "lr_mult": "lr_scale",
    "momentum": "betas",
    "requires_grad": "frozen",
    "wd": "weight_decay",
}


def unknown_key(key: str, known: Iterable[str], what: str) -> str:
    """Message for a misspelt key: the key, the nearest known one, all of them."""
    known = sorted(known)
    meant = [_ELSEWHERE[key]] if _ELSEWHERE.get(key) in known else []
    near = meant or difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"{what} has no {key!r}: {hint}It takes {', '.join(known)}."
