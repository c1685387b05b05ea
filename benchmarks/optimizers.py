"""The update of every optimizer on MobileNetV2's parameters, beside its peers.

graphlr's `as_optax` and optax's own are jitted over flat lists of arrays, parameters
and slots donated, in this process; PyTorch's, `foreach` and `fused` where it has them,
run in processes of their own. All are given the same kind of gradients, which don't
change. Muon takes matrices only: of the 1×1 convolutions and the classifier.

Beside milliseconds: nanoseconds for a parameter, and for two optimizers how near they
come to the least memory traffic (gradient and parameter read, parameter written, each
slot read and written) at the rate at which this machine scales a large array in place.
"""

import argparse
import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import graphlr as glr
from benchmarks import timing
from benchmarks.roofline import copy_gbytes

RATE = 1e-6  # so small that thousands of steps leave the parameters as they are
MATRICES = "Muon"  # takes nothing else
FOREACH, FUSED, PLAIN = "foreach", "fused", "default"


class Case(NamedTuple):
    """An optimizer.

    Attributes:
        peer: Of optax: takes the rate; None if it has none.
        keys: What graphlr's and PyTorch's are given beside the rate.
        kind: The class in graphlr and PyTorch, if not the name of the case.
        torch: What of PyTorch's is measured.
        traffic: Bytes for a parameter that have to be moved.
    """

    peer: Callable[[Any], optax.GradientTransformation] | None = None
    keys: Mapping[str, Any] = {}
    kind: str = ""
    torch: Sequence[str] = (FOREACH,)
    traffic: int | None = None


MOMENTUM = {"momentum": 0.9}
CASES = {
    "SGD": Case(optax.sgd, torch=(FOREACH, FUSED)),
    "SGD momentum": Case(
        functools.partial(optax.sgd, **MOMENTUM), MOMENTUM, "SGD", (FOREACH, FUSED), 20
    ),
    "ASGD": Case(),
    "LARS": Case(optax.lars, torch=()),
    "Adam": Case(optax.adam, torch=(FOREACH, FUSED)),
    "AdamW": Case(optax.adamw, torch=(FOREACH, FUSED), traffic=28),
    "Adamax": Case(optax.adamax),
    "NAdam": Case(optax.nadam),
    "RAdam": Case(optax.radam),
    "LAMB": Case(optax.lamb, torch=()),
    "SparseAdam": Case(torch=()),
    "Adagrad": Case(optax.adagrad, torch=(FOREACH, FUSED)),
    "Adadelta": Case(optax.adadelta),
    "RMSprop": Case(optax.rmsprop),
    "Adafactor": Case(optax.adafactor),
    "Rprop": Case(optax.rprop),
    "Lion": Case(optax.lion, torch=()),
    "Muon": Case(optax.contrib.muon, torch=(PLAIN,)),
}


def shapes(name: str) -> list[tuple[int, ...]]:
    """Of MobileNetV2's parameters, or of those that are matrices for Muon."""
    make = functools.partial(glr.models.mobilenet_v2, 10)
    model = nnx.eval_shape(lambda: make(rngs=nnx.Rngs(0)))
    found = [leaf.shape for leaf in jax.tree.leaves(nnx.state(model, nnx.Param))]
    if name != MATRICES:
        return found
    return [s[-2:] for s in found if len(s) == 2 or s[:-2] == (1, 1)]


def arrays(name: str, seed: int) -> dict[str, jax.Array]:
    """Small random numbers in those shapes, by number."""
    random = np.random.default_rng(seed)
    return {
        str(i): jnp.asarray(0.01 * random.normal(size=shape), jnp.float32)
        for i, shape in enumerate(shapes(name))
    }


def jitted(tx: optax.GradientTransformation, name: str) -> Callable[[], object]:
    """An update over flat lists, donated; waited for."""
    params, grads = arrays(name, 0), arrays(name, 1)
    held, tree = jax.tree.flatten((params, jax.jit(tx.init)(params)))

    @functools.partial(jax.jit, donate_argnums=0)
    def update(leaves: list[jax.Array], grads: Any) -> list[jax.Array]:
        params, state = jax.tree.unflatten(tree, leaves)
        updates, state = tx.update(grads, state, params)
        return jax.tree.leaves((optax.apply_updates(params, updates), state))

    def step() -> object:
        held[:] = update(held, grads)
        return jax.block_until_ready(held[0])

    return step


def jax_steps(name: str) -> dict[str, Callable[[], object]]:
    """The update of graphlr and, if there is one, of optax."""
    case = CASES[name]
    kind = getattr(glr.optim, case.kind or name)
    ours = kind("**", lr=RATE, **case.keys).as_optax(arrays(name, 0))
    steps = {f"{name}, graphlr": jitted(ours, name)}
    if case.peer is not None:
        steps[f"{name}, optax"] = jitted(case.peer(RATE), name)
    return steps


def torch_step(name: str, way: str, device: str = "cpu") -> Callable[[], object]:
    """PyTorch's update of the same shapes; on other devices it is not waited for.

    Raises:
        ModuleNotFoundError: PyTorch is not installed.
        AttributeError: It doesn't have the optimizer.
    """
    import torch

    case = CASES[name]
    values = [0.01 * torch.randn(shape, device=device) for shape in shapes(name)]
    params = [torch.nn.Parameter(value) for value in values]
    for param in params:
        param.grad = 0.01 * torch.randn_like(param)
    kind = getattr(torch.optim, case.kind or name)
    ways = {} if way == PLAIN else {way: True}
    return kind(params, lr=RATE, **case.keys, **ways).step


def serve_torch(name: str, way: str) -> None:
    """In a process of its own: PyTorch's update, when told to."""
    try:
        step = torch_step(name, way)
        step()
    except (ModuleNotFoundError, AttributeError) as error:
        timing.serve({"skipped": str(error)}, lambda _: [])
    else:
        timing.serve({}, timing.Local(step).run)


def rows(
    name: str, rounds: int, each: int, skipped: dict[str, str]
) -> list[dict[str, Any]]:
    """A row for each way to run one optimizer, relative to graphlr."""
    steps = jax_steps(name)
    for step in steps.values():
        step()
    workers: dict[str, Any] = {key: timing.Local(step) for key, step in steps.items()}
    children = []
    for way in CASES[name].torch:
        row = f"{name}, PyTorch {way}"
        command = [sys.executable, "-m", "benchmarks.optimizers", name, way]
        try:
            workers[row] = timing.Worker(command)
            children.append(workers[row])
        except timing.UnavailableError as error:
            skipped[row] = str(error)
    samples = timing.take_turns(workers, rounds, each)
    for child in children:
        child.close()
    return timing.rows_of(samples, f"{name}, graphlr")


def figures(medians: Mapping[str, float], rate: float) -> dict[str, float]:
    """Nanoseconds for a parameter; what share of the memory's rate is used."""
    found = {"rate of scaling an array in place, GB/s": rate / 1e9}
    for name, milliseconds in medians.items():
        count = sum(map(np.prod, shapes(name)))
        found[f"{name}, graphlr: ns per parameter"] = 1e6 * milliseconds / count
        traffic = CASES[name].traffic
        if traffic:
            share = count * traffic / rate / (milliseconds / 1e3)
            found[f"{name}, graphlr: share of that rate at {traffic} B"] = share
    return found


def measure(options: argparse.Namespace) -> None:
    """Measure and save."""
    names = ["SGD momentum", "AdamW", "Muon"] if options.quick else list(CASES)
    turns = (3, 3) if options.quick else (20, 10)
    skipped = {
        f"{name}, optax": "has none of this definition"
        for name in names
        if CASES[name].peer is None
    }
    found = {name: rows(name, *turns, skipped) for name in names}
    medians = {name: some[0]["median_ms"] for name, some in found.items()}
    table = {
        "title": "update of MobileNetV2's parameters, by optimizer",
        "unit": "ms",
        "rows": [row for some in found.values() for row in some],
    }
    timing.save(
        "optimizers",
        "python -m benchmarks optimizers",
        options.results,
        tables=[table],
        figures=figures(medians, 1e9 * copy_gbytes()),
        skipped=skipped,
    )


if __name__ == "__main__":
    serve_torch(*sys.argv[1:])
