"""What the Variables of a graph are for: trained, by which group, or carried along."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.extend.core import Literal

from graphlr.groups import label_params
from graphlr.modules import Edit, Modules, read
from graphlr.optim.compiled import GroupSpec, transform, unpack
from graphlr.optim.optimizer import Optimizer
from graphlr.optim.slots import Layout, layout_of


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """The constants of a graph's step, until the structure of a group changes.

    Attributes:
        modules: Every Variable of the graph.
        names: Dotted paths of the trained parameters, optimizer after optimizer.
        trained: Their Variables.
        extras: Every other Variable: frozen parameters, statistics, RNG.
        labels: For each optimizer `{path: group}` of what it trains.
        specs: For each optimizer the constants of its groups.
        layouts: For each optimizer where its slots belong.
        still: Makes the normalisations of frozen modules keep their statistics.
    """

    modules: Modules
    names: list[str]
    trained: list[nnx.Variable]
    extras: list[nnx.Variable]
    labels: list[dict[str, str]]
    specs: list[tuple[GroupSpec, ...]]
    layouts: list[Layout]
    still: list[Edit]

    def asks_same_step(self, other: Plan) -> bool:
        """Whether programs compiled for `other` are right for this plan."""
        return (
            self.names == other.names
            and self.labels == other.labels
            and self.specs == other.specs
            and self.layouts == other.layouts
            and self.modules.paths == other.modules.paths
        )


def make_plan(attributes: Mapping[str, Any], optimizers: Sequence[Optimizer]) -> Plan:
    """Find the modules among `attributes` and put every parameter into its group.

    Optimizers keep the slots of parameters they go on training, by name.

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
    return Plan(
        modules=modules,
        names=names,
        trained=trained,
        extras=[v for v in modules.variables if id(v) not in ids],
        labels=labels,
        specs=[optimizer.specs for optimizer in optimizers],
        layouts=[
            _adopt(optimizer, label, {path: by_path[path] for path in label})
            for optimizer, label in zip(optimizers, labels, strict=True)
        ],
        still=modules.frozen_norms(
            {id(v) for v in by_path.values()} - ids if optimizers else set()
        ),
    )


def _labels(modules: Modules, optimizers: Sequence[Optimizer]) -> list[dict[str, str]]:
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    owners = [k for k, o in enumerate(optimizers) for _ in o.param_groups]
    labels: list[dict[str, str]] = [{} for _ in optimizers]
    chosen = label_params(modules.params, groups) if optimizers else {}
    for path, i in chosen.items():
        if not groups[i]["frozen"]:
            labels[owners[i]][path] = groups[i].name
    return labels


def _adopt(
    optimizer: Optimizer, labels: dict[str, str], variables: dict[str, nnx.Variable]
) -> Layout:
    """Give the optimizer its slots; those of parameters that it trained are kept.

    What counts is the Variable, not its path: another graph may call it otherwise.
    """
    specs = optimizer.specs
    params = {path: read([variable])[0] for path, variable in variables.items()}

    def init(numbers: jax.Array, params: dict[str, jax.Array]) -> Any:
        step = jnp.zeros((), jnp.int32)
        return transform(specs, unpack(specs, numbers), labels, step).init(params)

    traced = jax.jit(init).trace(optimizer.numbers, params)
    layout = layout_of(traced.out_info, labels)
    old, before = optimizer.layout, optimizer.trained
    if old == layout and old is not None and _same(before, variables):
        return old
    fresh = _filled(traced.jaxpr.jaxpr, params.values())
    if fresh is None:
        compiled = traced.lower().compile()
        fresh = jax.tree.leaves(compiled(optimizer.numbers, params))
    paths = {id(variable): path for path, variable in variables.items()}
    moved = {p: paths[id(v)] for p, v in before.items() if id(v) in paths}
    named = old.named(optimizer.slots, moved) if old else {}
    optimizer.slots = layout.flat(named, fresh)
    optimizer.layout, optimizer.trained = layout, variables
    return layout


def _filled(jaxpr: Any, params: Iterable[jax.Array]) -> list[jax.Array] | None:
    """What `jaxpr` gives if each result is one number throughout, as most slots are.

    It saves a compilation, which would take longer than that of a small step. None if
    there is another result or the parameters aren't all on one device.
    """
    devices = {device for array in params for device in array.devices()}
    numbers = {
        eqn.outvars[0]: eqn.invars[0].val
        for eqn in jaxpr.eqns
        if eqn.primitive.name == "broadcast_in_dim"
        and isinstance(eqn.invars[0], Literal)
    }
    fills = [
        out.val if isinstance(out, Literal) else numbers.get(out)
        for out in jaxpr.outvars
    ]
    if len(devices) != 1 or any(fill is None for fill in fills):
        return None
    (device,) = devices
    return [
        jax.device_put(
            np.full(out.aval.shape, fill, out.aval.dtype), device, may_alias=False
        )
        for out, fill in zip(jaxpr.outvars, fills, strict=True)
    ]


def _same(a: dict[str, nnx.Variable], b: dict[str, nnx.Variable]) -> bool:
    return a.keys() == b.keys() and all(a[path] is b[path] for path in a)


def _check_float(path: str, variable: nnx.Variable) -> None:
    (array,) = read([variable])
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
    changed = plan.modules.replaced()
    if changed:
        raise ValueError(
            f"{changed} was replaced, added or removed after the graph was "
            "compiled, so the graph would go on with the old one. Change modules "
            "before the first call, or make a new graph and optimizer over the changed "
            "model"
        )
