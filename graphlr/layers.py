"""Drop-in layers: convolutions that are fast on CPU too, PyTorch's BatchNorm.

XLA has no CPU kernel for depthwise convolutions and a slow one for 1×1 kernels, so
on CPU `Conv` writes both differently: as a sum of shifted slices and as one matrix
product. Other platforms get `jax.lax.conv_general_dilated` untouched. Parameters
have the names and shapes of `nnx.Conv` and `nnx.BatchNorm`: checkpoints fit both.
"""

import functools
import operator
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

__all__ = ["BatchNorm", "Conv", "conv_general_dilated", "depthwise_conv"]

_NHWC = ("NHWC", "HWIO", "NHWC")


def _plan_axis(
    size: int, window: int, stride: int, pads: tuple[int, int]
) -> tuple[list[int], int, tuple[int, int, int]]:
    """Return the kernel positions that meet data, the output size, and the padding.

    A position that only ever sees padding is left out, and the padding is what the
    others read, no more: a negative amount crops.
    """
    span = max(0, (size + sum(pads) - window) // stride + 1)
    offsets = [stride * i - pads[0] for i in range(span)]
    taps = [i for i in range(window) if any(0 <= i + at < size for at in offsets)]
    if not taps:
        return [], span, (0, 0, 0)
    return taps, span, (-offsets[0] - taps[0], offsets[-1] + taps[-1] + 1 - size, 0)


def depthwise_conv(
    x: jax.Array,
    kernel: jax.Array,
    strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
) -> jax.Array:
    """Convolve every channel with its own filter, as a sum of shifted slices.

    One multiply-add per kernel position, over the whole image at once. It is
    ordinary traced code: every derivative and `jax.vmap` follow from it. On CPU it
    is tens of times faster than the grouped convolution; on GPU and TPU it is not
    the right form, which is why `Conv` uses it on CPU only.

    Args:
        x: the images, `(batch, height, width, channels)`, floating.
        kernel: one filter per channel, `(height, width, 1, channels)`.
        strides: the steps along height and width.
        padding: the zeros `(before, after)` along height and width.

    Returns:
        `(batch, out_height, out_width, channels)` in the dtype of `x`. Half
        precision is accumulated in float32.

    Example:
        >>> import jax.numpy as jnp
        >>> x, kernel = jnp.ones((1, 4, 4, 8)), jnp.ones((3, 3, 1, 8))
        >>> y = depthwise_conv(x, kernel, (2, 2), ((1, 1), (1, 1)))
        >>> y[0, :, :, 0].tolist()
        [[4.0, 6.0], [6.0, 9.0]]
    """
    batch, *sizes, channels = x.shape
    plans = map(_plan_axis, sizes, kernel.shape[:2], strides, padding)
    (rows, height, vertical), (columns, width, horizontal) = plans
    if not rows or not columns:
        return jnp.zeros((batch, height, width, channels), x.dtype)

    # Pad once, so that every tap is a plain slice: a pad per tap takes 3 times longer.
    wide = jnp.promote_types(x.dtype, jnp.float32)
    edges = [(0, 0, 0), vertical, horizontal, (0, 0, 0)]
    padded = lax.pad(x.astype(wide), jnp.zeros((), wide), edges)
    weights = kernel.astype(wide)
    extent = strides[0] * (height - 1) + 1, strides[1] * (width - 1) + 1

    def tap(row: int, column: int) -> jax.Array:
        top, left = row - rows[0], column - columns[0]
        window = lax.slice(
            padded,
            (0, top, left, 0),
            (batch, top + extent[0], left + extent[1], channels),
            (1, *strides, 1),
        )
        # Broadcast by hand: implicitly, a 1×1 image would leave the gradient a sum over
        # the batch axis alone, which XLA does four times slower.
        return window * lax.broadcast_in_dim(weights[row, column, 0], window.shape, [3])

    taps = (tap(row, column) for row in rows for column in columns)
    return functools.reduce(operator.add, taps).astype(x.dtype)


def _pointwise_conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Return the 1×1 convolution as one matrix product over all pixels."""
    *pixels, channels = x.shape
    product = x.reshape(-1, channels) @ kernel.reshape(channels, -1)
    return product.reshape(*pixels, kernel.shape[-1])


def _is_plain(
    lhs: jax.Array,
    rhs: jax.Array,
    dimension_numbers: Any = None,
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    precision: Any = None,
    **others: Any,
) -> bool:
    """Whether this is an undilated NHWC convolution of floats and nothing more."""
    del precision  # of no effect on CPU: products are never taken in fewer bits there
    return (
        lhs.ndim == rhs.ndim == 4
        and lhs.dtype == rhs.dtype
        and jnp.issubdtype(lhs.dtype, jnp.floating)
        and lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
        == lax.conv_dimension_numbers(lhs.shape, rhs.shape, _NHWC)
        and {*(lhs_dilation or ()), *(rhs_dilation or ())} <= {1}
        and all(value is None for value in others.values())
    )


def conv_general_dilated(
    lhs: jax.Array,
    rhs: jax.Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    *,
    feature_group_count: int = 1,
    **options: Any,
) -> jax.Array:
    """Return `jax.lax.conv_general_dilated(...)`, in its fastest form on CPU.

    Depthwise and 1×1 convolutions of NHWC floats are computed as in `Conv` on CPU.
    Everything else, and every other platform, is the original: the choice is made
    when the program is lowered, so a program exported for another platform is right
    too. Hand it to any `nnx` or Linen convolution as its `conv_general_dilated`.

    Arguments and result are those of `jax.lax.conv_general_dilated`.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> fast = {"conv_general_dilated": conv_general_dilated}
        >>> conv = nnx.Conv(8, 4, (1, 1), **fast, rngs=nnx.Rngs(0))
        >>> conv(jnp.ones((1, 5, 5, 8))).shape
        (1, 5, 5, 4)
    """
    native = functools.partial(
        lax.conv_general_dilated,
        window_strides=window_strides,
        padding=padding,
        feature_group_count=feature_group_count,
        **options,
    )
    if not _is_plain(lhs, rhs, **options):
        return native(lhs, rhs)

    strides, window, channels = tuple(window_strides), rhs.shape[:2], lhs.shape[-1]
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(lhs.shape[1:3], window, strides, padding)
    unpadded = not any(map(any, padding))
    if rhs.shape[2:] == (1, channels) and feature_group_count == channels:
        fast = functools.partial(depthwise_conv, strides=strides, padding=padding)
    elif window == strides == (1, 1) and unpadded and rhs.shape[2] == channels:
        fast = _pointwise_conv
    else:
        return native(lhs, rhs)
    return lax.platform_dependent(lhs, rhs, cpu=fast, default=native)


class Conv(nnx.Conv):
    """An `nnx.Conv` that computes depthwise and 1×1 kernels fast on CPU as well.

    Same arguments, parameters and results. `padding=1` is PyTorch's symmetric
    padding; the default `"SAME"` pads strided images differently from PyTorch. A
    convolution is depthwise if `feature_group_count`, `in_features` and
    `out_features` are equal.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> conv = Conv(
        ...     8, 8, (3, 3), 2, padding=1, feature_group_count=8, rngs=nnx.Rngs(0)
        ... )
        >>> conv(jnp.ones((1, 5, 5, 8))).shape, conv.kernel.shape
        ((1, 3, 3, 8), (3, 3, 1, 8))
    """

    def __init__(self, *args: Any, **kwargs: Any):
        kwargs.setdefault("conv_general_dilated", conv_general_dilated)
        super().__init__(*args, **kwargs)


class BatchNorm(nnx.BatchNorm):
    """An `nnx.BatchNorm` with the constants and running variance of PyTorch.

    `momentum=0.9` keeps nine tenths of the old statistics: it is PyTorch's 0.1.
    What differs from `nnx.BatchNorm`: the default `momentum`; the variance is computed
    in two passes, which stays right where the mean is thousands of times the
    deviation; and the *running* variance is the unbiased one, as in
    `torch.nn.BatchNorm2d` and OneFlow (the batch itself is normalised by the biased
    one, in all of them).

    Raises:
        ValueError: in training, if there is only one value per channel, whose
            variance does not exist.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> norm = BatchNorm(1, rngs=nnx.Rngs(0))
        >>> _ = norm(jnp.array([[0.0], [2.0]]))
        >>> round(float(norm.mean[0]), 4), round(float(norm.var[0]), 4)
        (0.1, 1.1)
    """

    def __init__(
        self,
        num_features: int,
        *,
        momentum: float = 0.9,
        epsilon: float = 1e-5,
        use_fast_variance: bool = False,
        **kwargs: Any,
    ):
        super().__init__(
            num_features,
            momentum=momentum,
            epsilon=epsilon,
            use_fast_variance=use_fast_variance,
            **kwargs,
        )
        # nnx keeps float32 statistics even of a float64 layer, and warns at each step.
        dtype = jnp.promote_types(self.param_dtype, jnp.float32)
        self.mean = nnx.BatchStat(jnp.zeros(num_features, dtype))
        self.var = nnx.BatchStat(jnp.ones(num_features, dtype))

    def __call__(
        self,
        x: jax.Array,
        use_running_average: bool | None = None,
        *,
        mask: jax.Array | None = None,
    ) -> jax.Array:
        """Normalise `x`; in training, by its own statistics, which are recorded."""
        if use_running_average is None:
            use_running_average = self.use_running_average
        if use_running_average:
            return super().__call__(x, True, mask=mask)

        count = self._values_per_channel(x, mask)
        if isinstance(count, int) and count < 2:
            raise ValueError(
                "BatchNorm needs more than one value per channel in training, got "
                f"x.shape={x.shape}: use a larger batch or image, or model.eval()"
            )
        kept = self.momentum * self.var[...]
        y = super().__call__(x, use_running_average, mask=mask)
        # What was just added is the biased variance of the batch: n/(n-1) unbiases it.
        unbias = count / jnp.maximum(count - 1, 1)
        self.var[...] = kept + (self.var[...] - kept) * unbias
        return y

    def _values_per_channel(self, x: jax.Array, mask: jax.Array | None) -> Any:
        count = x.size // self.num_features
        if mask is not None:
            axes = tuple(axis for axis in range(x.ndim) if axis != self.axis % x.ndim)
            count = jnp.broadcast_to(mask, x.shape).sum(axes)
        if self.axis_name is None:
            return count
        return lax.psum(count, self.axis_name, axis_index_groups=self.axis_index_groups)
