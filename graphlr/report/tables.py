"""Tables for a terminal."""

from __future__ import annotations

from rich.box import SIMPLE
from rich.table import Table

from graphlr.report.history import Stats


def stats_table(stats: Stats) -> Table:
    """A table of `graph.group_stats`, for `StepProgress.print` or `rich.print`.

    Example:
        >>> row = {"grad_norm": 2.0, "update_norm": 0.1, "update_ratio": 0.001}
        >>> table = stats_table({"head": {**row, "lr": 0.05}})
        >>> [column.header for column in table.columns]
        ['group', 'grad_norm', 'update_norm', 'update_ratio', 'lr']
    """
    table = Table("group", box=SIMPLE)
    for column in next(iter(stats.values()), {}):
        table.add_column(column, justify="right")
    for name, group in stats.items():
        table.add_row(name, *(f"{value:.3g}" for value in group.values()))
    return table
