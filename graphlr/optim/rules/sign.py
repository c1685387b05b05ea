"""Rules that keep only a sign: of each gradient, or of a whole matrix."""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from graphlr.messages import listing
from graphlr.optim.optimizer import Optimizer
from graphlr.optim.transforms.gradients import ascend, norm
from graphlr.optim.transforms.leaves import (
    NewSlots,
    Number,
    Slots,
    per_leaf,
)


class RpropState(NamedTuple):
    """The last gradients, the step sizes, steps of each parameter."""

    prev: optax.Updates
    step_size: optax.Updates
    steps: jax.Array


def scale_by_rprop(
    lr: Number, etas: tuple[Number, Number], step_sizes: tuple[Number, Number]
) -> optax.GradientTransformation:
    """The whole step of Rprop: `-sign(g) * step_size`, one size for each number.

    The size starts as `lr`, is multiplied by `etas[1]` while the gradient keeps its
    sign and by `etas[0]` where it flips, and is kept inside `step_sizes`. Where it
    flips nothing moves, and the next step counts as without a sign. The learning rate
    is read at a parameter's first step only. `optax.scale_by_rprop` emits each update
    one step late.

    Source: `torch.optim.Rprop`; Riedmiller and Braun 1993.

    Example:
        >>> tx = scale_by_rprop(0.1, (0.5, 1.2), (1e-6, 50.0))
        >>> update, state = tx.update(jnp.array([3.0, -4.0]), tx.init(jnp.ones(2)))
        >>> update.round(3).tolist()
        [-0.10000000149011612, 0.10000000149011612]
    """

    def step(
        g: jax.Array, _: object, slots: Slots, first: jax.Array
    ) -> tuple[jax.Array, NewSlots]:
        prev, size = slots
        agree = jnp.sign(g * prev)
        factor = jnp.where(agree < 0, etas[0], jnp.where(agree > 0, etas[1], 1.0))
        size = jnp.clip(jnp.where(first, lr, size) * factor, *step_sizes)
        g = jnp.where(agree < 0, 0.0, g)
        return -jnp.sign(g) * size, (g, size)

    def start(p: jax.Array) -> NewSlots:
        return jnp.zeros_like(p), jnp.zeros_like(p)

    return per_leaf(RpropState, start, step, lambda t: (t == 1,))


class Rprop(Optimizer, lr=1e-2):
    """A step size for each number, which grows while the gradient keeps its sign.

    Multiplied by `etas[1]` while the sign stays, by `etas[0]` where it flips (there
    nothing moves), kept inside `step_sizes`; `w -= sign(g) * size`. For whole-batch
    gradients. The learning rate, with its schedule and `lr_scale`, is the *first* size
    and read at a parameter's first step only. A NaN gradient makes NaN (PyTorch skips
    it and keeps the NaN). `optax.rprop` emits each update one step late.

    Source: `torch.optim.Rprop`; Riedmiller and Braun 1993.

    Example:
        >>> Rprop("**", step_sizes=(1e-6, 1)).param_groups[0]["step_sizes"]
        (1e-06, 1.0)
    """

    @staticmethod
    def rule(
        etas: tuple[Number, Number] = (0.5, 1.2),
        step_sizes: tuple[Number, Number] = (1e-6, 50.0),
        *,
        lr: Number,
        maximize: bool = False,
    ) -> optax.GradientTransformation:
        """The whole step: against the sign, as far as each number's own size."""
        return optax.chain(ascend(maximize), scale_by_rprop(lr, etas, step_sizes))


class LionState(NamedTuple):
    """The averages of gradients."""

    exp_avg: optax.Updates


def scale_by_lion(b1: Number = 0.9, b2: Number = 0.99) -> optax.GradientTransformation:
    """`sign(b1 * m + (1 - b1) * g)`, then `m = b2 * m + (1 - b2) * g`.

    `optax.scale_by_lion` is the same with a count for the whole group, which nothing
    needs and which would differ for a parameter that joins late.

    Source: Chen et al. 2023, algorithm 2.

    Example:
        >>> tx = scale_by_lion()
        >>> update, state = tx.update(jnp.array([0.5, -2.0]), tx.init(jnp.ones(2)))
        >>> update.tolist()
        [1.0, -1.0]
    """

    def step(g: jax.Array, _: object, slots: Slots) -> tuple[jax.Array, NewSlots]:
        (m,) = slots
        direction = jnp.sign(b1 * m + (1 - b1) * g)
        return direction, (b2 * m + (1 - b2) * g,)

    return per_leaf(LionState, lambda p: (jnp.zeros_like(p),), step)


class Lion(Optimizer, lr=1e-4):
    """The sign of an average: every number moves by `lr`.

    `w -= lr * (sign(b1 m + (1 - b1) g) + weight_decay * w)`; then
    `m = b2 m + (1 - b2) g`. Against AdamW a learning rate 3 to 10 times smaller and a
    decay as many times larger are usual. `optax.lion` has a default decay of 1e-3.

    Source: Chen et al. 2023, "Symbolic discovery of optimization algorithms",
    algorithm 2, defaults of its reference implementation.

    Example:
        >>> Lion("**", weight_decay=0.1).lr()
        {'group0': 0.0001}
    """

    @staticmethod
    def rule(
        betas: tuple[Number, Number] = (0.9, 0.99),
        weight_decay: Number = 0.0,
        *,
        maximize: bool = False,
    ) -> optax.GradientTransformation:
        """The sign of an average, with the decay added to it."""
        return optax.chain(
            ascend(maximize),
            scale_by_lion(*betas),
            optax.add_decayed_weights(weight_decay),
        )


class MuonState(NamedTuple):
    """The averages of gradients."""

    momentum: optax.Updates


def scale_by_muon(
    momentum: Number,
    coefficients: tuple[Number, Number, Number],
    eps: Number,
    *,
    steps: int,
    nesterov: bool,
) -> optax.GradientTransformation:
    """The averaged gradient of each matrix with its singular values near 1.

    `buf += (1 - momentum) * (g - buf)`; then Newton-Schulz iterations in bfloat16 on
    `buf`, or on `(1 - momentum) * g + momentum * buf` with `nesterov`. What optax does
    differs: `optax.contrib.muon` corrects the average's bias and iterates in the
    gradients' dtype.

    Source: `torch.optim.Muon`; Jordan et al. 2024.

    Raises:
        ValueError: A parameter is no matrix.

    Example:
        >>> numbers = (3.4445, -4.775, 2.0315)
        >>> tx = scale_by_muon(0.95, numbers, 1e-7, steps=5, nesterov=True)
        >>> w = {"w": jnp.array([[2.0, 0.0], [0.0, 0.1]])}
        >>> update, _ = tx.update(w, tx.init(w))
        >>> bool(jnp.abs(update["w"].diagonal() - 1).max() < 0.4)
        True
    """

    def step(g: jax.Array, _: object, slots: Slots) -> tuple[jax.Array, NewSlots]:
        (buf,) = slots
        buf = buf + (1 - momentum) * (g - buf)
        direction = g + momentum * (buf - g) if nesterov else buf
        matrix = orthogonalize(direction, coefficients, eps, steps)
        return matrix.astype(g.dtype), (buf,)

    inner = per_leaf(MuonState, lambda p: (jnp.zeros_like(p),), step)

    def init(params: optax.Params) -> optax.OptState:
        _check_matrices(params)
        return inner.init(params)

    return optax.GradientTransformation(init, inner.update)


def orthogonalize(
    matrix: jax.Array,
    coefficients: tuple[Number, Number, Number],
    eps: Number,
    steps: int,
) -> jax.Array:
    """`U V^T`, nearly, of a matrix `U S V^T`, by Newton-Schulz iterations: bfloat16.

    Each iteration makes `a X + (b A + c A A) X` with `A = X X^T` and
    `(a, b, c) = coefficients`, summed in float32.

    Example:
        >>> orthogonalize(jnp.zeros((2, 3)), (3.4, -4.8, 2.0), 1e-7, 5).shape
        (2, 3)
    """
    a, b, c = coefficients
    tall = matrix.shape[0] > matrix.shape[1]
    x = (matrix.T if tall else matrix).astype(jnp.bfloat16)
    size = jnp.maximum(norm(x).astype(jnp.bfloat16), eps)
    x = (x / size).astype(jnp.bfloat16)
    for _ in range(steps):
        gram = _product(x, x.T).astype(jnp.bfloat16)
        inner = (b * gram + c * _product(gram, gram)).astype(jnp.bfloat16)
        x = (a * x + _product(inner, x)).astype(jnp.bfloat16)
    return x.T if tall else x


def _product(x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.matmul(x, y, preferred_element_type=jnp.float32)


def scale_by_shape(
    adjust_lr_fn: str | None = None, output_axis: int = 0
) -> optax.GradientTransformation:
    """Muon's factor for a matrix of `outputs` by `inputs`.

    `sqrt(max(1, outputs / inputs))` for None and "original", `0.2 * sqrt(max(outputs,
    inputs))` for "match_rms_adamw".

    Source: `torch.optim.Muon`.

    Example:
        >>> tx = scale_by_shape(output_axis=1)
        >>> float(tx.update(jnp.ones((1, 4)), tx.init(None))[0][0, 0])
        2.0
    """

    def one(d: jax.Array, _: object) -> jax.Array:
        outputs, inputs = d.shape[output_axis], d.shape[output_axis - 1]
        if adjust_lr_fn == "match_rms_adamw":
            return d * (0.2 * math.sqrt(max(outputs, inputs)))
        return d * math.sqrt(max(1.0, outputs / inputs))

    return optax.stateless(functools.partial(jax.tree.map, one))


def _check_matrices(params: optax.Params) -> None:
    wrong = [
        (".".join(str(getattr(key, "key", key)) for key in path), leaf.shape)
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
        if len(leaf.shape) != 2
    ]
    if wrong:
        places = listing(f"{path} {shape}" for path, shape in wrong)
        raise ValueError(
            "Muon only supports 2D parameters whereas we found a parameter with size: "
            f"{wrong[0][1]}. Not matrices: {places}. Give them a group with another "
            'rule, {"params": ..., "optimizer": glr.optim.AdamW}'
        )


class Muon(Optimizer):
    """Matrices only: the averaged gradient with all its singular values near 1.

    `buf += (1 - momentum) (g - buf)`; `u` is `buf`, or with `nesterov`
    `(1 - momentum) g + momentum buf`, after `ns_steps` Newton-Schulz iterations in
    bfloat16;
    `w -= lr * (factor * u + weight_decay * w)`. The factor is
    `sqrt(max(1, outputs / inputs))`, and `0.2 sqrt(max(outputs, inputs))` for
    `adjust_lr_fn="match_rms_adamw"`, which lets AdamW's learning rates be used.

    PyTorch's weights are (outputs, inputs) and so is the default, `output_axis=0`; an
    nnx kernel is (inputs, outputs): give `output_axis=1` for the same steps. Anything
    that isn't a matrix belongs to another rule, as do embeddings and the last layer.
    `optax.contrib.muon` corrects the average's bias and iterates in another precision.

    Source: `torch.optim.Muon`; Jordan et al. 2024.

    Raises:
        ValueError: A parameter is no matrix, when the graph or the optax state is made.

    Example:
        >>> from graphlr.optim import AdamW
        >>> Muon(
        ...     [
        ...         {"params": "blocks.**.kernel", "output_axis": 1},
        ...         {"params": ..., "optimizer": AdamW, "lr": 1e-3},
        ...     ],
        ...     lr=0.02,
        ... ).lr()
        {'group0': 0.02, 'group1': 0.001}
    """

    @staticmethod
    def rule(
        weight_decay: Number = 0.1,
        momentum: Number = 0.95,
        nesterov: bool = True,
        ns_coefficients: tuple[Number, Number, Number] = (3.4445, -4.775, 2.0315),
        eps: Number = 1e-7,
        ns_steps: int = 5,
        adjust_lr_fn: str | None = None,
        *,
        output_axis: int = 0,
    ) -> optax.GradientTransformation:
        """The averaged gradient made orthogonal, scaled by its shape, and the decay."""
        if adjust_lr_fn not in (None, "original", "match_rms_adamw"):
            raise ValueError(
                f"Adjust learning rate function {adjust_lr_fn} is not supported: "
                "give adjust_lr_fn='original' or 'match_rms_adamw'"
            )
        if not isinstance(ns_steps, int) or not 0 <= ns_steps < 100:
            raise ValueError(
                f"ns_steps is {ns_steps!r}: Number of steps must be less than 100 for "
                "computational efficiency, give ns_steps=5"
            )
        if output_axis not in (0, 1):
            raise ValueError(
                f"output_axis is {output_axis!r}: give 0 for (outputs, inputs), 1 for "
                "an nnx kernel, (inputs, outputs)"
            )
        return optax.chain(
            scale_by_muon(
                momentum, ns_coefficients, eps, steps=ns_steps, nesterov=nesterov
            ),
            scale_by_shape(adjust_lr_fn, output_axis),
            optax.add_decayed_weights(weight_decay),
        )
