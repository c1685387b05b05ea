"""MobileNetV2 of flax's own layers with their defaults, as flax's users write it."""

import jax
from flax import nnx

STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


def conv_norm(
    inputs: int,
    outputs: int,
    kernel: int = 1,
    stride: int = 1,
    groups: int = 1,
    act: bool = True,
    *,
    rngs: nnx.Rngs,
) -> nnx.Sequential:
    """Convolution, BatchNorm and, if wanted, ReLU6."""
    conv = nnx.Conv(
        inputs,
        outputs,
        (kernel, kernel),
        stride,
        padding=kernel // 2,
        feature_group_count=groups,
        use_bias=False,
        rngs=rngs,
    )
    tail = [nnx.relu6] if act else []
    return nnx.Sequential(conv, nnx.BatchNorm(outputs, rngs=rngs), *tail)


class Block(nnx.Module):
    """An inverted residual."""

    def __init__(
        self, inputs: int, outputs: int, stride: int, expansion: int, *, rngs: nnx.Rngs
    ):
        inner = inputs * expansion
        expand = [conv_norm(inputs, inner, rngs=rngs)] if expansion > 1 else []
        self.conv = nnx.Sequential(
            *expand,
            conv_norm(inner, inner, 3, stride, inner, rngs=rngs),
            conv_norm(inner, outputs, act=False, rngs=rngs),
        )
        self.residual = stride == 1 and inputs == outputs

    def __call__(self, x: jax.Array) -> jax.Array:
        """Add the input where it fits."""
        return x + self.conv(x) if self.residual else self.conv(x)


class MobileNetV2(nnx.Module):
    """The network."""

    def __init__(self, num_classes: int, *, rngs: nnx.Rngs):
        layers: list[nnx.Module] = [conv_norm(3, 32, 3, 2, rngs=rngs)]
        channels = 32
        for expansion, outputs, blocks, first in STAGES:
            for stride in (first, *[1] * (blocks - 1)):
                layers.append(Block(channels, outputs, stride, expansion, rngs=rngs))
                channels = outputs
        layers.append(conv_norm(channels, 1280, rngs=rngs))
        self.features = nnx.List(layers)
        self.dropout = nnx.Dropout(0.2, rngs=rngs)
        self.classifier = nnx.Linear(1280, num_classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits."""
        for layer in self.features:
            x = layer(x)
        return self.classifier(self.dropout(x.mean((1, 2))))
