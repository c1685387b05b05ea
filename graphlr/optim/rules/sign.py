"""Rules that keep only a sign: of each gradient, or of a whole matrix."""

from __future__ import annotations

import optax

from graphlr.optim.optimizer import Optimizer
from graphlr.optim.transforms.gradients import ascend
from graphlr.optim.transforms.leaves import Number
from graphlr.optim.transforms.sign import (
    scale_by_lion,
    scale_by_muon,
    scale_by_rprop,
    scale_by_shape,
)


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
        """The whole step."""
        return optax.chain(ascend(maximize), scale_by_rprop(lr, etas, step_sizes))


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
        """The direction of a step."""
        return optax.chain(
            ascend(maximize),
            scale_by_lion(*betas),
            optax.add_decayed_weights(weight_decay),
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
        """The direction of a step."""
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
