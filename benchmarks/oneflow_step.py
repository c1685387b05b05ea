"""A step of OneFlow's nn.Graph for every line on standard input; prints the loss.

Runs in a Python that has oneflow 0.9.0 and flowvision 0.2.0; `compare.py` starts it.
"""

import sys

import flowvision
import numpy as np
import oneflow as flow

RATES = [0.1, 0.9, 0.7]
model = flowvision.models.mobilenet_v2(num_classes=10)
model.train()
features = list(model.features.children())
optimizer = flow.optim.SGD(
    [
        {"params": list(features[0].parameters()), "lr_scale": RATES[0]},
        {
            "params": [p for layer in features[1:] for p in layer.parameters()],
            "lr_scale": RATES[1],
        },
        {"params": list(model.classifier.parameters()), "lr_scale": RATES[2]},
    ],
    lr=0.01,
    momentum=0.9,
)
loss_fn = flow.nn.CrossEntropyLoss()


class Train(flow.nn.Graph):
    """The training graph."""

    def __init__(self):
        super().__init__()
        self.model = model
        self.loss_fn = loss_fn
        self.add_optimizer(optimizer)

    def build(self, image, label):
        """One step."""
        loss = self.loss_fn(self.model(image), label)
        loss.backward()
        return loss


image = np.random.default_rng(0).normal(size=(64, 3, 32, 32)).astype(np.float32)
label = np.random.default_rng(1).integers(0, 10, 64)
image, label = flow.tensor(image), flow.tensor(label, dtype=flow.int64)
graph = Train()
for _ in sys.stdin:
    print(float(graph(image, label).numpy()), flush=True)
