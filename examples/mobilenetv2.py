"""Train MobileNetV2 as one compiled step, with a learning rate for each group.

    python examples/mobilenetv2.py                  # digits, offline, about 2 minutes
    python examples/mobilenetv2.py --data cifar10   # downloads 170 MB once

It prints every group's learning rate, trains, and draws loss_and_lr.png. The default
run ends with a test accuracy of at least 97 %.
"""

import argparse
import time
from collections.abc import Iterable
from pathlib import Path

import jax
import numpy as np
import optax
from flax import nnx

import graphlr as glr
from graphlr.optim import lr_scheduler
from graphlr.report import History, StepProgress, plot_history

SCHEDULES = {
    "constant": lambda steps: None,
    "cosine": lambda steps: lr_scheduler.CosineDecayLR(decay_steps=steps),
    "warmup": lambda steps: lr_scheduler.WarmupCosineLR(steps // 10, steps),
    "step": lambda steps: lr_scheduler.StepLR(step_size=max(1, steps // 3)),
    "onecycle": lambda steps: lr_scheduler.OneCycleLR(
        max_lr=0.1, total_steps=steps, cycle_momentum=False
    ),
}


class TrainGraph(glr.Graph):
    """One training step: forward, backward, update of every group."""

    def __init__(self, model, optimizer, schedule):
        super().__init__()
        self.model = model
        self.add_optimizer(optimizer, lr_sch=schedule)

    def build(self, image, label):
        """The loss of a batch of images (batch, height, width, 3)."""
        logits = self.model(image)
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, label).mean()
        self.backward(loss)
        return loss


class EvalGraph(glr.Graph):
    """How many of a batch are right; without an optimizer it runs in eval mode."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def build(self, image, label):
        """The number of images whose largest logit is at the label."""
        return (self.model(image).argmax(-1) == label).sum()


def make_optimizer(args: argparse.Namespace, model: nnx.Module) -> glr.optim.Optimizer:
    """The tutorial's groups: features and classifier, each with its lr_scale."""
    groups = [
        {
            "params": model.features,
            "name": "features",
            "lr_scale": args.features_lr_scale,
        },
        {
            "params": model.classifier,
            "name": "classifier",
            "lr_scale": args.classifier_lr_scale,
        },
    ]
    if args.optimizer == "adam":
        return glr.optim.Adam(groups, lr=args.lr or 1e-3)
    return glr.optim.SGD(groups, lr=args.lr or 0.05, momentum=0.9)


def accuracy(evaluate: EvalGraph, batches: Iterable, total: int) -> float:
    """Share of the test images that are classified right."""
    return sum(int(evaluate(image, label)) for image, label in batches) / total


def train(args: argparse.Namespace) -> float:
    """Train, report, draw; returns the last test accuracy."""
    load = {"digits": glr.data.digits, "cifar10": lambda: glr.data.cifar10(args.data_dir)}
    data = load[args.data]()
    model = glr.models.mobilenet_v2(len(data.classes), rngs=nnx.Rngs(args.seed))
    per_epoch = data.train.num_batches(args.batch_size)
    steps = args.epochs * per_epoch
    schedule = SCHEDULES[args.schedule](steps)
    graph = TrainGraph(model, make_optimizer(args, model), schedule)
    evaluate = EvalGraph(model)

    device = jax.devices()[0]
    print(f"device: {device.platform} ({device.device_kind}), {len(jax.devices())} of it")
    print(f"data: {args.data}, {len(data.train)} to train on, {len(data.test)} to test")
    print(graph, "\n\ncompiling ...", flush=True)

    history = History()
    compiled = 0
    with StepProgress(steps) as progress:
        try:
            for epoch in range(args.epochs):
                batches = data.train.batches(
                    args.batch_size, seed=args.seed, epoch=epoch
                )
                start, waited = time.perf_counter(), graph.compiles.seconds
                for image, label in batches:
                    rates = graph.lr
                    loss = graph(image, label)
                    history.add(loss, rates)
                    progress.advance(loss, rates)
                    if graph.compiles.count > compiled:
                        record = graph.compiles.records[-1]
                        seconds = record.trace_seconds + record.compile_seconds
                        progress.print(f"compiled in {seconds:.1f} s: {record.why}")
                        compiled = graph.compiles.count
                jax.block_until_ready(loss)
                seconds = time.perf_counter() - start
                seconds -= graph.compiles.seconds - waited
                tests = data.test.batches(args.batch_size, shuffle=False)
                history.accuracy[graph.step] = accuracy(evaluate, tests, len(data.test))
                progress.print(
                    f"epoch {epoch + 1:2d}: loss {float(loss):.4f}, "
                    f"test accuracy {100 * history.accuracy[graph.step]:.1f} %, "
                    f"{len(data.train) / seconds:.0f} images/s"
                )
        except KeyboardInterrupt:
            progress.print(f"stopped at step {graph.step}; the model is as it was then")
    print(graph)
    print(f"picture: {plot_history(history, args.out / 'loss_and_lr.png')}")
    return accuracy(
        evaluate, data.test.batches(args.batch_size, shuffle=False), len(data.test)
    )


def positive(kind: type) -> type:
    """An argparse type: a number above zero."""

    def parse(text: str):
        value = kind(text)
        if not (value > 0 and np.isfinite(value)):
            raise argparse.ArgumentTypeError(f"{text} is not above zero")
        return value

    return parse


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description="Train MobileNetV2 as one compiled step, with a learning rate for "
        "each parameter group, and draw loss and learning rates.",
        epilog="A group's learning rate is schedule(lr, step) * its lr scale.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--data", choices=["digits", "cifar10"], default="digits",
        help="1,797 handwritten digits that come with scikit-learn, or CIFAR-10")
    add("--data-dir", type=Path, default=Path("data"),
        help="where CIFAR-10 is, or is downloaded to")
    add("--epochs", type=positive(int), default=15, help="passes over the data")
    add("--batch-size", type=positive(int), default=64, help="images in a step")
    add("--optimizer", choices=["sgd", "adam"], default="sgd",
        help="SGD with momentum 0.9, or Adam")
    add("--lr", type=positive(float), default=None,
        help="base learning rate; when not given 0.05 for sgd, 0.001 for adam")
    add("--features-lr-scale", type=float, default=0.9,
        help="factor of the features' learning rate")
    add("--classifier-lr-scale", type=float, default=0.7,
        help="factor of the classifier's learning rate")
    add("--schedule", choices=sorted(SCHEDULES), default="cosine",
        help="how the learning rate goes down")
    add("--seed", type=int, default=0, help="of initialisation, dropout and shuffling")
    add("--out", type=Path, default=Path("out"), help="folder of loss_and_lr.png")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> float:
    """Run the program; returns the test accuracy."""
    result = train(parse_args(argv))
    print(f"test accuracy {100 * result:.1f} %")
    return result


if __name__ == "__main__":
    main()
