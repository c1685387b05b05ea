"""MobileNetV2's training step in PyTorch."""

import torch
from torch import nn

from benchmarks.systems import Step
from benchmarks.systems.data import SCALES, batch_of

STAGES = [
    (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2),
    (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1),
]  # fmt: skip


def conv_norm(inputs, outputs, kernel=1, stride=1, groups=1, act=True):
    """Convolution, BatchNorm and, if wanted, ReLU6."""
    conv = nn.Conv2d(
        inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False
    )
    tail = [nn.ReLU6(inplace=True)] if act else []
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), *tail)


class Block(nn.Module):
    """An inverted residual."""

    def __init__(self, inputs, outputs, stride, expansion):
        super().__init__()
        inner = inputs * expansion
        self.conv = nn.Sequential(
            *([conv_norm(inputs, inner)] if expansion > 1 else []),
            conv_norm(inner, inner, 3, stride, inner),
            conv_norm(inner, outputs, act=False),
        )
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x):
        """Add the input where it fits."""
        return x + self.conv(x) if self.residual else self.conv(x)


class MobileNetV2(nn.Module):
    """The network."""

    def __init__(self, num_classes):
        super().__init__()
        layers, channels = [conv_norm(3, 32, 3, 2)], 32
        for expansion, outputs, blocks, first in STAGES:
            for stride in (first, *[1] * (blocks - 1)):
                layers.append(Block(channels, outputs, stride, expansion))
                channels = outputs
        self.features = nn.Sequential(*layers, conv_norm(channels, 1280))
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(1280, num_classes))

    def forward(self, x):
        """Logits."""
        return self.classifier(self.features(x).mean((2, 3)))


def step(size: int, compiled: bool) -> Step:
    """A training step, channels-last, eager or through `torch.compile`."""
    torch.manual_seed(0)
    network = MobileNetV2(10).to(memory_format=torch.channels_last)
    parts = (network.features[0], network.features[1:], network.classifier)
    groups = [
        {"params": list(part.parameters()), "lr": 0.01 * scale}
        for part, scale in zip(parts, SCALES.values(), strict=True)
    ]
    optimizer = torch.optim.SGD(groups, lr=0.01, momentum=0.9)
    images, labels = batch_of(size)
    image = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    image = image.to(memory_format=torch.channels_last)
    label = torch.from_numpy(labels)
    model = torch.compile(network) if compiled else network

    def call() -> float:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(image), label)
        loss.backward()
        optimizer.step()
        return loss.item()

    return call
