"""What `print(graph)` and a notebook show: modules, groups with rates, programs."""

from __future__ import annotations

import html as escaping
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from flax import nnx

from graphlr.engine.optimizers import Optimizers
from graphlr.engine.program import Program, cost_of
from graphlr.engine.programs import Asked
from graphlr.engine.runner import Runner
from graphlr.groups.group import ParamGroup
from graphlr.groups.labels import label_params
from graphlr.groups.paths import Param
from graphlr.modules.tree import Modules
from graphlr.modules.variables import as_arrays
from graphlr.optim.optimizer import Optimizer
from graphlr.step.definition import Definition
from graphlr.step.signature import Build

_COLUMNS = ("group", "parameters", "count", "lr now", "lr_scale", "decay", "schedule")
_PROGRAM_COLUMNS = ("compiled for", "compile time", "FLOPs", "bytes moved", "temporary")
_DEPTH, _CHILDREN, _SHAPES = 3, 8, 4  # how much of a tree is shown

Rows = Sequence[Sequence[str]]


def table(rows: Rows) -> str:
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


def html_table(rows: Rows) -> str:
    """Rows as HTML; the first row is the head.

    Example:
        >>> html_table([("lr",), ("<1",)])
        '<table><tr><th>lr</th></tr><tr><td>&lt;1</td></tr></table>'
    """

    def line(cells: Sequence[str], tag: str) -> str:
        inside = "".join(f"<{tag}>{escaping.escape(cell)}</{tag}>" for cell in cells)
        return f"<tr>{inside}</tr>"

    head, *body = rows
    return (
        f"<table>{line(head, 'th')}{''.join(line(row, 'td') for row in body)}</table>"
    )


def groups_rows(modules: Modules, optimizers: Optimizers) -> Rows:
    """One row a group: which parameters, how many, learning rate now, schedule."""
    groups, rates = optimizers.groups, optimizers.lr
    chosen = label_params(modules.params, [group for _, group, _ in groups])
    paths: list[list[str]] = [[] for _ in groups]
    for path, i in chosen.items():
        paths[i].append(path)
    sizes = {param.path: _size(param.value) for param in modules.params}
    rows: list[Sequence[str]] = [_COLUMNS]
    for (name, group, optimizer), held in zip(groups, paths, strict=True):
        count = sum(sizes[path] for path in held)
        written = str(group.selector)
        by_name = written.startswith(("'", "re.compile"))
        several = by_name and len(held) > 1
        shown = f"{written} ({len(held)})" if several else _paths(held)
        numbers = _numbers(group, optimizer, rates[name])
        rows.append((name, shown, f"{count:,}", *numbers))
    return rows


def _size(variable: nnx.Variable) -> int:
    return math.prod(np.shape(variable.get_value()))


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


def modules_tree(attributes: Mapping[str, Any]) -> str:
    """The modules among a graph's attributes, with parameters and shapes.

    Deep trees and long lists are cut, small modules show every shape.
    """
    params = Modules(attributes).params
    lines: list[str] = []
    for name, value in attributes.items():
        inside = _inside(params, name)
        if inside:
            _add_module(lines, name, value, name, inside)
    return "\n".join(lines)


def _inside(params: Sequence[Param], path: str) -> list[Param]:
    """Those of `params` that are at `path` or below it."""
    return [p for p in params if p.path == path or p.path.startswith(f"{path}.")]


def _add_module(
    lines: list[str], name: str, value: object, path: str, params: Sequence[Param]
) -> None:
    """Add what `value`, which is at `path` and holds `params`, looks like."""
    depth = path.count(".") + 1
    indent = "  " * depth
    count = sum(_size(param.value) for param in params)
    title = f"{indent}{name}: {type(value).__name__}, {count:,} in {len(params)}"
    if len(params) <= _SHAPES:
        shapes = (
            f"{p.path[len(path) + 1 :]} {_shape(p.value)}".strip() for p in params
        )
        lines.append(f"{title} parameters: {', '.join(shapes)}")
        return
    lines.append(f"{title} parameters")
    # By the next part of their paths, so that each child looks at its own alone.
    parts: defaultdict[str, list[Param]] = defaultdict(list)
    for param in params:
        parts[_first(param.path[len(path) + 1 :])].append(param)
    inside = [
        (key, child, below)
        for key, child in _children(value)
        if (below := _inside(parts[_first(str(key))], f"{path}.{key}"))
    ]
    deeper = any(not isinstance(child, nnx.Variable) for _, child, _ in inside)
    shown = inside[:_CHILDREN] if depth < _DEPTH and deeper else []
    for key, child, below in shown:
        _add_module(lines, str(key), child, f"{path}.{key}", below)
    if shown and len(inside) > len(shown):
        lines.append(f"{indent}  ... and {len(inside) - len(shown)} more")


def _first(path: str) -> str:
    return path.partition(".")[0]


def _children(value: object) -> list[tuple[Any, Any]]:
    """What a module, list, tuple or dict holds, by the names in paths."""
    if isinstance(value, dict):
        return list(value.items())
    if isinstance(value, list | tuple | nnx.List):
        return list(enumerate(value))
    held = vars(value).items() if hasattr(value, "__dict__") else ()
    return [(k, v) for k, v in held if isinstance(v, nnx.Pytree | nnx.Variable)]


def _shape(variable: nnx.Variable) -> str:
    (array,) = as_arrays([variable])
    return f"{array.dtype}{list(array.shape)}"


def _programs_rows(runner: Runner, build: Build) -> Rows:
    """One row for each compiled step: for what, how long it took, what it costs."""
    rows: list[Sequence[str]] = [_PROGRAM_COLUMNS]
    for (signature, steps), program in runner.programs.items():
        given = signature.describe(build).items()
        listed = ", ".join(f"{name} {kind}" for name, kind in given) or "no arguments"
        cost = cost_of(program)
        rows.append(
            (
                f"{steps} steps of {listed}" if steps else listed,
                f"{program.trace_seconds + program.compile_seconds:.1f} s",
                _amount(cost.get("flops"), ""),
                _amount(cost.get("bytes"), "B"),
                _amount(cost.get("temporary_memory"), "B"),
            )
        )
    return rows


def _amount(number: float | None, unit: str) -> str:
    """`2.00 GB`; `-` where the platform doesn't tell."""
    if number is None:
        return "-"
    for factor, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= factor:
            return f"{number / factor:.2f} {prefix}{unit}".rstrip()
    return f"{number:.0f} {unit}".rstrip()


# --- a whole graph --------------------------------------------------------------------


def text(runner: Runner, definition: Definition) -> str:
    """What `print(graph)` shows."""
    tables, faults = _tables(runner, definition)
    title, tree = _title(runner, definition), modules_tree(definition.attributes())
    parts = [title, tree, *map(table, tables)]
    return "\n".join([*filter(None, parts), *faults, repr(runner.programs.compiles)])


def html(runner: Runner, definition: Definition) -> str:
    """What a notebook shows."""
    tables, faults = _tables(runner, definition)
    tree = escaping.escape(modules_tree(definition.attributes()))
    lines = [*faults, repr(runner.programs.compiles)]
    parts = [
        f"<b>{escaping.escape(_title(runner, definition))}</b>",
        f"<details><summary>modules</summary><pre>{tree}</pre></details>",
        *map(html_table, tables),
        *(f"<p>{escaping.escape(line)}</p>" for line in lines),
    ]
    return "".join(parts)


def print_program(runner: Runner, level: int, what: Asked, program: Program) -> None:
    """Print what was just compiled; see `Graph.debug` for the levels."""
    record = runner.programs.compiles.records[-1]
    print(
        f"{what.definition.name}: traced in {record.trace_seconds:.2f} s, compiled in "
        f"{record.compile_seconds:.2f} s: {record.why}"
    )
    if level >= 1:
        print(text(runner, what.definition))
    if level >= 2:
        print(runner.traced(what).jaxpr)
    if level >= 3:
        print(program.compiled.as_text())


def _title(runner: Runner, definition: Definition) -> str:
    mode = "train" if runner.training_mode else "eval"
    skips = runner.live.carried.skips
    skipped = int(skips.total) if skips is not None else 0
    count = f", {skipped} skipped" if skipped else ""
    step = f"step {runner.optimizers.step}{count}"
    return f"{definition.name} ({mode}, {step}; config: {runner.config})"


def _tables(runner: Runner, definition: Definition) -> tuple[list[Rows], list[str]]:
    """Groups and programs, and what a call would say of groups: printing can't fail."""
    tables, faults = list[Rows](), list[str]()
    try:
        if runner.optimizers:
            modules = Modules(definition.attributes())
            tables.append(groups_rows(modules, runner.optimizers))
    except ValueError as error:
        faults.append(f"  {error}")
    if runner.programs.last is not None:
        tables.append(_programs_rows(runner, definition.build))
    return tables, faults
