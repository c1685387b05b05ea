"""MobileNetV2 as it is trained on an accelerator: in two precisions, at two sizes.

A process of its own for each system: `python -m benchmarks.systems.accelerated POINT`,
POINT as JSON. `timing.Worker` is the other end.
"""

import json
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

import graphlr as glr
from benchmarks import optimizers, timing
from benchmarks.systems import Step, mobilenet
from benchmarks.systems.data import SCALES
from benchmarks.systems.grouped import optimizer_of
from benchmarks.systems.training import Task, Train, tree_step

SCAN = 32  # steps in one run


class Point(NamedTuple):
    """What one process measures.

    Attributes:
        system: One of `SYSTEMS`.
        platform: `gpu` or `cpu`.
        precision: `float32` (matrix products in TF32) or `bfloat16`, mixed.
        size: Pixels along each side of an image.
        batch: Images.
        profile: A folder for a trace of five steps, or nothing.
    """

    system: str
    platform: str
    precision: str = "float32"
    size: int = 32
    batch: int = 64
    profile: str = ""


def task(point: Point, dtype: Any = None) -> Task:
    """The network and a batch on the device."""
    model = glr.models.mobilenet_v2(10, rngs=nnx.Rngs(0), dtype=dtype)
    shape = (point.batch, point.size, point.size, 3)
    images = jax.random.normal(jax.random.key(0), shape)
    labels = jnp.arange(point.batch) % 10
    return mobilenet.task(1)._replace(model=model, batch=(images, labels))


def graph_of(what: Task, point: Point, groups: int | None = None) -> Train:
    """A Graph, with its usual three groups or with so many."""
    mixed = {} if point.precision == "float32" else {"amp": point.precision}
    optimizer = groups and optimizer_of(what.model, groups)
    return Train(what, optimizer, **mixed)


def graphlr(point: Point, groups: int | None = None) -> Step:
    """A call of a Graph."""
    what = task(point)
    graph = graph_of(what, point, groups)
    return lambda: float(graph(*what.batch))


def graphlr_scan(point: Point) -> Step:
    """`SCAN` steps of a Graph in one run."""
    what = task(point)
    graph = graph_of(what, point)
    batches = [jnp.stack([array] * SCAN) for array in what.batch]
    return lambda: float(graph.scan(*batches)[-1])


def by_hand(point: Point) -> Step:
    """One donated `jax.jit`; layers compute in 16 bits, parameters stay float32."""
    return tree_step(task(point, jnp.dtype(point.precision)))


def torch_compiled(point: Point) -> Step:
    """`torch.compile`, channels-last, autocast, fused SGD with three groups."""
    import torch

    from benchmarks.systems.torch import MobileNetV2

    torch.set_float32_matmul_precision("high")  # TF32, which is JAX's default
    device = "cuda" if point.platform == "gpu" else point.platform
    last = {"device": device, "memory_format": torch.channels_last}
    network = MobileNetV2(10).to(**last)
    parts = (network.features[0], network.features[1:], network.classifier)
    groups = [
        {"params": list(part.parameters()), "lr": 0.01 * scale}
        for part, scale in zip(parts, SCALES.values(), strict=True)
    ]
    optimizer = torch.optim.SGD(groups, lr=0.01, momentum=0.9, fused=True)
    images = torch.randn(point.batch, 3, point.size, point.size).to(**last)
    labels = (torch.arange(point.batch) % 10).to(device)
    model = torch.compile(network)
    mixed = point.precision != "float32"

    def step() -> float:
        optimizer.zero_grad()
        with torch.autocast(device, torch.bfloat16, enabled=mixed):
            loss = torch.nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def torch_update(point: Point, name: str) -> Callable[[], object]:
    """PyTorch's fused update alone."""
    import torch

    if point.platform != "gpu":
        return optimizers.torch_step(name, optimizers.FUSED)
    update = optimizers.torch_step(name, optimizers.FUSED, "cuda")

    def step() -> None:
        update()
        torch.cuda.synchronize()

    return step


UPDATES = ("SGD momentum", "AdamW")
SYSTEMS: dict[str, Callable[[Point], Callable[[], object]]] = {
    "graphlr": graphlr,
    "jax.jit by hand": by_hand,
    "torch.compile": torch_compiled,
    f"graphlr, scan of {SCAN}": graphlr_scan,
    "graphlr, 1 group": lambda point: graphlr(point, 1),
    "graphlr, 150 groups": lambda point: graphlr(point, 150),
}
for _name in UPDATES:
    for _peer in ("graphlr", "optax"):
        SYSTEMS[f"{_name}, {_peer}"] = lambda _, name=_name, key=f"{_name}, {_peer}": (
            optimizers.jax_steps(name)[key]
        )
    SYSTEMS[f"{_name}, PyTorch fused"] = lambda point, name=_name: torch_update(
        point, name
    )


def peak_memory(point: Point) -> float | None:
    """Bytes of the device's memory at most in use so far, where it is told."""
    if "PyTorch" in point.system or "torch" in point.system:
        import torch

        return torch.cuda.max_memory_allocated() if point.platform == "gpu" else None
    return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")


def main(argument: str) -> None:
    """Get ready, say so, answer."""
    point = Point(**json.loads(argument))
    try:
        step = SYSTEMS[point.system](point)
        timing.Local(step).run(2)
        if point.profile:
            with jax.profiler.trace(point.profile):
                timing.Local(step).run(5)
        ready = {"peak_bytes": peak_memory(point)}
    except (ModuleNotFoundError, RuntimeError) as error:  # out of memory is one
        ready = {"skipped": str(error).partition("\n")[0][:200]}
    timing.serve(ready, lambda times: timing.Local(step).run(times))


if __name__ == "__main__":
    main(sys.argv[1])
