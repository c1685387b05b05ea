"""OneFlow's tutorial on layer-wise learning rates, line for line, in both its modes.

    python examples/oneflow_tutorial.py                 # both modes, about 2 minutes
    python examples/oneflow_tutorial.py --mode graph    # the compiled one only

The lines behind `# OneFlow:` are the tutorial's. Two of its traps are left out: its
`model.classifer = ...` (a misspelt attribute: the head in use keeps its classes and the
new one never trains) and its group of a pooling layer, which holds no parameters.
graphlr raises an error for the first and warns about the second.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import optax
from flax import nnx

import graphlr as glr

BATCH_SIZE = 64  # OneFlow: BATCH_SIZE = 64
EPOCH_NUM = 1  # OneFlow: EPOCH_NUM = 1

# OneFlow: loss_fn = nn.CrossEntropyLoss()
loss_fn = optax.softmax_cross_entropy_with_integer_labels


def make_model() -> glr.models.MobileNetV2:
    """The network with a head of ten classes."""
    # OneFlow: model = flowvision.models.mobilenet_v2().to(DEVICE)
    # OneFlow: model.classifer = nn.Sequential(nn.Dropout(0.2), nn.Linear(..., 10))
    # OneFlow: model.train()       (a graph with an optimizer trains, by itself)
    return glr.models.mobilenet_v2(num_classes=10, rngs=nnx.Rngs(0))


class GraphMobileNetV2(glr.Graph):  # OneFlow: class GraphMobileNetV2(flow.nn.Graph):
    """The tutorial's graph."""

    def __init__(self, model, optimizer):  # OneFlow: def __init__(self):
        super().__init__()  # OneFlow: super().__init__()
        self.model = model  # OneFlow: self.model = model
        self.add_optimizer(optimizer)  # OneFlow: self.add_optimizer(optimizer)

    def build(self, x, y):  # OneFlow: def build(self, x, y):
        """The loss of one batch."""
        y_pred = self.model(x)  # OneFlow: y_pred = self.model(x)
        loss = loss_fn(y_pred, y).mean()  # OneFlow: loss = self.loss_fn(y_pred, y)
        self.backward(loss)  # OneFlow: loss.backward()
        return loss  # OneFlow: return loss


def batches(data: glr.data.Dataset) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The training data, shuffled; the last, smaller batch comes too."""
    # OneFlow: train_dataloader = DataLoader(training_data, BATCH_SIZE, shuffle=True,
    #                                        drop_last=True)   (Graph mode needs it)
    return data.train.batches(BATCH_SIZE)


def report(loss: jax.Array, batch: int, size: int) -> None:
    """The tutorial's line, every five batches."""
    if batch % 5 == 0:  # OneFlow: if batch % 5 == 0:
        print(f"loss: {float(loss):>7f} [{batch * BATCH_SIZE:>5d}/{size:>5d}]")


def eager_mode(data: glr.data.Dataset, most: int) -> dict[str, float]:
    """Operation by operation, `lr *= scale` by hand; the rates it ends with."""
    model = make_model()
    groups = [
        # OneFlow: {'params': model.features.parameters(), 'lr': 1e-3, 'lr_scale': 0.9},
        {"params": model.features, "name": "features", "lr": 1e-3},
        # OneFlow: {'params': model.classifier.parameters(), 'lr': 1e-5, ...: 0.7},
        {"params": model.classifier, "name": "classifier", "lr": 1e-5},
    ]
    # In eager mode OneFlow's lr_scale is a key of the user's own: a decay factor.
    decay = {"features": 0.9, "classifier": 0.7}
    optimizer = glr.optim.SGD(groups)  # OneFlow: flow.optim.SGD(param_groups)
    step = GraphMobileNetV2(model, optimizer)

    def adjust_learning_rate(optimizer):  # OneFlow: the same function
        for group in optimizer.param_groups:
            group["lr"] *= decay[group.name]

    for t in range(EPOCH_NUM):  # OneFlow: for t in range(EPOCH_NUM):
        print(f"Epoch {t + 1}\n-------------------------------")
        for batch, (x, y) in enumerate(batches(data)):
            if batch == most:
                break
            # OneFlow: pred = model(x); loss = loss_fn(pred, y)
            # OneFlow: optimizer.zero_grad(); loss.backward(); optimizer.step()
            loss = step.eager(x, y)
            report(loss, batch, len(data.train))
            if batch % 10 == 0:  # OneFlow: if batch % 10 == 0:
                adjust_learning_rate(optimizer)
    return step.lr


def graph_mode(data: glr.data.Dataset) -> dict[str, float]:
    """Compiled, `lr_scale` for each group; the rates it ends with."""
    model = make_model()
    groups = [
        # OneFlow: {'params': model.features.parameters(), 'lr_scale': 0.9},
        {"params": model.features, "name": "features", "lr_scale": 0.9},
        # OneFlow: {'params': model.classifier.parameters(), 'lr_scale': 0.7},
        {"params": model.classifier, "name": "classifier", "lr_scale": 0.7},
    ]
    # OneFlow: optimizer = flow.optim.SGD(param_groups, lr=1e-3)
    optimizer = glr.optim.SGD(groups, lr=1e-3)
    graph_mobile_net_v2 = GraphMobileNetV2(model, optimizer)
    for t in range(EPOCH_NUM):  # OneFlow: for t in range(EPOCH_NUM):
        print(f"Epoch {t + 1}\n-------------------------------")
        for batch, (x, y) in enumerate(batches(data)):
            loss = graph_mobile_net_v2(x, y)  # OneFlow: the same
            report(loss, batch, len(data.train))
    print(graph_mobile_net_v2)  # OneFlow prints neither groups nor learning rates
    return graph_mobile_net_v2.lr


def folder_or_off(text: str) -> Path | None:
    """An argparse type: a folder, or None for "off"."""
    return None if text == "off" else Path(text)


def main(argv: list[str] | None = None) -> dict[str, dict[str, float]]:
    """Run the modes; returns each one's learning rates at the end."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--mode",
        choices=["eager", "graph", "both"],
        default="both",
        help="which of the tutorial's modes to run (default: both)",
    )
    parser.add_argument(
        "--eager-batches",
        type=int,
        default=12,
        help="batches of the eager mode, which is slow (default: 12)",
    )
    parser.add_argument(
        "--compile-cache",
        type=folder_or_off,
        default=glr.runtime.default_cache(),
        help="folder of compiled programs, for a quick second start; 'off' for none",
    )
    args = parser.parse_args(argv)
    glr.runtime.compile_cache(args.compile_cache)
    # OneFlow: training_data = flowvision.datasets.CIFAR10(...)
    data = glr.data.digits()
    rates = {}
    if args.mode in ("eager", "both"):
        print("Eager mode")
        rates["eager"] = eager_mode(data, args.eager_batches)
    if args.mode in ("graph", "both"):
        print("Graph mode")
        rates["graph"] = graph_mode(data)
    for mode, groups in rates.items():
        print(f"{mode}: learning rates at the end {groups}")
    return rates


if __name__ == "__main__":
    glr.runtime.tune_cpu()
    main()
