"""OneFlow's nn.Graph as a worker: as `worker.py`, in a Python that has OneFlow.

Stands alone, because that Python (oneflow 0.9.0, flowvision 0.2.0) has no JAX.
"""

import argparse
import importlib
import json
import os
import sys
import time

import numpy as np

SCALES = (0.1, 0.9, 0.7)  # lr_scale of stem, features, classifier


def make_step(flow, flowvision, size):
    """A training step of MobileNetV2 for `size` images."""
    model = flowvision.models.mobilenet_v2(num_classes=10)
    model.train()
    features = list(model.features.children())
    parts = ([features[0]], features[1:], [model.classifier])
    groups = [
        {"params": [p for layer in part for p in layer.parameters()], "lr_scale": scale}
        for part, scale in zip(parts, SCALES, strict=True)
    ]
    optimizer = flow.optim.SGD(groups, lr=0.01, momentum=0.9)
    loss_fn = flow.nn.CrossEntropyLoss()

    class Train(flow.nn.Graph):
        def __init__(self):
            super().__init__()
            self.model = model
            self.loss_fn = loss_fn
            self.add_optimizer(optimizer)

        def build(self, image, label):
            loss = self.loss_fn(self.model(image), label)
            loss.backward()
            return loss

    images = np.random.default_rng(0).normal(size=(size, 3, 32, 32)).astype(np.float32)
    labels = np.random.default_rng(1).integers(0, 10, size)
    image, label = flow.tensor(images), flow.tensor(labels, dtype=flow.int64)
    graph = Train()
    return lambda: float(graph(image, label).numpy())


def duration(call):
    """How long a call takes, in seconds."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def main():
    """Get ready, say so, answer."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", type=int, default=64, help="images")
    size = parser.parse_args().size
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    start = time.perf_counter()
    try:
        flow, flowvision = map(importlib.import_module, ("oneflow", "flowvision"))
    except ModuleNotFoundError as error:
        print(json.dumps({"skipped": f"{error.name} is not installed"}), file=answers)
        return
    imported = time.perf_counter()
    step = make_step(flow, flowvision, size)
    built = time.perf_counter()
    first = duration(step)
    ready = {
        "imports_s": imported - start,
        "build_s": built - imported,
        "first_s": first,
        "loss_at": time.monotonic(),
    }
    step()
    print(json.dumps(ready), file=answers, flush=True)
    for line in sys.stdin:
        durations = [duration(step) for _ in range(int(line))]
        print(json.dumps(durations), file=answers, flush=True)


if __name__ == "__main__":
    main()
