"""MobileNetV2 (Sandler et al., 2018) with the structure and names of torchvision."""

import functools
import itertools
import math
import types
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import core
from jax.typing import DTypeLike

from graphlr.layers.batch_norm import BatchNorm
from graphlr.layers.conv import Conv

__all__ = ["MobileNetV2", "mobilenet_v2"]

# Expansion of the inner channels, output channels, blocks, stride of the first block.
_STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
# For layers whose initialisers need no key: taking 160 keys doubles the time to build.
_KEYLESS: Any = types.SimpleNamespace(params=lambda: None)


class _Sequential(nnx.List):
    """Layers applied one after another; paths are `0`, `1`, … as in PyTorch.

    `nnx.Sequential` would put a level named `layers` into every path.
    """

    def __call__(self, x: jax.Array) -> jax.Array:
        for layer in self:
            x = layer(x)
        return x


def _conv_norm(
    inputs: int,
    outputs: int,
    kernel: int = 1,
    stride: int = 1,
    groups: int = 1,
    **kwargs: Any,
) -> list[nnx.Module]:
    """A convolution with PyTorch's symmetric padding, and its BatchNorm."""
    conv = Conv(
        inputs,
        outputs,
        (kernel, kernel),
        stride,
        padding=kernel // 2,
        feature_group_count=groups,
        use_bias=False,
        kernel_init=nnx.initializers.zeros,  # drawn at the end, all at once
        **kwargs,
    )
    return [conv, BatchNorm(outputs, **kwargs)]


def _conv_norm_relu6(*args: int, **kwargs: Any) -> _Sequential:
    return _Sequential([*_conv_norm(*args, **kwargs), nnx.relu6])


def _convs(module: nnx.Module) -> list[Conv]:
    return [conv for _, conv in nnx.iter_modules(module) if isinstance(conv, Conv)]


def _draws(convs: Sequence[Conv], key: jax.Array) -> jax.Array:
    """A standard normal number for each weight; a draw each takes half a minute."""
    size = sum(math.prod(conv.kernel_shape) for conv in convs)
    return jax.random.normal(key, (size,), jnp.float32)


def _kaiming_normal(convs: Sequence[Conv], draws: Any) -> list[Any]:
    """Kernels with a deviation of sqrt(2 / fan_out), cut from `draws`."""
    ends = itertools.accumulate(math.prod(conv.kernel_shape) for conv in convs)
    kernels = []
    for conv, end in zip(convs, ends, strict=True):
        *window, _, outputs = shape = conv.kernel_shape
        deviation = math.sqrt(2 / (math.prod(window) * outputs))
        draw = draws[end - math.prod(shape) : end]
        kernels.append((deviation * draw).reshape(shape).astype(conv.param_dtype))
    return kernels


def _set_kernels(convs: Sequence[Conv], kernels: Sequence[jax.Array]) -> None:
    for conv, kernel in zip(convs, kernels, strict=True):
        conv.kernel.set_raw_value(kernel)


def _draw_kernels(module: nnx.Module, key: jax.Array) -> None:
    """Initialise every convolution in `module`."""
    convs = _convs(module)
    _set_kernels(convs, _kaiming_normal(convs, _draws(convs, key)))


class _InvertedResidual(nnx.Module):
    """Expand by a 1×1, filter each channel, project by a 1×1; add the input if it fits.

    The projection has no activation: that is the "linear bottleneck" of the paper.
    """

    def __init__(
        self, inputs: int, outputs: int, stride: int, expansion: int, **kwargs: Any
    ):
        inner = inputs * expansion
        expand = [_conv_norm_relu6(inputs, inner, **kwargs)] if expansion > 1 else []
        self.conv = _Sequential(
            [
                *expand,
                _conv_norm_relu6(inner, inner, 3, stride, inner, **kwargs),
                *_conv_norm(inner, outputs, **kwargs),
            ]
        )
        self.residual = stride == 1 and inputs == outputs

    def __call__(self, x: jax.Array) -> jax.Array:
        return x + self.conv(x) if self.residual else self.conv(x)


class MobileNetV2(nnx.Module):
    """The network; `mobilenet_v2` builds it quickly and documents the arguments.

    `features` is the convolutional trunk and `classifier` the dropout and linear head:
    both are modules, hence selectors of parameter groups. `draw(features, key)` gives
    the convolutions their kernels.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        width_mult: float = 1.0,
        dropout: float = 0.2,
        stem_stride: int = 2,
        *,
        rngs: nnx.Rngs,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        draw: Callable[[nnx.Module, jax.Array], None] = _draw_kernels,
    ):
        kwargs = {"rngs": _KEYLESS, "dtype": dtype, "param_dtype": param_dtype}
        channels = _make_divisible(32 * width_mult)
        layers: list[nnx.Module] = [
            _conv_norm_relu6(3, channels, 3, stem_stride, **kwargs)
        ]
        for expansion, base, blocks, first_stride in _STAGES:
            outputs = _make_divisible(base * width_mult)
            for stride in (first_stride, *[1] * (blocks - 1)):
                layers.append(
                    _InvertedResidual(channels, outputs, stride, expansion, **kwargs)
                )
                channels = outputs
        last = _make_divisible(1280 * max(1.0, width_mult))
        self.features = _Sequential(
            [*layers, _conv_norm_relu6(channels, last, **kwargs)]
        )
        head = nnx.Linear(
            last,
            num_classes,
            kernel_init=nnx.initializers.normal(0.01),
            **{**kwargs, "rngs": rngs},
        )
        self.classifier = _Sequential([nnx.Dropout(dropout, rngs=rngs), head])
        draw(self.features, rngs.params())

    def __call__(self, x: jax.Array) -> jax.Array:
        """Return the logits, `(batch, num_classes)`, of `(batch, height, width, 3)`."""
        _check_images(x)
        return self.classifier(self.features(x).mean((1, 2)))


def _make_divisible(channels: float, divisor: int = 8) -> int:
    """Round to a multiple of `divisor`, but never down by more than a tenth."""
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded if rounded >= 0.9 * channels else rounded + divisor


def _check_images(x: jax.Array) -> None:
    if x.ndim != 4 or x.shape[-1] != 3:
        raise ValueError(
            f"MobileNetV2 got an input of shape {x.shape}, expected "
            "(batch, height, width, 3): channels come last; for PyTorch's layout, "
            "x.transpose(0, 2, 3, 1); for a single image, x[None]"
        )
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(
            f"MobileNetV2 got an input of dtype {x.dtype}, expected floats: for images "
            "of 0 to 255, x.astype(jnp.float32) / 255, then normalise"
        )


# One program for the hundreds of initialisers, which take ten seconds one by one. It
# runs once, so it should compile fast; it would take twice the time to cut the kernels.
@functools.partial(
    jax.jit,
    static_argnames="config",
    compiler_options={"xla_backend_optimization_level": 1},
)
def _build(
    rngs: nnx.Rngs, config: tuple[Any, ...]
) -> tuple[MobileNetV2, jax.Array, nnx.Rngs]:
    """A network without kernels, what to cut them from, and the streams afterwards."""
    *structure, dtype, param_dtype = config
    drawn = []

    def draw(module: nnx.Module, key: jax.Array) -> None:
        convs = _convs(module)
        drawn.append(_draws(convs, key))
        _set_kernels(convs, [jnp.zeros(())] * len(convs))

    model = MobileNetV2(
        *structure, rngs=rngs, dtype=dtype, param_dtype=param_dtype, draw=draw
    )
    return model, drawn[0], rngs


def mobilenet_v2(
    num_classes: int = 1000,
    width_mult: float = 1.0,
    dropout: float = 0.2,
    stem_stride: int = 2,
    *,
    rngs: nnx.Rngs,
    dtype: DTypeLike | None = None,
    param_dtype: DTypeLike = jnp.float32,
) -> MobileNetV2:
    """Return a freshly initialised MobileNetV2, in training mode.

    Paths, shapes (up to the order of axes) and initialisation are those of
    `torchvision.models.mobilenet_v2`: `features.0.0.kernel` … `classifier.1.bias`.
    Images are `(batch, height, width, 3)`, not PyTorch's channels first. Call
    `model.eval()` before predicting.

    Args:
        num_classes: the number of logits.
        width_mult: scales the channels of every layer, in multiples of 8.
        dropout: the probability of dropping a feature before the linear layer.
        stem_stride: the stride of the first convolution. At 1, a 32×32 image keeps
            four times as many pixels in every layer: slower, and more accurate.
        rngs: the streams of `params` and `dropout`; equal seeds, equal models.
        dtype: what to compute in; None takes the widest of input and parameters.
        param_dtype: what to keep the parameters in.

    Returns:
        The model, with 3,504,872 parameters at the defaults.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from flax import nnx
        >>> model = nnx.eval_shape(lambda: mobilenet_v2(10, rngs=nnx.Rngs(0)))
        >>> model.features[0][0].kernel.shape, model.classifier[1].kernel.shape
        ((3, 3, 3, 32), (1280, 10))
    """
    structure = (num_classes, width_mult, dropout, stem_stride)
    if any(isinstance(leaf, core.Tracer) for leaf in jax.tree.leaves(rngs)):
        return MobileNetV2(*structure, rngs=rngs, dtype=dtype, param_dtype=param_dtype)
    model, draws, after = _build(rngs, (*structure, dtype, param_dtype))
    nnx.update(rngs, nnx.state(after))
    convs = _convs(model.features)
    kernels = _kaiming_normal(convs, np.asarray(draws))
    _set_kernels(convs, jax.device_put(kernels))
    return model
