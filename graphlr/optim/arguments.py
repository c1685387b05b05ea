"""From a rule's signature and what the user gave to groups with every key."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import jax
import numpy as np
import optax
from flax import nnx

from graphlr import keys
from graphlr.groups.group import ParamGroup
from graphlr.messages import unknown_key
from graphlr.optim.group_keys import COMMON, at_step, check_value
from graphlr.optim.lr_scheduler.base import LearningRate

REQUIRED = object()  # in place of a default: some group or the optimizer must say


@dataclasses.dataclass(frozen=True)
class Rule:
    """An update rule, and what its signature says of it; equal if its function is.

    Attributes:
        make: From hyperparameters, and from `lr` if it takes that, to the
            transformation: the direction of a step, or with `lr` the whole step.
        defaults: Its hyperparameters, with their defaults or `REQUIRED`.
        takes_lr: Whether it takes the learning rate and gives the whole step.
    """

    make: Callable[..., optax.GradientTransformation]
    defaults: Mapping[str, Any] = dataclasses.field(compare=False, repr=False)
    takes_lr: bool = dataclasses.field(compare=False)

    def __call__(
        self, hyper: Mapping[str, Any], lr: LearningRate
    ) -> optax.GradientTransformation:
        """The rule with these hyperparameters; `lr` is for one that takes it."""
        return self.make(**hyper, **({"lr": lr} if self.takes_lr else {}))


def rule_of(make: Callable[..., optax.GradientTransformation]) -> Rule:
    """What the signature of a rule says.

    Example:
        >>> rule = rule_of(lambda b1=0.9, *, lr: optax.sgd(lr, b1))
        >>> rule.defaults, rule.takes_lr
        ({'b1': 0.9}, True)
    """
    parameters = inspect.signature(make).parameters
    empty = inspect.Parameter.empty
    defaults = {
        name: REQUIRED if parameter.default is empty else parameter.default
        for name, parameter in parameters.items()
        if name != "lr"
    }
    return Rule(make, defaults, "lr" in parameters)


# --- the arguments of an optimizer ----------------------------------------------------


def signature_of(rule: Rule, lr: float) -> inspect.Signature:
    """`(params, lr, *hyperparameters of the rule, *, keys of every group)`.

    Raises:
        TypeError: The rule has a parameter whose name means something else in a group.
    """
    param = inspect.Parameter
    taken = {"params", "name", "optimizer", keys.MEMBERS, *COMMON}
    clash = taken & set(rule.defaults)
    if clash:
        raise TypeError(f"a rule can't have a parameter {clash.pop()!r}: groups do")
    own = [
        given.replace(default=rule.defaults[name])
        for name, given in inspect.signature(rule.make).parameters.items()
        if name != "lr"
    ]
    return inspect.Signature(
        [
            param("params", param.POSITIONAL_OR_KEYWORD),
            param("lr", param.POSITIONAL_OR_KEYWORD, default=lr),
            *(p for p in own if p.kind is param.POSITIONAL_OR_KEYWORD),
            *(p for p in own if p.kind is param.KEYWORD_ONLY),
            *(param(k, param.KEYWORD_ONLY, default=v) for k, v in COMMON.items()),
        ]
    )


def defaults_of(signature: inspect.Signature) -> dict[str, Any]:
    """Every key of a group, with what it has when nobody says."""
    return {
        key: parameter.default
        for key, parameter in signature.parameters.items()
        if key != "params"
    }


def bind(
    name: str,
    signature: inspect.Signature,
    args: tuple[Any, ...],
    given: Mapping[str, Any],
) -> dict[str, Any]:
    """What an optimizer was given, with the defaults of the rest.

    Args:
        name: Of the optimizer's class, for messages.
        signature: From `signature_of`.
        args: By position, `params` first.
        given: By name.

    Raises:
        TypeError: An argument is unknown, or there are too many.
    """
    for key in given:
        if key not in signature.parameters:
            raise TypeError(unknown_key(key, [*signature.parameters][1:], name))
    try:
        bound = signature.bind(*args, **given).arguments
    except TypeError as error:
        raise TypeError(
            f"{name}: {error}. All groups go into one list, the first argument: "
            f"{name}([{{'params': ...}}, {{'params': ...}}], lr=0.1)"
        ) from None
    return {**defaults_of(signature), **bound}


def as_groups(params: Any) -> list[Any]:
    """What the user gave as a list of group dicts.

    Example:
        >>> as_groups("**.bias")
        [{'params': '**.bias'}]
    """
    if isinstance(params, Mapping) and not isinstance(params, nnx.State):
        return [params]
    plain = isinstance(params, str | nnx.Module | nnx.Variable | nnx.State)
    if plain or params is ... or callable(params) or not _is_iterable(params):
        return [{"params": params}]
    if isinstance(params, set | frozenset):
        return [{"params": params}]
    items = list(params)
    if items and isinstance(items[0], Mapping):
        return items
    return [{"params": items}] if items else []


def _is_iterable(value: object) -> bool:
    return isinstance(value, Iterable) and not isinstance(value, jax.Array | np.ndarray)


# --- one group ------------------------------------------------------------------------


def make_group(
    rule: Rule, defaults: Mapping[str, Any], values: Mapping[str, Any]
) -> ParamGroup:
    """A group with a value for every key, each checked.

    Args:
        rule: Of the group.
        defaults: What it has where `values` say nothing.
        values: `params`, `name` and whatever else was given.

    Raises:
        KeyError: A key is unknown.
        TypeError, ValueError: A value can't be; the note says in which group.
    """
    name = values["name"]
    known = ["params", "name", *defaults]
    for key in values:
        if key not in known:
            raise KeyError(unknown_key(key, known, f"group {name!r}"))
    check = functools.partial(_checked, rule, name)
    return ParamGroup({**defaults, **values}, check)


def _checked(
    rule: Rule, name: str, values: Mapping[str, Any], new: Collection[str]
) -> dict[str, Any]:
    """`values` with the `new` ones checked and normalised; a `groups.group.Check`."""
    kinds = {**COMMON, **rule.defaults}
    checked = dict(values)
    try:
        for key in values:
            if key in ("params", "name") or key not in new:
                continue
            if checked[key] is REQUIRED:
                raise ValueError(
                    "parameter group didn't specify a value of required "
                    f"optimization parameter {key}: give {{{key!r}: ...}}"
                )
            checked[key] = check_value(key, checked[key], kinds.get(key))
        if not rule.defaults.keys().isdisjoint(new):
            # The rule refuses what only it knows to be wrong: it is made and thrown
            # away. A schedule in place of a number has its first value.
            rule({key: at_step(checked[key], 0) for key in rule.defaults}, 0.0)
    except (TypeError, ValueError) as error:
        error.add_note(f"in group {name!r}")
        raise
    return checked
