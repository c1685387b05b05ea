"""What people look at: a progress bar, tables, pictures.

Names are loaded when they are first used: `print(graph)` needs none of them.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from graphlr.report.history import History as History
    from graphlr.report.plots import plot_history as plot_history
    from graphlr.report.plots import plot_lr as plot_lr
    from graphlr.report.progress import StepProgress as StepProgress
    from graphlr.report.tables import stats_table as stats_table

_ROOMS = {
    "History": "history",
    "StepProgress": "progress",
    "plot_history": "plots",
    "plot_lr": "plots",
    "stats_table": "tables",
}
__all__ = ["History", "StepProgress", "plot_history", "plot_lr", "stats_table"]


def __getattr__(name: str) -> object:
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    room = importlib.import_module(f"{__name__}.{_ROOMS[name]}")
    return getattr(room, name)


def __dir__() -> list[str]:
    return [*__all__]
