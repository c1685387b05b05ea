"""flax.nnx models trained as one compiled step, with parameter groups."""

from graphlr import data as data
from graphlr import groups as groups
from graphlr import layers as layers
from graphlr import models as models
from graphlr import optim as optim
from graphlr import report as report
from graphlr.graph import Graph as Graph

__version__ = "0.1.0"

__all__ = [
    "Graph",
    "data",
    "groups",
    "layers",
    "models",
    "optim",
    "report",
]
