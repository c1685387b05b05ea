"""Groups as a compiled step sees them: constants, a vector of numbers, a transform.

`GroupSpec` holds what of a group is a constant of the trace; everything else is one
float vector, unpacked while tracing into the numbers that `transform` builds one
`optax.multi_transform` from. Nothing here has state.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jax.typing import ArrayLike

from graphlr.groups.group import ParamGroup
from graphlr.groups.selectors import Selector
from graphlr.optim.arguments import Rule
from graphlr.optim.group_keys import at_step
from graphlr.optim.lr_scheduler.base import LearningRate, Schedule
from graphlr.optim.transforms.gradients import centralize, clip_by_norm
from graphlr.optim.transforms.leaves import Number, pieces

# Of one group, by key: numbers, or as many of them as a tuple has.
Values = Mapping[str, Any]

# Numbers whose zero changes which slots exist: zero is a constant of the trace.
_STRUCTURAL = ("momentum", "dampening")


class GroupSpec(NamedTuple):
    """What of a group is a constant of the trace; hashable, compared to detect change.

    Attributes:
        name: The group's name.
        selector: Which parameters; compared by identity.
        rule: Hyperparameters to direction.
        constants: `(key, value)` of hyperparameters that are no live numbers.
        live: `(key, length)` of live numbers in the order of the vector; length 0 is a
            scalar.
        lr: A schedule in place of the base rate, or None.
        schedule: Applied to the base rate, or None.
        clip_norm_type: Of the group's clip, or None without one.
        centralized: Whether gradients are centralised.
        frozen: Whether the group is left alone.
    """

    name: str
    selector: Selector
    rule: Rule
    constants: tuple[tuple[str, Any], ...]
    live: tuple[tuple[str, int], ...]
    lr: Schedule | None
    schedule: Schedule | None
    clip_norm_type: float | None
    centralized: bool
    frozen: bool


def is_live(value: object) -> bool:
    """Whether a value is an input of the step: a number, or a tuple of numbers."""
    if isinstance(value, tuple):
        return bool(value) and all(isinstance(x, float) for x in value)
    return isinstance(value, float)


def only_numbers_differ(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Whether two versions of a group surely have the same `group_spec`.

    False costs no more than a comparison of the two.

    Example:
        >>> only_numbers_differ({"lr": 0.1}, {"lr": 0.2})
        True
        >>> only_numbers_differ({"momentum": 0.0}, {"momentum": 0.9})
        False
    """
    return old.keys() == new.keys() and all(
        value is old[key]
        or (
            type(value) is type(old[key]) is float
            and (key not in _STRUCTURAL or bool(value) == bool(old[key]))
        )
        for key, value in new.items()
    )


def group_spec(group: ParamGroup, rule: Rule, schedule: Schedule | None) -> GroupSpec:
    """The constants of `group`; `schedule` is for a group without one of its own."""
    schedule = group["lr_sch"] or schedule
    hyper = {key: group[key] for key in rule.defaults}
    constants = {
        key: value
        for key, value in hyper.items()
        if not is_live(value) or (key in _STRUCTURAL and value == 0.0)
    }
    numbers = {key: value for key, value in hyper.items() if key not in constants}
    for key in ("lr", "lr_scale", "clip_grad_max_norm"):
        if isinstance(group[key], float):
            numbers[key] = group[key]
    return GroupSpec(
        name=group.name,
        selector=group.selector,
        rule=rule,
        constants=tuple(constants.items()),
        live=tuple(
            (key, len(value) if isinstance(value, tuple) else 0)
            for key, value in numbers.items()
        ),
        lr=group["lr"] if isinstance(group["lr"], Schedule) else None,
        schedule=schedule,
        clip_norm_type=group["clip_grad_norm_type"]
        if "clip_grad_max_norm" in numbers
        else None,
        centralized=group["grad_centralization"],
        frozen=group["frozen"],
    )


def pack(specs: Sequence[GroupSpec], groups: Sequence[ParamGroup]) -> list[float]:
    """The live numbers of all groups, in the order of the vector."""
    numbers: list[float] = []
    for spec, group in zip(specs, groups, strict=True):
        for key, length in spec.live:
            numbers.extend(group[key] if length else (group[key],))
    return numbers


def unpack(
    specs: Sequence[GroupSpec], numbers: jax.Array | np.ndarray | Sequence[float]
) -> dict[str, Values]:
    """The vector of live numbers as `{group: {key: number or tuple}}`."""
    sizes = [sum(length or 1 for _, length in spec.live) for spec in specs]
    return {
        spec.name: _entries(spec, piece)
        for spec, piece in zip(specs, pieces(numbers, sizes), strict=True)
    }


def _entries(spec: GroupSpec, numbers: Iterable[Number]) -> Values:
    entries = iter(numbers)

    def take(length: int) -> Number | tuple[Number, ...]:
        return tuple(itertools.islice(entries, length)) if length else next(entries)

    return {key: take(length) for key, length in spec.live}


def group_lr(spec: GroupSpec, values: Values, step: ArrayLike) -> LearningRate:
    """`schedule(base lr, step) * lr_scale`, traced or in float64 on the host."""
    lr = spec.lr(0.0, step) if spec.lr else values["lr"]
    if spec.schedule:
        lr = spec.schedule(lr, step)
    return lr * values["lr_scale"]


def _hyper_now(spec: GroupSpec, values: Values, step: ArrayLike) -> dict[str, Any]:
    """Hyperparameters of the rule at `step`, a scheduled momentum among them."""
    names = spec.rule.defaults
    constants = {key: at_step(value, step) for key, value in spec.constants}
    hyper = {**constants, **{k: v for k, v in values.items() if k in names}}
    momentum = spec.schedule.momentum(step) if spec.schedule else None
    if momentum is None:
        return hyper
    key = "momentum" if "momentum" in hyper else "betas"
    given = dict(spec.constants).get(key)
    if isinstance(given[0] if isinstance(given, tuple) else given, Schedule):
        raise ValueError(
            f"group {spec.name!r}: both {key} and {spec.schedule} give the momentum: "
            "give the schedule cycle_momentum=False, or a number for the other"
        )
    if "momentum" in hyper:
        return {**hyper, "momentum": momentum}
    if "betas" in hyper:
        return {**hyper, "betas": (momentum, hyper["betas"][1])}
    raise ValueError(
        f"group {spec.name!r}: {spec.schedule} cycles momentum, and the rule has "
        "neither momentum nor betas: give the schedule cycle_momentum=False"
    )


def _group_transform(
    spec: GroupSpec, values: Values, step: ArrayLike
) -> optax.GradientTransformation:
    # Python that runs while the step is traced. Whatever `values` and `step` lead to
    # is computed in the program: so a new number compiles nothing.
    lr = group_lr(spec, values, step)
    hyper = _hyper_now(spec, values, step)
    before = [centralize()] if spec.centralized else []
    if spec.clip_norm_type is not None:
        before.append(clip_by_norm(values["clip_grad_max_norm"], spec.clip_norm_type))
    # A rule that takes the learning rate gives the whole step, its sign included.
    after = [] if spec.rule.takes_lr else [optax.scale(-lr)]
    return optax.chain(*before, spec.rule(hyper, lr), *after)


def transform(
    specs: Sequence[GroupSpec],
    values: Mapping[str, Values],
    labels: Mapping[str, str],
    step: ArrayLike,
) -> optax.GradientTransformation:
    """One `optax.multi_transform` over `{path: parameter}`; the numbers may be traced.

    Args:
        specs: Constants of every group.
        values: Live numbers of every group, from `unpack`.
        labels: `{path: group name}`.
        step: Updates already applied, int32.
    """
    # `multi_transform` keeps a state for every transformation that it is given, also
    # for one without parameters.
    used = set(labels.values())
    chains: dict[Hashable, optax.GradientTransformation] = {
        spec.name: optax.set_to_zero()
        if spec.frozen
        else _group_transform(spec, values[spec.name], step)
        for spec in specs
        if spec.name in used
    }
    return optax.multi_transform(chains, dict(labels))
