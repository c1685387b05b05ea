"""`print(graph)`: its modules, every group with its learning rate now, compilations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from graphlr.groups import ParamGroup, label_params
from graphlr.modules import Modules
from graphlr.optim.optimizer import Optimizer
from graphlr.state import group_names

_COLUMNS = ("group", "parameters", "count", "lr now", "lr_scale", "decay", "schedule")


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows with their columns aligned; the first row is the head.

    Example:
        >>> print(table([("group", "lr"), ("head", "0.1")]))
        group  lr
        -----  ---
        head   0.1
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rule = ["-" * width for width in widths]
    return "\n".join(
        "  ".join(
            cell.ljust(width) for cell, width in zip(row, widths, strict=True)
        ).rstrip()
        for row in (rows[0], rule, *rows[1:])
    )


def groups_table(modules: Modules, optimizers: Sequence[Optimizer]) -> str:
    """One line a group: which parameters, how many, learning rate now, schedule."""
    names = [name for some in group_names(optimizers) for name in some]
    groups = [group for o in optimizers for group in o.param_groups]
    owners = [o for o in optimizers for _ in o.param_groups]
    rates = [rate for o in optimizers for rate in o.lr().values()]
    chosen = label_params(modules.params, groups)
    sizes = {param.path: math.prod(param.value.shape) for param in modules.params}
    rows: list[Sequence[str]] = [_COLUMNS]
    for i, (name, group) in enumerate(zip(names, groups, strict=True)):
        paths = [path for path, index in chosen.items() if index == i]
        count = sum(sizes[path] for path in paths)
        written = str(group.selector)
        by_name = written.startswith(("'", "re.compile"))
        several = by_name and len(paths) > 1
        shown = f"{written} ({len(paths)})" if several else _paths(paths)
        rows.append((name, shown, f"{count:,}", *_numbers(group, owners[i], rates[i])))
    return table(rows)


def _numbers(group: ParamGroup, optimizer: Optimizer, rate: float) -> tuple[str, ...]:
    decay = f"{group['weight_decay']:g}" if "weight_decay" in group else "-"
    if group["frozen"]:
        return "frozen", "-", "-", "-"
    parts = [
        str(schedule)
        for schedule in (group["lr"], group["lr_sch"] or optimizer.lr_sch)
        if schedule is not None and not isinstance(schedule, float)
    ]
    return (
        f"{rate:.6g}",
        f"{group['lr_scale']:g}",
        decay,
        ", ".join(parts) or "constant",
    )


def _paths(paths: Sequence[str]) -> str:
    """The paths' common beginning and how many they are.

    Example:
        >>> _paths(["model.features.0.kernel", "model.features.0.bias"])
        'model.features.0.** (2)'
    """
    if len(paths) < 2:
        return paths[0] if paths else "none"
    split = [path.split(".") for path in paths]
    common = []
    for parts in zip(*split, strict=False):
        if len(set(parts)) > 1:
            break
        common.append(parts[0])
    return ".".join([*common, "**"]) + f" ({len(paths)})"


def modules_tree(attributes: dict[str, Any]) -> str:
    """One line for each module among a graph's attributes."""
    lines = []
    for name, value in attributes.items():
        params = Modules({name: value}).params
        if params:
            count = sum(math.prod(param.value.shape) for param in params)
            kind = type(value).__name__
            lines.append(f"  {name}: {kind}, {count:,} in {len(params)} parameters")
    return "\n".join(lines)
