"""Train MobileNetV2 as one compiled step, with a learning rate for each group.

    python examples/mobilenetv2.py                  # digits, offline, about 2 minutes
    python examples/mobilenetv2.py --data cifar10   # downloads 170 MB once

It prints every group's learning rate, trains, and draws loss_and_lr.png. The default
run ends with a test accuracy of at least 97 %.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import optax
from flax import nnx

import graphlr as glr
from graphlr.optim import lr_scheduler
from graphlr.report import History, StepProgress, plot_history, stats_table

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

    def __init__(self, model, optimizer, schedule, *, amp=None, group_stats=False):
        super().__init__()
        self.model = model
        self.add_optimizer(optimizer, lr_sch=schedule)
        self.config.amp = amp
        self.config.group_stats = group_stats

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


def make_optimizer(
    args: argparse.Namespace, model: glr.models.MobileNetV2
) -> glr.optim.Optimizer:
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


def shifted(images: np.ndarray, rng: np.random.Generator, most: int = 3) -> np.ndarray:
    """Every image moved by up to `most` pixels, its edge repeated."""
    size = images.shape[1]
    padded = np.pad(images, ((0, 0), (most, most), (most, most), (0, 0)), "edge")
    corners = rng.integers(0, 2 * most + 1, (len(images), 2))
    moved = [
        image[top : top + size, left : left + size]
        for image, (top, left) in zip(padded, corners, strict=True)
    ]
    return np.stack(moved)


def accuracy(evaluate: EvalGraph, images: glr.data.Images, batch_size: int) -> float:
    """Share of the images that are classified right."""
    batches = images.batches(batch_size, shuffle=False)
    right = sum(int(evaluate(image, label)) for image, label in batches)
    return right / len(images)


def train(args: argparse.Namespace) -> float:
    """Train, report, draw; returns the last test accuracy."""
    load = {
        "digits": glr.data.digits,
        "cifar10": lambda: glr.data.cifar10(args.data_dir),
    }
    try:
        data = load[args.data]()
    except (OSError, ValueError, ImportError) as error:  # each says what to do
        raise SystemExit(f"{args.data}: {error}") from error
    model = glr.models.mobilenet_v2(len(data.classes), rngs=nnx.Rngs(args.seed))
    per_epoch = data.train.num_batches(args.batch_size)
    steps = args.epochs * per_epoch
    schedule = SCHEDULES[args.schedule](steps)
    graph = TrainGraph(
        model,
        make_optimizer(args, model),
        schedule,
        amp=args.amp,
        group_stats=args.group_stats,
    )
    evaluate = EvalGraph(model)

    device = jax.devices()[0]
    print(
        f"device: {device.platform} ({device.device_kind}), {len(jax.devices())} of it"
    )
    print(f"data: {args.data}, {len(data.train)} to train on, {len(data.test)} to test")
    print(graph, "\n\ncompiling ...", flush=True)

    history = History()
    with StepProgress(steps) as progress:
        try:
            for epoch in range(args.epochs):
                speed = train_epoch(graph, data.train, args, epoch, history, progress)
                right = accuracy(evaluate, data.test, args.batch_size)
                history.accuracy[graph.step] = right
                progress.print(
                    f"epoch {epoch + 1:2d}: loss {float(history.loss[-1]):.4f}, "
                    f"test accuracy {100 * right:.1f} %, {speed:.0f} images/s"
                )
                if args.group_stats:
                    progress.print(stats_table(graph.group_stats))
        except KeyboardInterrupt:
            progress.print(f"stopped at step {graph.step}; the model is as it was then")
    print(graph)
    if history.loss:
        print(f"picture: {plot_history(history, args.out / 'loss_and_lr.png')}")
    return accuracy(evaluate, data.test, args.batch_size)


def train_epoch(
    graph: TrainGraph,
    images: glr.data.Images,
    args: argparse.Namespace,
    epoch: int,
    history: History,
    progress: StepProgress,
) -> float:
    """One pass over the data; images per second, compilation not counted."""
    rng = np.random.default_rng((args.seed, epoch))
    start, before = time.perf_counter(), graph.compiles.seconds
    for image, label in images.batches(args.batch_size, seed=args.seed, epoch=epoch):
        rates, compiled = graph.lr, graph.compiles.count
        loss = graph(shifted(image, rng), label)
        history.add(loss, rates, graph.group_stats if args.group_stats else None)
        progress.advance(loss, rates)
        for record in graph.compiles.records[compiled:]:
            seconds = record.trace_seconds + record.compile_seconds
            cached = " with the cache" if record.cached else ""
            progress.print(f"compiled in {seconds:.1f} s{cached}: {record.why}")
    jax.block_until_ready(history.loss[-1])
    seconds = time.perf_counter() - start - (graph.compiles.seconds - before)
    return len(images) / seconds


def positive(kind: Callable[[str], float]) -> Callable[[str], float]:
    """An argparse type: a number above zero."""

    def parse(text: str) -> float:
        value = kind(text)
        if not (value > 0 and np.isfinite(value)):
            raise argparse.ArgumentTypeError(f"{text} is not above zero")
        return value

    parse.__name__ = "number"  # what argparse calls it
    return parse


def folder_or_off(text: str) -> Path | None:
    """An argparse type: a folder, or None for "off"."""
    return None if text == "off" else Path(text)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description="Train MobileNetV2 as one compiled step, with a learning rate for "
        "each parameter group, and draw loss and learning rates.",
        epilog="A group's learning rate is schedule(lr, step) * its lr scale.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--data",
        choices=["digits", "cifar10"],
        default="digits",
        help="1,797 handwritten digits that come with scikit-learn, or CIFAR-10",
    )
    add(
        "--data-dir",
        type=Path,
        default=Path("data"),
        help="where CIFAR-10 is, or is downloaded to",
    )
    add("--epochs", type=positive(int), default=35, help="passes over the data")
    add("--batch-size", type=positive(int), default=64, help="images in a step")
    add(
        "--optimizer",
        choices=["sgd", "adam"],
        default="sgd",
        help="SGD with momentum 0.9, or Adam",
    )
    add(
        "--lr",
        type=positive(float),
        default=None,
        help="base learning rate; when not given 0.05 for sgd, 0.001 for adam",
    )
    add(
        "--features-lr-scale",
        type=float,
        default=0.9,
        help="factor of the features' learning rate",
    )
    add(
        "--classifier-lr-scale",
        type=float,
        default=0.7,
        help="factor of the classifier's learning rate",
    )
    add(
        "--schedule",
        choices=sorted(SCHEDULES),
        default="cosine",
        help="how the learning rate goes down",
    )
    add("--amp", choices=["bfloat16", "float16"], help="compute in 16 bits")
    add(
        "--group-stats",
        action="store_true",
        help="show how far each group's updates move its parameters",
    )
    add(
        "--compile-cache",
        type=folder_or_off,
        default=glr.runtime.default_cache(),
        help="folder of compiled programs, for a quick second start; 'off' for none",
    )
    add("--seed", type=int, default=0, help="of initialisation, dropout and shuffling")
    add("--out", type=Path, default=Path("out"), help="folder of loss_and_lr.png")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> float:
    """Run the program; returns the test accuracy."""
    args = parse_args(argv)
    glr.runtime.compile_cache(args.compile_cache)
    result = train(args)
    print(f"test accuracy {100 * result:.1f} %")
    return result


if __name__ == "__main__":
    glr.runtime.tune_cpu()
    main()
