"""PyTorch's BatchNorm, with a derivative that reads the images half as often."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from graphlr.platforms import ordered_on_cpu


def _wide(values: jax.Array, x: jax.Array) -> jax.Array:
    """One value per channel, at every pixel.

    By hand: with implicit broadcasting the gradient of a 1×1 image would be a sum over
    the batch axis alone, which XLA's CPU backend does ten times slower.
    """
    return lax.broadcast_in_dim(values, x.shape, [x.ndim - 1])


# Functions of `lax` and not operators, here and below: jax traces them much faster.
def _mean(x: jax.Array) -> jax.Array:
    total = lax.reduce_sum(x, range(x.ndim - 1))
    return lax.div(total, lax.full_like(total, x.size // x.shape[-1]))


def _inverse(var: jax.Array, epsilon: float) -> jax.Array:
    return lax.rsqrt(lax.add(var, lax.full_like(var, epsilon)))


class _Moments(NamedTuple):
    """Of an image `(..., channels)`, by channel.

    Attributes:
        centred: The image less its mean.
        mean: Of its pixels.
        var: Their biased variance.
    """

    centred: jax.Array
    mean: jax.Array
    var: jax.Array


def _moments(x: jax.Array) -> _Moments:
    """The moments of an image, in two passes.

    Everything that follows is to read the centred image. XLA for CPU would subtract the
    mean again wherever it can, and so keep both images for the backward pass.
    """
    mean = _mean(x)
    (centred,) = ordered_on_cpu(lax.sub(x, _wide(mean, x)))
    return _Moments(centred, mean, _mean(lax.square(centred)))


def _scaled(
    moments: _Moments, scale: jax.Array, bias: jax.Array, epsilon: float
) -> jax.Array:
    x = moments.centred
    factor = lax.mul(_inverse(moments.var, epsilon), scale)
    return lax.add(lax.mul(x, _wide(factor, x)), _wide(bias, x))


@functools.partial(jax.custom_jvp, nondiff_argnums=(3,))
def _normalize(
    x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Normalise `x`, `(..., channels)`, by the mean and biased variance of its pixels.

    Returns:
        The result, the mean and the variance.
    """
    moments = _moments(x)
    return _scaled(moments, scale, bias, epsilon), moments.mean, moments.var


@_normalize.defjvp
def _normalize_jvp(epsilon: float, primals: Any, tangents: Any) -> Any:
    """Ioffe and Szegedy (2015), section 3, with one sum for each of two parameters.

    Differentiating the definition takes twice the sums: of the gradient and of its
    product with the image, once for scale and bias and once for mean and variance.
    """
    x, scale, bias = primals
    dx, dscale, dbias = tangents
    moments = _moments(x)
    centred, mean, var = moments
    inverse = _inverse(var, epsilon)
    scaled = lax.mul(dx, _wide(lax.mul(inverse, scale), x))
    shift = lax.sub(dbias, _mean(scaled))
    product = _mean(lax.mul(centred, scaled))
    slope = lax.mul(inverse, lax.sub(dscale, lax.mul(inverse, product)))
    y = _scaled(moments, scale, bias, epsilon)
    dy = lax.add(scaled, _wide(shift, x))
    dy = lax.add(dy, lax.mul(centred, _wide(slope, x)))
    dvar = _mean(lax.mul(centred, lax.add(dx, dx)))
    return (y, mean, var), (dy, _mean(dx), dvar)


# Traced once for each shape; XLA sees no difference.
@functools.partial(jax.jit, static_argnums=(5, 6))
def _normalize_and_record(
    x: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    mean: jax.Array,
    var: jax.Array,
    momentum: float,
    epsilon: float,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Normalise `x`; the running mean and variance move towards those of its pixels.

    The running variance is the unbiased one: n/(n-1) times that of n pixels.
    """
    y, *moments = _normalize(x, scale, bias, epsilon)
    count = x.size // x.shape[-1]
    shares = 1 - momentum, (1 - momentum) * count / (count - 1)
    # Behind a barrier they aren't part of the kernels: XLA compiles equal kernels once.
    shares = lax.optimization_barrier([jnp.full((), s, x.dtype) for s in shares])
    mean, var = (
        momentum * old + share * now
        for old, share, now in zip((mean, var), shares, moments, strict=True)
    )
    return y, mean, var


def _replace(statistic: nnx.Variable[jax.Array], value: jax.Array) -> None:
    """`statistic[...] = value`, which asks a tracer for its origin: 1 ms each time."""
    statistic.set_value(value.astype(statistic.dtype))


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
        real = jnp.issubdtype(x.dtype, jnp.floating)
        plain = real and mask is None and self.axis_name is None
        if plain and self.axis in (-1, x.ndim - 1) and not self.use_fast_variance:
            return self._normalize(x)
        kept = self.momentum * self.var[...]
        y = super().__call__(x, False, mask=mask)
        # What was just added is the biased variance of the batch: n/(n-1) unbiases it.
        unbias = count / jnp.maximum(count - 1, 1)
        _replace(self.var, kept + (self.var[...] - kept) * unbias)
        return y

    def _normalize(self, x: jax.Array) -> jax.Array:
        """What `nnx.BatchNorm` does in training, with statistics like its."""
        mean, var, *params = (
            None if variable is None else variable[...]
            for variable in (self.mean, self.var, self.scale, self.bias)
        )
        x, _, _, *params = self.promote_dtype((x, mean, var, *params), dtype=self.dtype)
        dtype, wide = x.dtype, jnp.promote_types(x.dtype, jnp.float32)
        scale, bias = (
            jnp.full(self.num_features, default, wide) if p is None else p.astype(wide)
            for p, default in zip(params, (1, 0), strict=True)
        )
        y, mean, var = _normalize_and_record(
            x.astype(wide), scale, bias, mean, var, self.momentum, self.epsilon
        )
        _replace(self.mean, mean)
        _replace(self.var, var)
        return y.astype(dtype)

    def _values_per_channel(self, x: jax.Array, mask: jax.Array | None) -> Any:
        count = x.size // self.num_features
        if mask is not None:
            axes = tuple(axis for axis in range(x.ndim) if axis != self.axis % x.ndim)
            count = jnp.broadcast_to(mask, x.shape).sum(axes)
        if self.axis_name is None:
            return count
        return lax.psum(count, self.axis_name, axis_index_groups=self.axis_index_groups)
