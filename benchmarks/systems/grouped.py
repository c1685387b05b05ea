"""Training steps with many parameter groups, each with a learning rate of its own."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

import graphlr as glr
from benchmarks.systems import Step
from benchmarks.systems.training import MOMENTUM, Task, Train

RATE = 1e-6  # so small that thousands of steps leave the parameters as they are
KINDS = ("SGD momentum", "AdamW")


@jax.custom_vjp
def itself(params: Any) -> jax.Array:
    """Zero, with the parameters themselves as its gradient."""
    del params
    return jnp.zeros(())


itself.defvjp(lambda params: (itself(params), params), lambda params, _: (params,))


def update_of(task: Task) -> Task:
    """The same parameters, and nothing to compute but their update."""

    def loss(model: nnx.Module, *_: Any) -> jax.Array:
        return itself(jax.tree.leaves(nnx.state(model, nnx.Param)))

    return task._replace(loss=loss)


# --- the two systems ------------------------------------------------------------------


def cut(items: Sequence[Any], count: int) -> list[list[Any]]:
    """`count` runs of nearly equal length, none of them empty."""
    ends = [len(items) * i // count for i in range(count + 1)]
    return [list(items[ends[i] : ends[i + 1]]) for i in range(count)]


def scale(group: int) -> float:
    """The `lr_scale` of a group: of each another one."""
    return 1 + group / 1000


def optimizer_of(
    model: nnx.Module, count: int, kind: str = KINDS[0]
) -> glr.optim.Optimizer:
    """graphlr's, with `count` groups of parameters in the order of their tree."""
    state = nnx.state(model, nnx.Param)
    params = jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, nnx.Variable))
    groups = [
        {"params": some, "lr_scale": scale(i)}
        for i, some in enumerate(cut(params, count))
    ]
    if kind == "AdamW":
        return glr.optim.AdamW(groups, lr=RATE)
    return glr.optim.SGD(groups, lr=RATE, momentum=MOMENTUM)


def graphlr(task: Task, kind: str, count: int) -> Step:
    """A Graph with `count` groups."""
    graph = Train(task, optimizer_of(task.model, count, kind))
    return lambda: float(graph(*task.batch))


def usual_loop(task: Task, kind: str, count: int) -> Step:
    """`optax.multi_transform`, its state and the parameters as nested trees."""
    graphdef, params, others = nnx.split(task.model, nnx.Param, ...)
    params, others = nnx.to_pure_dict(params), nnx.to_pure_dict(others)
    leaves, tree = jax.tree.flatten(params)
    labels = [str(i) for i, some in enumerate(cut(leaves, count)) for _ in some]
    rules = {"SGD momentum": functools.partial(optax.sgd, momentum=MOMENTUM)}
    rule = rules.get(kind, optax.adamw)
    tx = optax.multi_transform(
        {str(i): rule(RATE * scale(i)) for i in range(count)},
        jax.tree.unflatten(tree, labels),
    )

    @functools.partial(jax.jit, donate_argnums=(0, 1, 2))
    def update(params: Any, slots: Any, others: Any, *batch: Any) -> Any:
        def loss_of(params: Any) -> Any:
            model = nnx.merge(graphdef, params, others)
            loss = task.loss(model, *batch)
            return loss, nnx.to_pure_dict(nnx.state(model, nnx.Not(nnx.Param)))

        (loss, new), grads = jax.value_and_grad(loss_of, has_aux=True)(params)
        updates, slots = tx.update(grads, slots, params)
        return optax.apply_updates(params, updates), slots, new, loss

    held: list[Any] = [params, jax.jit(tx.init)(params), others]

    def step() -> float:
        *held[:], loss = update(*held, *task.batch)
        return float(loss)

    return step


def changing(task: Task, count: int) -> tuple[Step, glr.Graph]:
    """A Graph of which every group gets a new lr before each call."""
    optimizer = optimizer_of(task.model, count)
    graph, rates = Train(task, optimizer), [RATE, 2 * RATE]

    def step() -> float:
        for group in optimizer.param_groups:
            group["lr"] = rates[0]
        rates.reverse()
        return float(graph(*task.batch))

    return step, graph
