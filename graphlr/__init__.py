"""flax.nnx models trained as one compiled step, with parameter groups.

Names are loaded when they are first used, so importing graphlr loads nothing else.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from graphlr import average as average
    from graphlr import data as data
    from graphlr import export as export
    from graphlr import groups as groups
    from graphlr import layers as layers
    from graphlr import models as models
    from graphlr import optim as optim
    from graphlr import precision as precision
    from graphlr import report as report
    from graphlr import runtime as runtime
    from graphlr.graph import Graph as Graph
    from graphlr.precision import GradScaler as GradScaler
    from graphlr.precision import StaticGradScaler as StaticGradScaler

__version__ = "0.2.0"

__all__ = [
    "GradScaler",
    "Graph",
    "StaticGradScaler",
    "average",
    "data",
    "export",
    "groups",
    "layers",
    "models",
    "optim",
    "precision",
    "report",
    "runtime",
]
_ROOMS = {"GradScaler": "precision", "Graph": "graph", "StaticGradScaler": "precision"}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    room = importlib.import_module(f"{__name__}.{_ROOMS.get(name, name)}")
    value = getattr(room, name) if name in _ROOMS else room
    globals()[name] = value  # so that it is asked for once
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
