"""A graph as the user wrote it: its attributes, and a `build` that is to be traced."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from graphlr.optim.optimizer import Optimizer
from graphlr.step.losses import Losses
from graphlr.step.signature import Build


class Definition(NamedTuple):
    """What is to be traced: a graph as the user wrote it.

    Attributes:
        name: For messages.
        attributes: Gives those of the graph, modules among them; most calls don't ask.
        build: The user's method, for its signature.
        bind: Makes `build` see other attributes, and collect its losses.
    """

    name: str
    attributes: Callable[[], Mapping[str, Any]]
    build: Build
    bind: Callable[[Mapping[str, Any], Losses], Build]


def check_attribute(name: str, value: object, *, taken: bool) -> None:
    """Refuse an attribute that would do nothing, or hide something of `Graph`.

    Args:
        name: Of the attribute.
        value: What it is to be.
        taken: Whether `Graph` has something of that name.

    Raises:
        AttributeError: Says what to do in its place.
    """
    if isinstance(value, Optimizer):
        raise AttributeError(
            f"self.{name} = optimizer would train nothing: "
            "self.add_optimizer(optimizer)"
        )
    if taken:
        raise AttributeError(
            f"{name} is Graph's own: call the attribute something else"
        )


def check_open(what: str, *, tracing: bool, compiled: bool) -> None:
    """Refuse an edit of attributes that the compiled step would not see.

    Args:
        what: Is done: "self.scale is set".
        tracing: Whether `build` is being traced.
        compiled: Whether a step has been compiled.

    Raises:
        AttributeError: It comes too late.
    """
    if tracing or compiled:
        where = "inside build()" if tracing else "after a call"
        raise AttributeError(
            f"{what} {where}, where it has no effect on the compiled step: set it "
            "in __init__, or pass it to build() and return it"
        )
