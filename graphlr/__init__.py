"""flax.nnx models trained as one compiled step, with parameter groups."""

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

__version__ = "0.1.0"

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
