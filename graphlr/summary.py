"""What `print(graph)` and a notebook show: modules, groups with rates, programs."""

from __future__ import annotations

import html as escaping
import math
from collections.abc import Mapping, Sequence
from typing import Any

from flax import nnx

from graphlr.groups import ParamGroup, label_params
from graphlr.modules import Modules
from graphlr.optim.optimizer import Optimizer
from graphlr.program import cost_of
from graphlr.runner import Runner
from graphlr.signature import Signature
from graphlr.state import group_names

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


def groups_rows(modules: Modules, optimizers: Sequence[Optimizer]) -> Rows:
    """One row a group: which parameters, how many, learning rate now, schedule."""
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
    return rows


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
    lines: list[str] = []
    for name, value in attributes.items():
        if Modules({name: value}).params:
            _add_module(lines, name, value, depth=1)
    return "\n".join(lines)


def _add_module(lines: list[str], name: str, value: Any, depth: int) -> None:
    indent = "  " * depth
    params = Modules({"_": value}).params
    count = sum(math.prod(param.value.shape) for param in params)
    title = f"{indent}{name}: {type(value).__name__}, {count:,} in {len(params)}"
    children = [(k, v) for k, v in _children(value) if Modules({"_": v}).params]
    deeper = [k for k, v in children if not isinstance(v, nnx.Variable)]
    if len(params) <= _SHAPES:
        shapes = (f"{p.path[2:]} {_shape(p.value)}" for p in params)
        lines.append(f"{title} parameters: {', '.join(shapes)}")
        return
    lines.append(f"{title} parameters")
    shown = children[:_CHILDREN] if depth < _DEPTH and deeper else []
    for key, child in shown:
        _add_module(lines, str(key), child, depth + 1)
    if shown and len(children) > len(shown):
        lines.append(f"{indent}  ... and {len(children) - len(shown)} more")


def _children(value: Any) -> list[tuple[Any, Any]]:
    """What a module, list, tuple or dict holds."""
    if isinstance(value, dict):
        return list(value.items())
    if isinstance(value, list | tuple | nnx.List):
        return list(enumerate(value))
    held = vars(value).items() if hasattr(value, "__dict__") else ()
    return [(k, v) for k, v in held if isinstance(v, nnx.Pytree | nnx.Variable)]


def _shape(variable: nnx.Variable) -> str:
    value = variable.get_value()
    return f"{value.dtype}{list(value.shape)}"


def _programs_rows(runner: Runner) -> Rows:
    """One row for each compiled step: for what, how long it took, what it costs."""
    rows: list[Sequence[str]] = [_PROGRAM_COLUMNS]
    for (signature, steps), program in runner.programs.items():
        given = signature.describe(runner.build).items()
        listed = ", ".join(f"{name} {kind}" for name, kind in given) or "no arguments"
        cost = cost_of(program)
        rows.append(
            (
                f"{steps} steps of {listed}" if steps else listed,
                f"{sum(program.seconds):.1f} s",
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


def text(runner: Runner) -> str:
    """What `print(graph)` shows."""
    tables, faults = _tables(runner)
    parts = [_title(runner), modules_tree(runner.attributes()), *map(table, tables)]
    return "\n".join([*filter(None, parts), *faults, repr(runner.compiles)])


def html(runner: Runner) -> str:
    """What a notebook shows."""
    tables, faults = _tables(runner)
    tree = escaping.escape(modules_tree(runner.attributes()))
    lines = [*faults, repr(runner.compiles)]
    parts = [
        f"<b>{escaping.escape(_title(runner))}</b>",
        f"<details><summary>modules</summary><pre>{tree}</pre></details>",
        *map(html_table, tables),
        *(f"<p>{escaping.escape(line)}</p>" for line in lines),
    ]
    return "".join(parts)


def print_program(
    runner: Runner, level: int, signature: Signature, steps: int, batch: Sequence[Any]
) -> None:
    """Print what was compiled last; see `Graph.debug` for the levels."""
    record, program = runner.compiles.records[-1], runner.programs[signature, steps]
    print(
        f"{runner.name}: traced in {record.trace_seconds:.2f} s, compiled in "
        f"{record.compile_seconds:.2f} s: {record.why}"
    )
    if level >= 1:
        print(text(runner))
    if level >= 2:
        print(runner.jaxpr(signature, batch))
    if level >= 3:
        compiled: Any = program.run
        print(compiled.as_text())


def _title(runner: Runner) -> str:
    mode = "train" if runner.training_mode else "eval"
    step = max((optimizer.step for optimizer in runner.optimizers), default=0)
    skipped = int(runner.memory.get("skipped.total", 0))
    count = f", {skipped} skipped" if skipped else ""
    return f"{runner.name} ({mode}, step {step}{count}; config: {runner.config})"


def _tables(runner: Runner) -> tuple[list[Rows], list[str]]:
    """Groups and programs, and what a call would say of groups: printing can't fail."""
    tables, faults = list[Rows](), list[str]()
    try:
        if runner.optimizers:
            modules = Modules(runner.attributes())
            tables.append(groups_rows(modules, runner.optimizers))
    except ValueError as error:
        faults.append(f"  {error}")
    if runner.programs:
        tables.append(_programs_rows(runner))
    return tables, faults
