"""The systems that are measured, by name: what makes one step of each.

Nothing heavy is imported here: a worker imports only what its own system needs.
"""

import importlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

Step = Callable[[], float]  # one step, its loss read


class System(NamedTuple):
    """How to make a step; `System(...)(size)` makes it.

    Attributes:
        module: In this folder.
        function: In that module: takes `size` and the options, returns a `Step`.
        options: Of this system.
    """

    module: str
    function: str
    options: Mapping[str, Any] = {}

    def load(self) -> Callable[..., Step]:
        """The function, its module imported."""
        module = importlib.import_module(f"benchmarks.systems.{self.module}")
        return getattr(module, self.function)

    def __call__(self, size: int, **options: Any) -> Step:
        """One step for batches of `size` images; or whatever `size` means to it."""
        return self.load()(size, **self.options, **options)


def _mobilenet(kind: str, layers: str = "graphlr") -> System:
    return System("mobilenet", "step", {"kind": kind, "layers": layers})


def _torch(compiled: bool) -> System:
    return System("torch", "step", {"compiled": compiled})


MOBILENET: dict[str, System] = {  # a training step for `size` images
    "graphlr": _mobilenet("graph"),
    "graphlr, exported": System("mobilenet", "exported"),
    "flat jax.jit": _mobilenet("flat"),
    "stock flax, jax.jit": _mobilenet("tree", "flax"),
    "stock flax, nnx.jit + nnx.Optimizer": _mobilenet("nnx", "flax"),
    "nnx.jit + nnx.Optimizer, graphlr's layers": _mobilenet("nnx"),
    "nnx.cached_partial, graphlr's layers": _mobilenet("cached"),
    "PyTorch eager, channels-last": _torch(compiled=False),
    "torch.compile, channels-last": _torch(compiled=True),
    "Keras on JAX, one group": System("keras", "step"),
}

DISPATCH: dict[str, System] = {  # a step of a tiny network of `size` arrays
    name: System("small", "step", {"kind": kind})
    for name, kind in {
        "graphlr": "graph",
        "flat jax.jit": "flat",
        "flat jax.jit, Variable.set_value": "variables",
        "nnx.jit + nnx.Optimizer": "nnx",
        "nnx.cached_partial": "cached",
        "jax.jit over nested dicts": "tree",
        "graphlr, scan of 32": "scan",
    }.items()
}

KERNELS = ("depthwise 3×3", "1×1", "depthwise 5×5", "dilated", "channel multiplier")
CONVOLUTIONS: dict[str, System] = {  # forward and backward for `size` images
    f"{kernel}, {by}": System("convolutions", "step", {"kernel": kernel, "by": by})
    for kernel in KERNELS
    for by in ("graphlr.layers", "jax.lax")
}

SYSTEMS: dict[str, System] = {
    **MOBILENET,
    **{f"{name}, tiny": system for name, system in DISPATCH.items()},
    **CONVOLUTIONS,
}
