"""What happens to gradients before a rule sees them: sign, clip, centring."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import optax

from graphlr.optim.transforms.leaves import Number


def ascend(maximize: bool) -> optax.GradientTransformation:
    """The gradient's sign for `maximize`: before all else that a rule does.

    Example:
        >>> tx = ascend(True)
        >>> tx.update(jnp.ones(1), tx.init(None))[0].tolist()
        [-1.0]
    """
    return optax.scale(-1.0) if maximize else optax.identity()


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

    def update(
        updates: optax.Updates,
        state: optax.OptState,
        params: optax.Params | None = None,
    ) -> tuple[optax.Updates, optax.OptState]:
        del params
        coefficient = jnp.minimum(max_norm / (norm(updates, norm_type) + 1e-6), 1.0)
        clipped = jax.tree.map(lambda g: (g * coefficient).astype(g.dtype), updates)
        return clipped, state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def norm(tree: optax.Params, norm_type: float = 2.0) -> jax.Array:
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

    def update(
        updates: optax.Updates,
        state: optax.OptState,
        params: optax.Params | None = None,
    ) -> tuple[optax.Updates, optax.OptState]:
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
