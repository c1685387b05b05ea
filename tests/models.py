"""Models and graphs that many tests train, each written once, and how to compare."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import graphlr as glr

RNG = np.random.default_rng(0)
IMAGE = RNG.normal(size=(16, 4)).astype(np.float32)
LABEL = RNG.integers(0, 3, 16)
X, Y = IMAGE[:, :2], IMAGE[:, 2:3]


def linear(inputs=2, outputs=1, *, seed=0, **keys):
    return nnx.Linear(inputs, outputs, rngs=nnx.Rngs(seed), **keys)


def chain(*widths):
    """Linear layers one after another: `layers.0`, `layers.1` and so on."""
    pairs = enumerate(itertools.pairwise(widths))
    return nnx.Sequential(*(linear(a, b, seed=seed) for seed, (a, b) in pairs))


class Net(nnx.Module):
    """Parameters, statistics and random numbers: (n, 4) to the logits of 3 classes."""

    def __init__(self, seed=0):
        rngs = nnx.Rngs(seed)
        self.features = nnx.Linear(4, 8, rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.classifier = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x):
        return self.classifier(self.dropout(self.norm(nnx.relu(self.features(x)))))


class ConvNet(nnx.Module):
    """Convolutions that CPU and GPU compute differently: images to 5 logits."""

    def __init__(self, seed=0):
        rngs = nnx.Rngs(seed)
        conv = functools.partial(glr.layers.Conv, rngs=rngs)
        self.stem = conv(3, 8, (3, 3), 2, padding=1)
        self.norm = glr.layers.BatchNorm(8, rngs=rngs)
        self.depthwise = conv(8, 8, (3, 3), padding=1, feature_group_count=8)
        self.pointwise = conv(8, 16, (1, 1))
        self.dropout = nnx.Dropout(0.2, rngs=rngs)
        self.head = nnx.Linear(16, 5, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.norm(self.stem(x)))
        x = nnx.relu6(self.pointwise(self.depthwise(x))).mean((1, 2))
        return self.head(self.dropout(x))


class Weights(nnx.Module):
    """Parameters by name."""

    def __init__(self, **values):
        for name, value in values.items():
            setattr(self, name, nnx.Param(jnp.asarray(value, float)))

    def along(self, grads):
        """The loss sum(w * g), whose gradient is g."""
        return sum((getattr(self, name) * g).sum() for name, g in grads.items())


class Blocks(nnx.Module):
    """Names at several depths, `features.0.conv.kernel` to `classifier.bias`; no call.

    `pool` has no parameters.
    """

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.features = nnx.List(
            nnx.Dict(
                conv=nnx.Conv(2, 2, (3, 3), rngs=rngs),
                norm=nnx.BatchNorm(2, rngs=rngs),
            )
            for _ in range(2)
        )
        self.pool = nnx.Dropout(0.5)
        self.classifier = linear(2, 3)


class Train(glr.Graph):
    """A model trained by the mean square of its output; the optimizers are kept.

    Args:
        model: Called with the arguments of the graph.
        optimizers: Each is added; afterwards `graph.optimizers` has them.
        lr_sch: Of the groups without a schedule.
        scaler: Of the loss.
        config: Options of the graph, by name.
    """

    def __init__(self, model, *optimizers, lr_sch=None, scaler=None, **config):
        super().__init__()
        self.model, self.optimizers = model, optimizers
        for optimizer in optimizers:
            self.add_optimizer(optimizer, lr_sch=lr_sch)
        if scaler is not None:
            self.set_grad_scaler(scaler)
        for name, value in config.items():
            setattr(self.config, name, value)

    def build(self, *batch):
        loss = self.loss(*batch)
        self.backward(loss)
        return loss

    def loss(self, x):
        return (self.model(x) ** 2).mean()


class Regress(Train):
    """A model trained by the mean square of its errors."""

    def loss(self, x, y):
        return ((self.model(x) - y) ** 2).mean()


class Classify(Train):
    """A model trained by the cross-entropy of its logits."""

    def build(self, image, label):
        logits = self.model(image)
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, label).mean()
        self.backward(loss)
        return loss


class Given(Train):
    """A model such as `Weights`, trained on the gradients that a call gives by name."""

    def loss(self, grads):
        return self.model.along(grads)


class Evaluate(glr.Graph):
    """A forward pass."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def build(self, *batch):
        return self.model(*batch)


class Computes(glr.Graph):
    """Computes what it is given, without a model."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def build(self, *args):
        return self.function(*args)


def quick(function):
    """`jax.jit` for what runs once or twice: compiled in half the time, runs slower."""
    fast = {"backend_optimization_level": 0, "llvm_disable_expensive_passes": True}
    options = {f"xla_{name}": value for name, value in fast.items()}
    return jax.jit(function, compiler_options=options)


def built(kind, *args, **keys):
    """`kind(*args, **keys)`, a model, with its initialisers compiled as one."""
    return quick(lambda: kind(*args, **keys))()


def values(model):
    """Copies of every parameter and statistic of a model, by path."""
    state = nnx.to_flat_state(nnx.state(model, nnx.Any(nnx.Param, nnx.BatchStat)))
    return {".".join(map(str, path)): np.array(v.get_value()) for path, v in state}


def state_of(graph):
    """A graph's state with its arrays copied to the host."""
    return {key: np.array(value) for key, value in graph.state_dict().items()}


def assert_same(a, b):
    """Two dicts of arrays are the same, bit for bit."""
    assert a.keys() == b.keys()
    for key in a:
        np.testing.assert_array_equal(a[key], b[key], err_msg=key)


def assert_close(a, b, **limits):
    """Two dicts of arrays are the same up to rounding."""
    assert a.keys() == b.keys()
    for key in a:
        near = np.asarray(a[key], float), np.asarray(b[key], float)
        np.testing.assert_allclose(*near, err_msg=key, **limits)
