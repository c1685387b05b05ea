"""Gradient transformations that optax lacks or computes differently from PyTorch.

Each is a plain `optax.GradientTransformation` whose numbers may be traced. Where a
rule counts steps, it counts them per parameter: a state field named `steps`, int32[n],
holds one count for each of the n parameters in leaf order, so that a parameter that
joins late starts its own bias correction at 1.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

Number = float | jax.Array


def _no_steps(params: Any) -> jax.Array:
    return jnp.zeros(len(jax.tree.leaves(params)), jnp.int32)


def _unzip(tree: Any, outer: Any, width: int) -> tuple[Any, ...]:
    """Tree of tuples to tuple of trees."""
    leaves = jax.tree.structure(outer).flatten_up_to(tree)
    return tuple(
        jax.tree.unflatten(jax.tree.structure(outer), [leaf[i] for leaf in leaves])
        for i in range(width)
    )


def _like(tree: Any, values: jax.Array) -> Any:
    """One entry of the vector `values` for each leaf of `tree`."""
    return jax.tree.unflatten(jax.tree.structure(tree), list(values))


class MomentumState(NamedTuple):
    """The momentum buffers, and how many steps each parameter has taken."""

    momentum: Any
    steps: jax.Array


def scale_by_momentum(
    momentum: Number, dampening: Number = 0.0, *, nesterov: bool = False
) -> optax.GradientTransformation:
    """Momentum as PyTorch's SGD computes it: the first step is not dampened.

    `buf = g` at a parameter's first step, then `buf = momentum * buf + (1 - dampening)
    * g`; the update is `buf`, or `g + momentum * buf` with `nesterov`. `optax.trace`
    has no dampening; OneFlow dampens the first step too.

    Source: `torch.optim.SGD`.

    Example:
        >>> tx = scale_by_momentum(0.9, dampening=0.5)
        >>> state = tx.init({"w": jnp.zeros(1)})
        >>> for g in (1.0, 1.0):
        ...     update, state = tx.update({"w": jnp.array([g])}, state)
        ...     print(float(update["w"][0]).__round__(3))
        1.0
        1.4
    """

    def init(params: Any) -> MomentumState:
        return MomentumState(jax.tree.map(jnp.zeros_like, params), _no_steps(params))

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        del params

        def one(g: jax.Array, buf: jax.Array, first: jax.Array) -> tuple[Any, Any]:
            new = jnp.where(first, g, momentum * buf + (1 - dampening) * g)
            new = new.astype(buf.dtype)
            return (g + momentum * new if nesterov else new), new

        first = _like(updates, state.steps == 0)
        both = jax.tree.map(one, updates, state.momentum, first)
        directions, buffers = _unzip(both, updates, 2)
        return directions, MomentumState(buffers, state.steps + 1)

    return optax.GradientTransformation(init, update)


class AdamState(NamedTuple):
    """First and second moments, the largest second moment, steps per parameter."""

    exp_avg: Any
    exp_avg_sq: Any
    max_exp_avg_sq: Any  # None unless amsgrad
    steps: jax.Array


def scale_by_adam(
    b1: Number = 0.9,
    b2: Number = 0.999,
    eps: Number = 1e-8,
    *,
    amsgrad: bool = False,
    bias_correction: bool = True,
) -> optax.GradientTransformation:
    """Adam's direction as PyTorch computes it.

    `m += (1 - b1) (g - m)`, `v = b2 v + (1 - b2) g²`, and the update is
    `(m / c1) / (sqrt(v) / sqrt(c2) + eps)` with `c = 1 - bᵗ`, t the parameter's own
    step. Against `optax.scale_by_adam`: `c` is computed as `-expm1(t log b)`, which
    float32 does not cancel; t is per parameter; `amsgrad` takes the maximum of the raw
    `v`, not of the corrected one.

    Source: `torch.optim.Adam`; Kingma and Ba 2015, Reddi et al. 2018 (amsgrad).
    `bias_correction=False` is OneFlow's `do_bias_correction=False`.

    Example:
        >>> tx = scale_by_adam()
        >>> state = tx.init({"w": jnp.zeros(1)})
        >>> update, state = tx.update({"w": jnp.array([0.25])}, state)
        >>> float(update["w"][0]).__round__(5), state.steps.tolist()
        (1.0, [1])
    """

    def init(params: Any) -> AdamState:
        zeros = jax.tree.map(jnp.zeros_like, params)
        return AdamState(zeros, zeros, zeros if amsgrad else None, _no_steps(params))

    def correction(b: Number, steps: jax.Array) -> jax.Array:
        if not bias_correction:
            return jnp.ones(steps.shape)
        log = math.log(b) if isinstance(b, float) and b > 0 else jnp.log(b)
        return -jnp.expm1(steps * log)

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        del params
        steps = state.steps + 1
        c1, c2 = (_like(updates, correction(b, steps)) for b in (b1, b2))

        def one(g: Any, m: Any, v: Any, c1: Any, c2: Any, vmax: Any = None) -> Any:
            new_m = (m + (1 - b1) * (g - m)).astype(m.dtype)
            new_v = (b2 * v + (1 - b2) * g * g).astype(v.dtype)
            new_vmax = new_v if vmax is None else jnp.maximum(vmax, new_v)
            scaled = jnp.sqrt(new_vmax) / jnp.sqrt(c2) + eps
            return (new_m / c1) / scaled, new_m, new_v, new_vmax

        trees = (updates, state.exp_avg, state.exp_avg_sq, c1, c2)
        extra = (state.max_exp_avg_sq,) if amsgrad else ()
        stepped = jax.tree.map(one, *trees, *extra)
        directions, m, v, vmax = _unzip(stepped, updates, 4)
        return directions, AdamState(m, v, vmax if amsgrad else None, steps)

    return optax.GradientTransformation(init, update)


def clip_by_norm(
    max_norm: Number, norm_type: float = 2.0
) -> optax.GradientTransformation:
    """Scale all gradients by `min(max_norm / (norm + 1e-6), 1)`, norm over all of them.

    `norm_type` p is any number: `(sum |g|^p)^(1/p)`; `inf` is the largest and `-inf`
    the smallest absolute value. `optax.clip_by_global_norm` has no 1e-6 and only p=2.

    Source: `torch.nn.utils.clip_grad_norm_`; OneFlow's `clip_grad_max_norm`.

    Example:
        >>> tx = clip_by_norm(1.0)
        >>> clipped, _ = tx.update({"w": jnp.array([3.0, 4.0])}, tx.init(None))
        >>> clipped["w"].round(3).tolist()
        [0.6000000238418579, 0.800000011920929]
    """

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        del params
        coefficient = jnp.minimum(max_norm / (norm(updates, norm_type) + 1e-6), 1.0)
        clipped = jax.tree.map(lambda g: (g * coefficient).astype(g.dtype), updates)
        return clipped, state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def norm(tree: Any, norm_type: float = 2.0) -> jax.Array:
    """The p-norm over every number of `tree`, accumulated in float32 or wider.

    Example:
        >>> float(norm({"a": jnp.array([3.0]), "b": jnp.array([4.0])}))
        5.0
    """
    sizes = [
        jnp.abs(leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32)))
        for leaf in jax.tree.leaves(tree)
    ]
    if math.isinf(norm_type):
        most, each = (jnp.maximum, jnp.max) if norm_type > 0 else (jnp.minimum, jnp.min)
        worst = [each(size) for size in sizes]
        result = worst[0]
        for other in worst[1:]:
            result = most(result, other)
        return result
    if norm_type == 2.0:
        return jnp.sqrt(sum(jnp.sum(size * size) for size in sizes))
    return sum(jnp.sum(size**norm_type) for size in sizes) ** (1 / norm_type)


def centralize() -> optax.GradientTransformation:
    """Subtract from a convolution's gradient its mean over all but the last axis.

    The last axis of an nnx kernel is the output channel (`optax.centralize` keeps the
    first, PyTorch's). Parameters that are no convolution kernels (fewer than three
    axes) are an error.

    Source: MindSpore's `grad_centralization`; Yong et al. 2020.

    Raises:
        ValueError: A gradient has fewer than three axes.

    Example:
        >>> tx = centralize()
        >>> g, _ = tx.update({"k": jnp.arange(4.0).reshape(1, 4, 1)}, tx.init(None))
        >>> g["k"].ravel().tolist()
        [-1.5, -0.5, 0.5, 1.5]
    """

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        del params
        for path, g in jax.tree_util.tree_leaves_with_path(updates):
            if g.ndim < 3:
                raise ValueError(
                    f"grad_centralization is for convolution kernels, and "
                    f"{jax.tree_util.keystr(path)} has shape {g.shape}: give it a "
                    "group of its own, {'params': '**.bias'}"
                )
        return jax.tree.map(
            lambda g: g - g.mean(axis=range(g.ndim - 1), keepdims=True), updates
        ), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)
