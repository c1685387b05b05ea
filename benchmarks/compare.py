"""MobileNetV2's training step in graphlr and its peers, measured side by side.

    python benchmarks/compare.py                       # graphlr and flax
    python benchmarks/compare.py --oneflow python3.10  # and OneFlow in that Python

PyTorch is measured if it is installed. Every system trains the same network (10
classes, 32×32 images, batch 64, float32) with SGD, momentum 0.9 and three parameter
groups. The systems take turns, a few steps each, round after round; medians and ratios
are printed as a table and written to `benchmarks/results/compare.json`.
"""

import argparse
import importlib.util
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import graphlr as glr

HERE = Path(__file__).parent
BATCH = 64
IMAGES = np.random.default_rng(0).normal(size=(BATCH, 32, 32, 3)).astype(np.float32)
LABELS = np.random.default_rng(1).integers(0, 10, BATCH)
RATES = {"stem": 0.1, "features": 0.9, "classifier": 0.7}  # lr_scale of each group

Step = Callable[[], float]  # one step, its loss read; returns the loss


def cross_entropy(logits: jax.Array, label: jax.Array) -> jax.Array:
    """Mean softmax cross-entropy."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, label).mean()


def graphlr_step() -> Step:
    """A Graph."""
    model = glr.models.mobilenet_v2(10, rngs=nnx.Rngs(0))
    groups = [
        {"params": model.features[0], "lr_scale": RATES["stem"]},
        {"params": "features.**", "lr_scale": RATES["features"]},
        {"params": model.classifier, "lr_scale": RATES["classifier"]},
    ]
    groups[1]["params"] = [model.features[i] for i in range(1, 19)]

    class Train(glr.Graph):
        def __init__(self):
            super().__init__()
            self.model = model
            self.add_optimizer(glr.optim.SGD(groups, lr=0.01, momentum=0.9))

        def build(self, image, label):
            loss = cross_entropy(self.model(image), label)
            self.backward(loss)
            return loss

    graph = Train()
    return lambda: float(graph(IMAGES, LABELS))


def label_of(path: tuple, _: object) -> str:
    """The group of a parameter, by its path."""
    if path[0] == "classifier":
        return "classifier"
    return "stem" if path[1] == 0 else "features"


def optax_step(model: nnx.Module) -> Step:
    """nnx.jit, nnx.Optimizer and a hand-made label tree: the usual loop."""
    transforms = {
        name: optax.sgd(0.01 * scale, momentum=0.9) for name, scale in RATES.items()
    }

    def labels(state: nnx.State) -> nnx.State:
        return nnx.map_state(label_of, state)

    optimizer = nnx.Optimizer(
        model, optax.multi_transform(transforms, labels), wrt=nnx.Param
    )

    @nnx.jit
    def step(model, optimizer, image, label):
        def loss_of(model):
            return cross_entropy(model(image), label)

        loss, grads = nnx.value_and_grad(loss_of)(model)
        optimizer.update(model, grads)
        return loss

    return lambda: float(step(model, optimizer, IMAGES, LABELS))


def stock(model: nnx.Module) -> nnx.Module:
    """The same model with flax's own convolutions and BatchNorm."""
    for _, node in nnx.iter_modules(model):
        if isinstance(node, glr.layers.Conv):
            node.conv_general_dilated = jax.lax.conv_general_dilated
        if isinstance(node, glr.layers.BatchNorm):
            node.use_fast_variance = True
    return model


def torch_step() -> Step:
    """PyTorch eager, channels-last."""
    import torch
    from torch_mobilenet import mobilenet_v2

    torch.manual_seed(0)
    model = mobilenet_v2(10).to(memory_format=torch.channels_last)
    features = model.features
    groups = [
        {"params": features[0].parameters(), "lr": 0.01 * RATES["stem"]},
        {"params": features[1:].parameters(), "lr": 0.01 * RATES["features"]},
        {"params": model.classifier.parameters(), "lr": 0.01 * RATES["classifier"]},
    ]
    optimizer = torch.optim.SGD(groups, lr=0.01, momentum=0.9)
    image = torch.from_numpy(IMAGES.transpose(0, 3, 1, 2).copy())
    image = image.to(memory_format=torch.channels_last)
    label = torch.from_numpy(LABELS)

    def step() -> float:
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(image), label)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def oneflow_step(python: str) -> Step:
    """OneFlow's nn.Graph, in a process of its own that runs a step for each line."""
    find = (
        "import glob, sysconfig; "
        "print(':'.join(glob.glob(sysconfig.get_path('purelib') + '/nvidia/*/lib')))"
    )
    libraries = subprocess.run(
        [python, "-c", find], capture_output=True, text=True, check=True
    ).stdout.strip()
    process = subprocess.Popen(
        [python, str(HERE / "oneflow_step.py")],
        env={**os.environ, "LD_LIBRARY_PATH": libraries},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    stdin, stdout = process.stdin, process.stdout
    if stdin is None or stdout is None:
        raise RuntimeError("no pipe to OneFlow's process")

    def step() -> float:
        process.send_signal(signal.SIGCONT)
        stdin.write("step\n")
        stdin.flush()
        line = stdout.readline()
        process.send_signal(signal.SIGSTOP)  # its threads would spin through our turns
        if not line:
            raise RuntimeError(f"OneFlow's process ended with {process.wait()}")
        return float(line)

    return step


def measure(steps: dict[str, Step], rounds: int, each: int) -> dict[str, dict]:
    """First step, then `rounds` of `each` steps of every system in turn; seconds."""
    rows: dict[str, dict] = {}
    for name, step in steps.items():
        start = time.perf_counter()
        step()
        rows[name] = {"first_step_s": time.perf_counter() - start, "samples": []}
        step()
    order = list(steps.items())
    for _ in range(rounds):
        order = [*order[1:], order[0]]  # nobody always comes after the same one
        for name, step in order:
            step()  # the first of a turn finds cold caches
            for _ in range(each):
                start = time.perf_counter()
                step()
                rows[name]["samples"].append(time.perf_counter() - start)
    for row in rows.values():
        samples = sorted(row.pop("samples"))
        row["median_ms"] = 1e3 * statistics.median(samples)
        row["min_ms"] = 1e3 * samples[0]
    return rows


def small_step(kind: str) -> Step:
    """A step of an MLP of 160 leaves: what a call costs beside the computing."""
    rngs = nnx.Rngs(0)
    model = nnx.Sequential(*(nnx.Linear(8, 8, rngs=rngs) for _ in range(40)))
    x = jnp.ones((1, 8))
    if kind == "graphlr":

        class Train(glr.Graph):
            def __init__(self):
                super().__init__()
                self.model = model
                self.add_optimizer(glr.optim.SGD("**", lr=1e-3, momentum=0.9))

            def build(self, x):
                loss = (self.model(x) ** 2).mean()
                self.backward(loss)
                return loss

        graph = Train()
        return lambda: float(graph(x))
    optimizer = nnx.Optimizer(model, optax.sgd(1e-3, momentum=0.9), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer, x):
        loss, grads = nnx.value_and_grad(lambda model: (model(x) ** 2).mean())(model)
        optimizer.update(model, grads)
        return loss

    return lambda: float(step(model, optimizer, x))


def table(title: str, rows: dict[str, dict]) -> str:
    """Markdown, with every system's ratio to the first."""
    base = next(iter(rows.values()))["median_ms"]
    lines = [f"| {title} | median, ms | min, ms | times graphlr | first step, s |",
             "|---|---|---|---|---|"]  # fmt: skip
    for name, row in rows.items():
        lines.append(
            f"| {name} | {row['median_ms']:.2f} | {row['min_ms']:.2f} | "
            f"{row['median_ms'] / base:.2f} | {row['first_step_s']:.1f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=10, help="turns of every system")
    parser.add_argument("--each", type=int, default=5, help="steps in a turn")
    parser.add_argument("--oneflow", metavar="PYTHON", help="a Python that has OneFlow")
    args = parser.parse_args()

    def new() -> nnx.Module:
        return glr.models.mobilenet_v2(10, rngs=nnx.Rngs(0))

    steps = {
        "graphlr Graph": graphlr_step(),
        "nnx.jit + optax, graphlr's layers": optax_step(new()),
        "nnx.jit + optax, flax's layers": optax_step(stock(new())),
    }
    versions = {"jax": jax.__version__, "flax": flax.__version__}
    if importlib.util.find_spec("torch"):
        import torch

        sys.path.insert(0, str(HERE))
        versions["torch"] = torch.__version__
        steps["PyTorch eager, channels-last"] = torch_step()
    if args.oneflow:
        versions["oneflow"] = "0.9.0"
        steps["OneFlow nn.Graph"] = oneflow_step(args.oneflow)
    device = jax.devices()[0]
    result = {
        "device": f"{device.device_kind}, {platform.machine()}",
        "versions": versions,
        "step": measure(steps, args.rounds, args.each),
        "call": measure(
            {"graphlr Graph": small_step("graphlr"), "nnx.jit": small_step("nnx")},
            args.rounds,
            20 * args.each,
        ),
    }
    print(f"{result['device']}; {versions}")
    print(table("MobileNetV2, batch 64", result["step"]))
    print(table("40 linear layers of 8×8, 160 arrays", result["call"]))
    (HERE / "results").mkdir(exist_ok=True)
    text = json.dumps(result, indent=1) + "\n"
    (HERE / "results" / "compare.json").write_text(text)


if __name__ == "__main__":
    main()
