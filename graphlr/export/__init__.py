"""A graph's step as one file that runs without the model's Python code.

`graph.export(path, ...)` writes the traced step as StableHLO over flat arrays, with its
state; `load(path)` gives an object that is called like the graph. The batch size is a
symbol, and one program serves several platforms.
"""

from graphlr.export.batch_sizes import ExportError as ExportError
from graphlr.export.exported import ExportedGraph as ExportedGraph
from graphlr.export.loading import load as load

__all__ = ["ExportError", "ExportedGraph", "load"]
