"""What the Variables of a graph are for: trained, by which group, or carried along.

Planning reads modules and optimizers and changes neither; `Runner.ready` carries a plan
out.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import nnx

from graphlr.groups.labels import label_params
from graphlr.modules.tree import Edit, Modules
from graphlr.modules.variables import as_arrays
from graphlr.optim.adoption import SlotPlan
from graphlr.optim.optimizer import Optimizer
from graphlr.optim.traced import GroupSpec


class OptimizerPlan(NamedTuple):
    """What one optimizer does in a step.

    Attributes:
        specs: The constants of its groups.
        labels: `{path: group}` of what it trains.
        slot_plan: The slots that takes.
    """

    specs: tuple[GroupSpec, ...]
    labels: dict[str, str]
    slot_plan: SlotPlan

    def asks_same_step(self, other: OptimizerPlan) -> bool:
        """Whether a program for `other` is right for this one too."""
        mine, theirs = self.slot_plan.layout, other.slot_plan.layout
        same = self.specs == other.specs and self.labels == other.labels
        return same and mine == theirs


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """The constants of a graph's step, until the structure of a group changes.

    Attributes:
        modules: Every Variable of the graph.
        names: Dotted paths of the trained parameters, optimizer after optimizer.
        trained: Their Variables.
        extras: Every other Variable: frozen parameters, statistics, RNG.
        optimizers: What each optimizer does.
        norm_edits: Makes the normalisations of frozen modules keep their statistics.
    """

    modules: Modules
    names: list[str]
    trained: list[nnx.Variable]
    extras: list[nnx.Variable]
    optimizers: list[OptimizerPlan]
    norm_edits: list[Edit]

    @functools.cached_property
    def specs(self) -> list[tuple[GroupSpec, ...]]:
        """The constants of each optimizer's groups."""
        return [planned.specs for planned in self.optimizers]

    @functools.cached_property
    def slot_plans(self) -> list[SlotPlan]:
        """The slots that each optimizer needs."""
        return [planned.slot_plan for planned in self.optimizers]

    def asks_same_step(self, other: Plan) -> bool:
        """Whether programs compiled for `other` are right for this plan."""
        return (
            self.names == other.names
            and self.modules.paths == other.modules.paths
            and len(self.optimizers) == len(other.optimizers)
            and all(
                map(OptimizerPlan.asks_same_step, self.optimizers, other.optimizers)
            )
        )

    def group_of(self, path: str) -> str:
        """The group of a trained parameter."""
        return next(o.labels[path] for o in self.optimizers if path in o.labels)

    def path_of(self, variable: nnx.Variable) -> str:
        """The dotted path of a Variable of the graph."""
        return self.modules.path_of[id(variable)]


def make_plan(attributes: Mapping[str, Any], optimizers: Sequence[Optimizer]) -> Plan:
    """Find the modules among `attributes` and put every parameter into its group.

    Raises:
        ValueError: A parameter is in two groups or none, or every one is frozen.
        TypeError: A trained parameter is no floating-point array.
    """
    modules = Modules(attributes)
    labels = _labels(modules, optimizers)
    names = [path for label in labels for path in label]
    by_path = {param.path: param.value for param in modules.params}
    if optimizers and not names:
        raise ValueError(
            "every parameter is frozen, so there is nothing to train: unfreeze a "
            "group, optimizer.param_groups[0]['frozen'] = False, or make the graph "
            "without optimizer"
        )
    for name in names:
        _check_float(name, by_path[name])
    trained = [by_path[name] for name in names]
    ids = set(map(id, trained))
    frozen = {id(param.value) for param in modules.params} - ids
    return Plan(
        modules=modules,
        names=names,
        trained=trained,
        extras=[v for v in modules.variables if id(v) not in ids],
        optimizers=[
            OptimizerPlan(
                optimizer.specs,
                label,
                optimizer.plan_slots(label, {path: by_path[path] for path in label}),
            )
            for optimizer, label in zip(optimizers, labels, strict=True)
        ],
        norm_edits=modules.edits_of_frozen_norms(frozen) if optimizers else [],
    )


def _labels(modules: Modules, optimizers: Sequence[Optimizer]) -> list[dict[str, str]]:
    """For each optimizer `{path: group}` of what it trains."""
    pairs = [(k, group) for k, o in enumerate(optimizers) for group in o.param_groups]
    labels: list[dict[str, str]] = [{} for _ in optimizers]
    groups = [group for _, group in pairs]
    chosen = label_params(modules.params, groups) if optimizers else {}
    for path, i in chosen.items():
        k, group = pairs[i]
        if not group["frozen"]:
            labels[k][path] = group.name
    return labels


def _check_float(path: str, variable: nnx.Variable) -> None:
    (array,) = as_arrays([variable])
    dtype = getattr(array, "dtype", None)
    if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(
            f"{path} is {dtype or type(array).__name__}, which has no gradient: freeze "
            f"it, {{'params': {path!r}, 'frozen': True}}, or make it no nnx.Param"
        )


def check_unchanged(plan: Plan) -> None:
    """Notice a module that is no longer the one that was planned for.

    Raises:
        ValueError: Names its path.
    """
    changed = plan.modules.first_change()
    if changed:
        raise ValueError(
            f"{changed} was replaced, added or removed after the graph was "
            "compiled, so the graph would go on with the old one. Change modules "
            "before the first call, or make a new graph and optimizer over the changed "
            "model"
        )
