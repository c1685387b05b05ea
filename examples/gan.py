"""Train a generator against a discriminator: two networks, two optimizers, one step.

    python examples/gan.py                  # digits, offline, less than a minute
    python examples/gan.py --steps 20000    # longer

Each player has its own optimizer, schedule and loss. `backward` adds the losses up and
differentiates their sum by every parameter, so each loss has to be blind to the other
player's parameters:

* to the discriminator's loss a generated image is data, `stop_gradient(fake)`;
* to the generator's loss the discriminator is constant,
  `stop_gradient(self.discriminator)`: a copy that hands gradients on to the image it
  judges and takes none. What a call of the copy changes, such as statistics of a
  BatchNorm, is gone with the copy.

Both players move at once, from where both were before the step.

It prints both learning rates, draws gan.png and ends with the coverage of the test
digits, see `coverage`: at least 85 %. Other real digits have 97 %, Gaussian pixels of
the same mean and covariance 50 %, an untrained generator has 0.
"""

import argparse
import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from flax import nnx
from jax.lax import stop_gradient

import graphlr as glr
from graphlr.optim import lr_scheduler
from graphlr.report import History, StepProgress

NOISE = 32  # numbers that the generator makes an image of
SIZE = 8  # pixels, of a side


class Generator(nnx.Module):
    """Noise (batch, 32) to images (batch, 8, 8, 1) in [-1, 1]."""

    def __init__(self, width: int = 256, *, rngs: nnx.Rngs):
        self.first = nnx.Linear(NOISE, width, rngs=rngs)
        self.first_norm = nnx.BatchNorm(width, rngs=rngs)
        self.second = nnx.Linear(width, width, rngs=rngs)
        self.second_norm = nnx.BatchNorm(width, rngs=rngs)
        self.last = nnx.Linear(width, SIZE * SIZE, rngs=rngs)

    def __call__(self, noise: jax.Array) -> jax.Array:
        """Images of a batch of noise."""
        x = nnx.relu(self.first_norm(self.first(noise)))
        x = nnx.relu(self.second_norm(self.second(x)))
        return nnx.tanh(self.last(x)).reshape(-1, SIZE, SIZE, 1)


class Discriminator(nnx.Module):
    """Images (batch, 8, 8, 1) to logits (batch,): above zero says real."""

    def __init__(self, width: int = 256, *, rngs: nnx.Rngs):
        self.first = nnx.Linear(SIZE * SIZE, width, rngs=rngs)
        self.second = nnx.Linear(width, width, rngs=rngs)
        self.last = nnx.Linear(width, 1, rngs=rngs)
        self.dropout = nnx.Dropout(0.3, rngs=rngs)

    def __call__(self, image: jax.Array) -> jax.Array:
        """How real each image looks."""
        x = image.reshape(len(image), -1)
        x = self.dropout(nnx.leaky_relu(self.first(x), 0.2))
        x = self.dropout(nnx.leaky_relu(self.second(x), 0.2))
        return self.last(x)[:, 0]


class TrainGraph(glr.Graph):
    """One step of both players."""

    def __init__(self, generator, discriminator, *, seed=0):
        super().__init__()
        self.generator = generator
        self.discriminator = discriminator
        self.rngs = nnx.Rngs(noise=seed)

    def generator_loss(self, fake):
        """Low if the discriminator, which stays as it is, takes `fake` for real."""
        judge = stop_gradient(self.discriminator)
        return optax.sigmoid_binary_cross_entropy(judge(fake), 1.0).mean()

    def discriminator_loss(self, real, fake):
        """Low if the discriminator tells `real` from `fake`, which stays as it is."""
        real = self.discriminator(real)
        fake = self.discriminator(stop_gradient(fake))
        on_real = optax.sigmoid_binary_cross_entropy(real, 0.9)  # never quite sure
        on_fake = optax.sigmoid_binary_cross_entropy(fake, 0.0)
        return on_real.mean() + on_fake.mean()

    def build(self, real):
        """Both losses for a batch of real images (batch, height, width, 1)."""
        noise = jax.random.normal(self.rngs.noise(), (len(real), NOISE))
        fake = self.generator(noise)
        losses = {
            "generator": self.generator_loss(fake),
            "discriminator": self.discriminator_loss(real, fake),
        }
        for loss in losses.values():
            self.backward(loss)
        return losses


class SampleGraph(glr.Graph):
    """Images; without an optimizer it runs in eval mode."""

    def __init__(self, generator):
        super().__init__()
        self.generator = generator

    def build(self, noise):
        """An image for each row of noise."""
        return self.generator(noise)


def add_optimizers(graph: TrainGraph, args: argparse.Namespace) -> None:
    """The generator's Adam slows down at once, the discriminator's RMSprop warms up."""
    generator = [{"params": graph.generator, "name": "generator"}]
    graph.add_optimizer(
        glr.optim.Adam(generator, lr=args.generator_lr, betas=(0.5, 0.999)),
        lr_sch=lr_scheduler.CosineDecayLR(decay_steps=args.steps),
    )
    discriminator = [{"params": graph.discriminator, "name": "discriminator"}]
    graph.add_optimizer(
        glr.optim.RMSprop(discriminator, lr=args.discriminator_lr),
        lr_sch=lr_scheduler.WarmupCosineLR(args.steps // 20, args.steps),
    )


# --- the images, and how good they are ------------------------------------------------


def load() -> tuple[glr.data.Images, np.ndarray]:
    """Digits to train on, and those to be compared with; pixels in [-1, 1]."""
    data = glr.data.digits(size=SIZE)
    low, high = data.train.images.min(), data.train.images.max()
    train, test = (
        (part.images[..., :1] - low) * (2 / (high - low)) - 1
        for part in (data.train, data.test)
    )
    return replace(data.train, images=train), test


def endless(images: glr.data.Images, args: argparse.Namespace) -> Iterator[np.ndarray]:
    """Batches of one size, epoch after epoch."""
    for epoch in itertools.count():
        for image, _ in images.batches(
            args.batch_size, seed=args.seed, epoch=epoch, drop_last=True
        ):
            yield image


def distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Euclidean, of every image of `a` to every image of `b`."""
    a, b = (x.reshape(len(x), -1) for x in (a, b))
    return np.linalg.norm(a[:, None] - b[None], axis=-1)


def coverage(real: np.ndarray, made: np.ndarray, k: int = 5) -> float:
    """Share of the real images that have an equal.

    That is a made image which is nearer than the k-th nearest of the real ones. It is
    low if the made images are poor, and if they are good and all alike. As many made
    images as real ones, drawn as they were, would have 1 - 2⁻ᵏ (97 %).

    Source: Naeem et al. 2020, "Reliable fidelity and diversity metrics".
    """
    kth = np.sort(distances(real, real), axis=1)[:, k]  # itself is the first
    return float((distances(real, made).min(axis=1) < kth).mean())


def same_moments(images: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Gaussian pixels with mean and covariance of `images`, for comparison."""
    flat = images.reshape(len(images), -1).astype(np.float64)
    rng = np.random.default_rng(seed)
    made = rng.multivariate_normal(flat.mean(0), np.cov(flat.T), count)
    return made.reshape(count, *images.shape[1:]).clip(-1, 1)


def draw(figure: Any, made: np.ndarray, history: History, path: Path) -> None:
    """A hundred images, both losses and both learning rates."""
    left, right = figure.subfigures(1, 2)
    tiles = np.pad(made[:100, ..., 0], ((0, 0), (1, 1), (1, 1)), constant_values=-1)
    side = tiles.shape[1]
    rows = tiles.reshape(10, 10, side, side).swapaxes(1, 2)
    grid = left.subplots()
    grid.imshow(rows.reshape(10 * side, 10 * side), cmap="gray_r")
    grid.set_axis_off()
    above, below = right.subplots(2, sharex=True)
    for name, rates in history.lr.items():
        above.plot([float(loss[name]) for loss in history.loss], lw=0.5, label=name)
        below.plot(rates, label=name)
    above.set(ylabel="loss")
    below.set(xlabel="step", ylabel="learning rate")
    for axes in (above, below):
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, dpi=120)


# --- the program ----------------------------------------------------------------------


def train(args: argparse.Namespace) -> float:
    """Train, report, draw; returns the coverage of the test digits."""
    try:  # what would be a pity to find missing afterwards
        from matplotlib.figure import Figure

        images, test = load()
        args.out.mkdir(parents=True, exist_ok=True)
    except ImportError as error:
        needs = "pictures and digits need pip install 'graphlr[examples]'"
        raise SystemExit(f"{needs}: {error}") from error
    except OSError as error:
        raise SystemExit(f"--out {args.out}: {error}") from error
    if args.batch_size > len(images):
        raise SystemExit(f"--batch-size {args.batch_size}: give {len(images)} at most")

    rngs = nnx.Rngs(args.seed)
    generator = Generator(rngs=rngs)
    graph = TrainGraph(generator, Discriminator(rngs=rngs), seed=args.seed)
    add_optimizers(graph, args)
    sample = SampleGraph(generator)
    rng = np.random.default_rng(args.seed)
    noise = rng.normal(size=(len(test), NOISE)).astype(np.float32)

    def covered() -> float:
        return coverage(test, np.asarray(sample(noise)))

    print(graph)
    some = rng.permutation(images.images)[: len(test)]
    gauss = same_moments(images.images, len(test), args.seed)
    print(
        f"\ncoverage of {len(test)} test digits: {percent(coverage(test, some))} by "
        f"training digits, {percent(coverage(test, gauss))} by Gaussian pixels of the "
        f"same mean and covariance, {percent(covered())} by the untrained generator",
        flush=True,
    )
    history = History()
    batches = itertools.islice(endless(images, args), args.steps)
    with StepProgress(args.steps) as progress:
        try:
            for step, image in enumerate(batches, 1):
                rates = graph.lr
                losses = graph(image)
                history.add(losses, rates)
                progress.advance(losses["generator"], rates)
                if step % max(1, args.steps // 10) == 0:
                    check(losses, step)
                    progress.print(line(step, losses, rates, covered()))
        except KeyboardInterrupt:
            progress.print(f"stopped at step {graph.step}; both are as they were then")
    print(graph.compiles)
    if history.loss:
        path = args.out / "gan.png"
        draw(Figure((12, 6), layout="constrained"), sample(noise), history, path)
        print(f"picture: {path}")
    return covered()


def check(losses: Mapping[str, Any], step: int) -> None:
    """Stop if there is nothing to hope for."""
    for name, loss in losses.items():
        if not np.isfinite(loss):
            raise SystemExit(
                f"the {name}'s loss is {loss} after {step} steps: try lower learning "
                "rates, --generator-lr and --discriminator-lr"
            )


def line(
    step: int, losses: Mapping[str, Any], rates: Mapping[str, float], covered: float
) -> str:
    """What is printed ten times."""
    players = [
        f"{name} {loss:.3f} (lr {rates[name]:.2g})" for name, loss in losses.items()
    ]
    return f"step {step:5d}: {', '.join(players)}, coverage {percent(covered)}"


def percent(share: float) -> str:
    """A share as it is printed."""
    return f"{100 * share:.1f} %"


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
        description="Train a generator of handwritten digits against a discriminator, "
        "each with its own optimizer and schedule, as one compiled step.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--steps", type=positive(int), default=6000, help="updates of both networks")
    add("--batch-size", type=positive(int), default=64, help="real images in a step")
    add(
        "--generator-lr",
        type=positive(float),
        default=1e-3,
        help="the generator's learning rate, which goes down by half a cosine",
    )
    add(
        "--discriminator-lr",
        type=positive(float),
        default=5e-4,
        help="the discriminator's, which goes up for a twentieth of the steps first",
    )
    add("--seed", type=int, default=0, help="of initialisation, noise and shuffling")
    add("--out", type=Path, default=Path("out"), help="folder of gan.png")
    add(
        "--compile-cache",
        type=folder_or_off,
        default=glr.runtime.default_cache(),
        help="folder of compiled programs, for a quick second start; 'off' for none",
    )
    args = parser.parse_args(argv)
    if args.seed < 0:
        parser.error(f"argument --seed: {args.seed} is below zero")
    return args


def main(argv: list[str] | None = None) -> float:
    """Run the program; returns the coverage."""
    args = parse_args(argv)
    glr.runtime.compile_cache(args.compile_cache)
    result = train(args)
    print(f"coverage {percent(result)}")
    return result


if __name__ == "__main__":
    glr.runtime.tune_cpu()
    main()
