"""What OneFlow 0.9.0's nn.Graph produced, case by case.

Where OneFlow differs from PyTorch, PyTorch's formula is the default here; OneFlow's is
then composed from optax as a rule of its own, so that no case is left out. Cases that
differ in nothing but their groups are in one graph, with a model each.
"""

import functools
import json
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import graphlr as glr
from graphlr.layers import BatchNorm
from graphlr.optim import lr_scheduler
from tests import GOLDEN
from tests.models import Evaluate, values

MANIFEST = json.loads((GOLDEN / "oneflow_train.json").read_text())
DATA = np.load(GOLDEN / "oneflow_data.npz")
TRAIN = np.load(GOLDEN / "oneflow_train.npz")
TOLERANCE = 1e-5
SCALER = "System-Train-DynamicLossScale-GRAPH"

CASES = {case["name"]: case for case in MANIFEST["cases"]}


class Layer(nnx.Module):
    """A weight as OneFlow lays it out: (out, in), or OIHW of a 3x3 convolution."""

    def __init__(self, init, name):
        self.weight = nnx.Param(jnp.asarray(init[f"{name}.weight"]))
        if f"{name}.bias" in init:
            self.bias = nnx.Param(jnp.asarray(init[f"{name}.bias"]))

    def __call__(self, x):
        if self.weight.ndim == 4:
            kernel = self.weight.get_value().transpose(2, 3, 1, 0)
            dims = ("NHWC", "HWIO", "NHWC")
            return jax.lax.conv_general_dilated(
                x, kernel, (1, 1), "SAME", dimension_numbers=dims
            )
        return x @ self.weight.T + self.bias


class MLP(nnx.Module):
    def __init__(self, init):
        self.fc1, self.fc2 = Layer(init, "fc1"), Layer(init, "fc2")

    def __call__(self, x):
        return self.fc2(nnx.relu(self.fc1(x)))


class CNN(nnx.Module):
    def __init__(self, init):
        self.conv, self.fc = Layer(init, "conv"), Layer(init, "fc")
        self.bn = BatchNorm(4, rngs=nnx.Rngs(0))
        for field, name in (
            ("scale", "weight"),
            ("bias", "bias"),
            ("mean", "running_mean"),
            ("var", "running_var"),
        ):
            getattr(self.bn, field).set_value(jnp.asarray(init[f"bn.{name}"]))

    def __call__(self, x):
        x = x.transpose(0, 2, 3, 1)
        return self.fc(nnx.relu(self.bn(self.conv(x))).mean((1, 2)))


def make_model(kind):
    prefix = f"{kind}/init/"
    init = {k.removeprefix(prefix): DATA[k] for k in DATA if k.startswith(prefix)}
    return {"mlp": MLP, "cnn": CNN}[kind](init)


def ours(name):
    return name.replace("bn.weight", "bn.scale")


def params_of(kind):
    return [ours(name) for name, _ in MANIFEST["models"][kind]["params"]]


RENAMED = {
    "WarmUpLR": "WarmupLR",
    "decay_batch": "total_iters",
    "end_learning_rate": "end_lr",
}


def make_schedule(spec):
    if spec is None:
        return None
    kind = RENAMED.get(spec["class"], spec["class"])
    args = {RENAMED.get(key, key): value for key, value in spec["args"].items()}
    if kind == "PolynomialLR":
        args.setdefault("end_lr", 1e-4)  # OneFlow's default
    if kind == "SequentialLR":
        args.setdefault("interval_rescaling", False)  # OneFlow's default
        args["schedules"] = [make_schedule(inner) for inner in spec["schedulers"]]
    if "inner" in spec:
        args["schedule"] = make_schedule(spec["inner"])
    return getattr(lr_scheduler, kind)(**args)


def oneflow_sgd(
    momentum=0.0, dampening=0.0, weight_decay=0.0, nesterov=False, maximize=False
):
    """OneFlow's SGD: dampened from the first step, flags idle without momentum."""
    decayed = optax.add_decayed_weights(weight_decay)
    if isinstance(momentum, float) and momentum == 0.0:
        return decayed

    def init(params):
        return optax.tree.zeros_like(params)

    def update(grads, buffers, params=None):
        buffers = jax.tree.map(
            lambda g, b: momentum * b + (1 - dampening) * g, grads, buffers
        )
        look = jax.tree.map(lambda g, b: g + momentum * b, grads, buffers)
        return (look if nesterov else buffers), buffers

    sign = optax.scale(-1.0 if maximize else 1.0)
    return optax.chain(decayed, optax.GradientTransformation(init, update), sign)


def make_optimizer(spec, place, frozen):
    """OneFlow's optimizer for the model at a place; frozen parameters are left out."""
    args = dict(spec["args"])
    groups = []
    for group in spec["groups"]:
        names = [f"{place}.{ours(n)}" for n in group["params"] if n not in frozen]
        groups.append({"params": names, **group["options"]})
    options = {key for group in groups for key in group} | set(args)
    differs = {"dampening", "maximize"} & options
    if spec["class"] == "SGD" and differs:
        return glr.optim.Optimizer(groups, rule=oneflow_sgd, **args)
    if spec["class"] == "AdamW":
        args.setdefault("weight_decay", 0.0)  # OneFlow's default
    if spec["class"] == "RMSprop":
        args["eps_inside_sqrt"] = True  # OneFlow's formula
    return getattr(glr.optim, spec["class"])(groups, **args)


class Train(glr.Graph):
    """Cases of one kind: a model for each, which its optimizers train."""

    def __init__(self, cases):
        super().__init__()
        self.models = nnx.Dict({c["name"]: make_model(c["model"]) for c in cases})
        for case in cases:
            self.add_optimizers(case)
        self.config.gradient_accumulation_steps = case.get("accumulation", 1)
        if "scaler" in case:
            kind = getattr(glr, case["scaler"]["class"])
            self.set_grad_scaler(kind(**case["scaler"]["args"]))

    def add_optimizers(self, case):
        place, frozen = case["name"], case.get("frozen", [])
        named = set()
        for spec in case["optimizers"]:
            named.update(n for g in spec["groups"] for n in g["params"])
            optimizer = make_optimizer(spec, place, frozen)
            self.add_optimizer(optimizer, lr_sch=make_schedule(spec.get("scheduler")))
        idle = set(params_of(case["model"])) - set(map(ours, named - set(frozen)))
        if idle:
            names = [f"{place}.{name}" for name in sorted(idle)]
            optimizer.add_param_group({"params": names, "frozen": True})

    def build(self, x, y):
        losses = {}
        for name, model in self.models.items():
            logits = model(x)
            loss = optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()
            losses[name] = loss
            self.backward(loss)
        return losses


def kind_of(case):
    """What cases of one graph have in common: all but their groups."""
    own = ("name", "optimizers", "frozen", "state")
    return json.dumps({k: v for k, v in case.items() if k not in own}, sort_keys=True)


class Trained(NamedTuple):
    """What the steps of some cases came to, by case; and the graph after them."""

    losses: dict[str, list[np.ndarray]]
    values: dict[str, list[dict[str, np.ndarray]]]  # at each snapshot
    graph: Train


@functools.cache
def trained(kind):
    cases = [case for case in CASES.values() if kind_of(case) == kind]
    case, *_ = cases
    graph, model = Train(cases), case["model"]
    losses, found = [], []
    for t in range(MANIFEST["steps"]):
        if t == case.get("resume_at"):
            saved = graph.state_dict()
            graph = Train(cases)
            graph.load_state_dict(saved)
        x = DATA[f"{model}/x"][t].copy()
        if t == case.get("inject", {}).get("step"):
            x.flat[0] = float(case["inject"]["value"])
        losses.append(graph(x, DATA[f"{model}/y"][t]))
        if t + 1 in MANIFEST["snapshots"]:
            found.append({name: values(m) for name, m in graph.models.items()})
    names = [case["name"] for case in cases]
    return Trained(
        {name: [np.asarray(loss[name]) for loss in losses] for name in names},
        {name: [each[name] for each in found] for name in names},
        graph,
    )


@functools.cache
def evaluated(kind):
    """A graph that evaluates a model of this kind, whatever its values."""
    return Evaluate(make_model(kind))


def close(got, expected, limit=TOLERANCE):
    if np.isnan(expected).any():
        return np.array_equal(np.isnan(got), np.isnan(expected))
    return np.abs(got - expected).max() <= limit * np.abs(expected).max()


@pytest.mark.filterwarnings("ignore:group '.*group0'.* holds no parameters")
@pytest.mark.parametrize("name", CASES)
def test_training(name):
    case = CASES[name]
    run = trained(kind_of(case))
    for loss, want in zip(run.losses[name], TRAIN[f"{name}/loss"], strict=True):
        assert close(loss, want)
    for i, found in enumerate(run.values[name]):
        params = [np.ravel(found[path]) for path in params_of(case["model"])]
        assert close(np.concatenate(params), TRAIN[f"{name}/params"][i]), i
        if f"{name}/bn" in TRAIN:
            mean, var = TRAIN[f"{name}/bn"][i]
            assert close(found["bn.mean"], mean)
            assert close(found["bn.var"], var)
    assert run.graph.step == TRAIN[f"{name}/state/System-Train-TrainStep"][0]
    if f"{name}/state/{SCALER}-LossScale" in TRAIN:
        assert run.graph.loss_scale == TRAIN[f"{name}/state/{SCALER}-LossScale"][0]
        good = TRAIN[f"{name}/state/{SCALER}-GoodStepCounter"][0]
        assert run.graph.state_dict()["scaler.good"] == good
    evaluate = evaluated(case["model"])
    nnx.update(evaluate.model, nnx.state(run.graph.models[name]))
    logits = np.asarray(evaluate(DATA[f"{case['model']}/eval_x"]))
    assert close(logits, TRAIN[f"{name}/eval"], 3e-5)
    assert evaluate.compiles.count == 1


def test_every_case_is_run():
    assert len(CASES) == len(MANIFEST["cases"]) >= 100
    assert {"accumulation", "scaler", "inject"} <= {
        key for c in CASES.values() for key in c
    }
