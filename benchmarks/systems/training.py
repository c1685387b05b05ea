"""One training step, written the ways in which flax.nnx models are trained.

Every function takes a `Task` and returns a step. All of them do the same: SGD with
momentum 0.9, each group's rate scaled.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import graphlr as glr
from benchmarks.systems import Step
from graphlr.runtime import compiler_options

LR, MOMENTUM = 0.01, 0.9


class Task(NamedTuple):
    """What is trained.

    Attributes:
        model: The network.
        loss: Of the network and a batch.
        batch: `(x, y)`.
        scales: The factor of each group's rate.
        group_of: Name of the group of a parameter, by its path.
    """

    model: nnx.Module
    loss: Callable[..., jax.Array]
    batch: tuple[Any, Any]
    scales: Mapping[str, float]
    group_of: Callable[[tuple[Any, ...]], str]


class Train(glr.Graph):
    """A task as a graph.

    Args:
        task: What is trained.
        optimizer: By default SGD with the task's groups.
        **options: Of `config`.
    """

    def __init__(self, task: Task, optimizer: Any = None, **options: Any):
        super().__init__()
        self.model, self.loss = task.model, task.loss
        self.add_optimizer(optimizer or sgd(task))
        for name, value in options.items():
            setattr(self.config, name, value)

    def build(self, x: Any, y: Any) -> jax.Array:
        """The loss of a batch."""
        loss = self.loss(self.model, x, y)
        self.backward(loss)
        return loss


def sgd(task: Task) -> glr.optim.SGD:
    """The optimizer of a task, with its groups."""

    def group(name: str, scale: float) -> dict[str, Any]:
        def inside(path: tuple[Any, ...], _: object) -> bool:
            return task.group_of(path) == name

        return {"params": inside, "name": name, "lr_scale": scale}

    groups = [group(name, scale) for name, scale in task.scales.items()]
    return glr.optim.SGD(groups, lr=LR, momentum=MOMENTUM)


def graph_step(task: Task) -> Step:
    """`graph(x, y)`."""
    graph = Train(task)
    return lambda: float(graph(*task.batch))


def scan_step(task: Task, steps: int) -> Step:
    """`graph.scan`: many steps in one run."""
    graph = Train(task)
    x, y = (np.stack([array] * steps) for array in task.batch)
    return lambda: float(graph.scan(x, y)[-1])


def nnx_step(task: Task, cached: bool = False) -> Step:
    """`nnx.jit` and `nnx.Optimizer`, the usual loop; or with `nnx.cached_partial`."""
    rules: dict[Any, Any] = {
        name: optax.sgd(LR * s, MOMENTUM) for name, s in task.scales.items()
    }
    (rule, *others) = rules.values()
    if others:

        def labels(state: nnx.State) -> nnx.State:
            return nnx.map_state(lambda path, _: task.group_of(path), state)

        rule = optax.multi_transform(rules, labels)
    optimizer = nnx.Optimizer(task.model, rule, wrt=nnx.Param)

    @nnx.jit
    def train(model: nnx.Module, optimizer: nnx.Optimizer, x: Any, y: Any) -> Any:
        loss, grads = nnx.value_and_grad(task.loss)(model, x, y)
        optimizer.update(model, grads)
        return loss

    if cached:
        step = nnx.cached_partial(train, task.model, optimizer)
        return lambda: float(step(*task.batch))
    return lambda: float(train(task.model, optimizer, *task.batch))


def by_hand(task: Task) -> tuple[Any, np.ndarray, Callable[..., Any]]:
    """The step as a pure function of nested dictionaries.

    Returns:
        The state `(parameters, momentum, others)`; the groups' rates; and
        `(state, rates, x, y) -> (loss, state)`.
    """
    definition, params, others = nnx.split(task.model, nnx.Param, ...)
    names = list(task.scales)
    params, others = nnx.to_pure_dict(params), nnx.to_pure_dict(others)
    group = jax.tree_util.tree_map_with_path(
        lambda path, _: names.index(task.group_of(tuple(p.key for p in path))), params
    )

    def loss_of(params: Any, others: Any, x: Any, y: Any) -> Any:
        model = nnx.merge(definition, params, others)
        loss = task.loss(model, x, y)
        return loss, nnx.to_pure_dict(nnx.state(model, nnx.Not(nnx.Param)))

    def step(state: Any, rates: jax.Array, x: Any, y: Any) -> Any:
        params, slots, others = state
        differentiate = jax.value_and_grad(loss_of, has_aux=True)
        (loss, others), grads = differentiate(params, others, x, y)
        slots = jax.tree.map(lambda slot, grad: MOMENTUM * slot + grad, slots, grads)
        params = jax.tree.map(lambda p, s, g: p - rates[g] * s, params, slots, group)
        return loss, (params, slots, others)

    rates = np.array([LR * s for s in task.scales.values()], np.float32)
    return (params, jax.tree.map(jnp.zeros_like, params), others), rates, step


def tree_step(task: Task) -> Step:
    """One `jax.jit`, nested dictionaries through its boundary, donated."""
    state, rates, step = by_hand(task)
    jitted, held = jax.jit(step, donate_argnums=0), [state]

    def call() -> float:
        loss, held[0] = jitted(held[0], rates, *task.batch)
        return float(loss)

    return call


def flattened(task: Task) -> tuple[list[jax.Array], np.ndarray, Callable[..., Any]]:
    """The same with the state as a flat list, compiled as graphlr compiles."""
    state, rates, step = by_hand(task)
    leaves, tree = jax.tree.flatten(state)

    def flat(leaves: list[jax.Array], rates: Any, x: Any, y: Any) -> Any:
        loss, state = step(jax.tree.unflatten(tree, leaves), rates, x, y)
        return loss, jax.tree.leaves(state)

    jitted = jax.jit(flat, donate_argnums=0, compiler_options=compiler_options())
    return leaves, rates, jitted


def flat_step(task: Task) -> Step:
    """One `jax.jit` over a flat list of arrays, donated: the least there is to do."""
    leaves, rates, jitted = flattened(task)

    def call() -> float:
        loss, leaves[:] = jitted(leaves, rates, *task.batch)
        return float(loss)

    return call


def variables_step(task: Task) -> Step:
    """The same, arrays read from and written to Variables by their public methods."""
    leaves, rates, jitted = flattened(task)
    variables = [nnx.Variable(leaf) for leaf in leaves]

    def call() -> float:
        arrays = [variable.get_value() for variable in variables]
        loss, arrays = jitted(arrays, rates, *task.batch)
        for variable, array in zip(variables, arrays, strict=True):
            variable.set_value(array)
        return float(loss)

    return call


KINDS: dict[str, Callable[[Task], Step]] = {
    "graph": graph_step,
    "flat": flat_step,
    "variables": variables_step,
    "tree": tree_step,
    "nnx": nnx_step,
    "cached": lambda task: nnx_step(task, cached=True),
    "scan": lambda task: scan_step(task, 32),
}
