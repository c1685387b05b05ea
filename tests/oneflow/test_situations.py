"""What goes wrong or silently nowhere in OneFlow 0.9's nn.Graph, and what happens here.

Every row says in a few words what OneFlow was seen to do. Here the same situation is an
error with its remedy, a warning, or simply works.
"""

import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import graphlr as glr
from graphlr.optim import SGD, Adam, AdamW
from graphlr.optim import lr_scheduler as lrs
from tests.models import Train, Weights


def ones(*names):
    """Numbers that start at 1."""
    return Weights(**dict.fromkeys(names or ("a", "b"), 1.0))


class Along(Train):
    """The loss is the weights times the arguments, so these are the gradients."""

    def __init__(self, *optimizers, model=None, **keys):
        super().__init__(model or ones(), *optimizers, **keys)

    def build(self, **grads):
        loss = self.model.along(grads)
        self.backward(loss)
        return loss


class Pair(Along):
    """The same with two arguments by position, and a third that may be given."""

    def build(self, a, b, c=0.0):
        return super().build(a=a, b=b) + c


class Rows(Along):
    """Arguments are batches of gradients."""

    def build(self, a, b):
        return super().build(a=a.mean(), b=b.mean())


ONES = {"a": 1.0, "b": 1.0}
NAN = {"a": math.nan, "b": 1.0}


def after(graph):
    """The weights by name."""
    state = nnx.to_flat_state(nnx.state(graph.model, nnx.Param))
    return {path[-1]: float(weight.get_value()) for path, weight in state}


def trained(*optimizers, steps=1, grads=ONES, how=glr.Graph.__call__, **keys):
    graph = Along(*optimizers, **keys)
    for _ in range(steps):
        how(graph, **grads)
    return after(graph)


def build_is(build, *optimizers):
    """A call of a graph with this `build`, over the weights a and b."""
    kind = type("Gr", (Along,), {"build": build})
    return lambda: kind(*optimizers)(**ONES)


def group(params="**", **keys):
    return SGD([{"params": params, "name": "all", **keys}])


def edited(**values):
    """Numbers of a compiled graph's group are set, and it takes a step."""
    optimizer = SGD("**", lr=0.1)
    graph = Along(optimizer)
    graph(**ONES)
    optimizer.param_groups[0].update(values)
    graph(**ONES)
    return after(graph), graph.compiles.count


def edited_badly():
    optimizer = SGD("**", lr=0.1)
    graph = Along(optimizer)
    graph(**ONES)
    try:
        optimizer.param_groups[0].update({"lr": 0.5, "lr_scale": math.nan})
    except ValueError:
        graph(**ONES)
    return after(graph)


class Tied(nnx.Module):
    """One weight under two modules."""

    def __init__(self):
        self.first, self.second = ones("w"), ones("w")
        self.second.w = self.first.w


class Cast(NamedTuple):
    dtype: str
    value: float


def cast_after_the_optimizer():
    model = ones("a")
    with jax.enable_x64(True):
        optimizer = SGD(model, lr=0.1)
        model.a.set_value(model.a.get_value().astype(jnp.float64))
        Along(optimizer, model=model)(a=1.0)
        value = model.a.get_value()
        return Cast(str(value.dtype), float(value))


def frozen_then_not():
    groups = [{"params": "a", "name": "a", "frozen": True}, {"params": "b"}]
    optimizer = AdamW(groups, lr=0.1, weight_decay=0.0)
    graph = Along(optimizer)
    graph(**ONES)
    frozen = after(graph)["a"]
    optimizer.param_groups["a"]["frozen"] = False
    graph(**ONES)
    return frozen, after(graph)["a"], graph.compiles.count


def named_twice():
    model = ones()
    return trained(SGD([model.a, model.b, model.a], lr=0.1), model=model)


def unused():
    """With decay and momentum, which leave it alone too; its slots don't count on."""
    graph = Along(AdamW("**", lr=0.1, weight_decay=0.5))
    for _ in range(3):
        graph(a=1.0)
    return after(graph)["b"], int(graph.state_dict()["slots.model.b.steps"])


def scale_zero():
    """Adam's slots go on, and a scale given later acts without compiling."""
    optimizer = Adam("**", lr=0.1, lr_scale=0.0)
    graph = Along(optimizer)
    graph(**ONES)
    held = after(graph)["a"]
    optimizer.param_groups[0]["lr_scale"] = 1.0
    graph(**ONES)
    steps = int(graph.state_dict()["slots.model.a.steps"])
    return held, after(graph)["a"], steps, graph.compiles.count


def nan_then_good(scaler=None, group=None, **config):
    """Weights, steps, skips and loss scale after a batch with a NaN and a good one."""
    graph = Along(SGD([{"params": "**", **(group or {})}], lr=0.1), **config)
    if scaler is not None:
        graph.set_grad_scaler(scaler)
    graph(**NAN)
    graph(**ONES)
    return after(graph), graph.step, graph.skipped, graph.loss_scale


def one_schedule_two_optimizers():
    schedule = lrs.StepLR(1, gamma=0.5)
    groups = [{"params": "a", "name": "a"}], [{"params": "b", "name": "b"}]
    optimizers = SGD(groups[0], lr=0.4), Adam(groups[1], lr=0.2)
    graph = Along(*optimizers, lr_sch=schedule)
    graph(**ONES)
    return graph.lr


def two_schedules_one_optimizer():
    optimizer = SGD("**")
    for schedule in (lrs.StepLR(3), lrs.StepLR(4)):
        Along(optimizer, lr_sch=schedule)


def scheduled(schedule, steps=2):
    graph = Along(SGD("**", lr=0.4), lr_sch=schedule)
    for _ in range(steps):
        graph(**ONES)
    return graph.lr["group0"], graph.compiles.count


def early():
    class Early(glr.Graph):
        def __init__(self):
            self.model = MODEL
            super().__init__()

    Early()


def array_as_attribute():
    class Table(Along):
        def __init__(self, optimizer):
            super().__init__(optimizer)
            self.table = jnp.array([2.0, 3.0])

        def build(self, **grads):
            return super().build(**grads) * self.table

    graph = Table(SGD("**", lr=0.1))
    return graph(**ONES).tolist()


def batches(*sizes, dtypes=("float32",)):
    """Calls with batches of several sizes and dtypes: weights, compilations, why."""
    graph = Rows(SGD("**", lr=0.1))
    for size in sizes:
        for dtype in dtypes:
            ones = np.ones(size, dtype)
            graph(ones, ones)
    return round(after(graph)["a"], 5), graph.compiles.why


def one_argument_more():
    graph = Pair(SGD("**", lr=0.1))
    graph(1.0, 1.0), graph(1.0, 1.0, 5.0)
    return graph.compiles.why


def make_resumable():
    optimizer = Adam([{"params": "a", "lr_scale": 0.5}, {"params": ...}], lr=0.1)
    return Along(optimizer, lr_sch=lrs.CosineDecayLR(10))


def snapshot(graph):
    return after(graph), graph.lr, graph.step


def straight():
    graph = make_resumable()
    for i in range(10):
        graph(a=1.0 + i, b=-1.0)
    return snapshot(graph)


def resumed():
    first, second = make_resumable(), make_resumable()
    second(**ONES)  # a state may be loaded after a call too
    for i in range(5):
        first(a=1.0 + i, b=-1.0)
    second.load_state_dict(first.state_dict())
    for i in range(5, 10):
        second(a=1.0 + i, b=-1.0)
    return snapshot(second)


def handed_over():
    """Compiled, operation by operation, compiled in another graph: one optimizer."""
    model, optimizer = ones(), SGD("**", lr=0.1, momentum=0.9)
    graph = Along(optimizer, model=model)
    graph(**ONES)
    graph.eager(**ONES)
    Along(optimizer, model=model)(**ONES)
    graph(**ONES)
    return after(graph), graph.step


def two_losses():
    def build(self, a, b):
        self.backward(self.model.a * a)
        self.backward(self.model.a * 2.0 + self.model.b * b)

    graph = type("Gr", (Along,), {"build": build})(SGD("**", lr=0.1))
    graph(**ONES)
    return after(graph)


def modes():
    """A model in eval mode is trained in train mode, whenever it was switched."""

    class Dropped(Along):
        def build(self, x):
            self.backward(self.model(x).sum() + self.weights.a + self.weights.b)
            return self.model(x)

        def __init__(self, model):
            super().__init__()
            self.model, self.weights = model, ones()
            self.add_optimizer(SGD("**", lr=0.1))

    model = nnx.Dropout(0.5, rngs=nnx.Rngs(0))
    graph = Dropped(model)
    x, zeros = np.ones(64, np.float32), []
    for switch in (model.train, model.eval):
        switch()
        zeros.append(bool((graph(x) == 0).any()))
    return zeros, model.deterministic, graph.compiles.count


def rebound():
    graph = Along(SGD("**", lr=0.1))
    graph(**ONES)
    graph.model.a = nnx.Param(jnp.zeros(()))
    graph(**ONES)


def too_late(do):
    def run():
        graph = Along(SGD("**", lr=0.1))
        graph(**ONES)
        do(graph)

    return run


def loaded(change):
    """A state of Adam, after a change, in another graph."""

    def run():
        graph, other = Along(Adam("**")), Along(Adam("**"))
        state = graph.state_dict()
        change(state)
        other.load_state_dict(state)

    return run


# --- one row for each situation -------------------------------------------------------


class Raises(NamedTuple):
    """An error."""

    oneflow: str
    do: Callable[[], Any]
    kind: type[Exception]
    match: str


class Gives(NamedTuple):
    """The right result, with a warning if need be."""

    oneflow: str
    do: Callable[[], Any]
    want: Any
    warns: str | None = None


ABORT = "aborts the process"
EVERYWHERE = "accepted in a group"
BOTH = "a {0} (was {1}), b {0} (was {1})"
MODEL, OTHER = ones(), ones()
TIED = Tied()

ROWS: dict[str, Raises | Gives] = {
    # which rate a group has
    "lr_scale_in_eager": Gives(
        "ignored in eager mode",
        lambda: trained(group(lr=0.1, lr_scale=0.5), how=glr.Graph.eager),
        {"a": 0.95, "b": 0.95},
    ),
    "lr_and_lr_scale": Gives(
        "both act",
        lambda: trained(
            group(lr=0.4, lr_scale=0.5), lr_sch=lrs.StepLR(1, gamma=0.5), steps=2
        ),
        {"a": 1 - 0.2 - 0.1, "b": 1 - 0.2 - 0.1},
    ),
    # which group a parameter is in
    "one_parameter_in_two_groups": Raises(
        ABORT,
        lambda: SGD([{"params": MODEL, "name": "all"}, {"params": MODEL.a}]),
        ValueError,
        r"more than one parameter group: a in 'all' and in 'group1'\. Make the groups "
        r"disjoint, .*\{'params': \.\.\.\}",
    ),
    "one_parameter_in_two_groups_by_pattern": Raises(
        ABORT,
        lambda: trained(SGD([{"params": "**", "name": "all"}, {"params": "a"}])),
        ValueError,
        r"model\.a in 'all' and in 'group1'\. Make the groups disjoint",
    ),
    "one_parameter_in_two_groups_in_eager": Raises(
        "updated twice",
        lambda: Along(SGD([{"params": "**"}, {"params": "a"}])).eager(**ONES),
        ValueError,
        r"model\.a in 'group0' and in 'group1'\. Make the groups disjoint",
    ),
    "one_parameter_twice_in_a_group": Gives(
        "updated once",
        named_twice,
        {"a": 0.9, "b": 0.9},
        warns=r"'group0' has a parameter twice: params\.0 is params\.2\. .*leave the",
    ),
    "tied_parameter_in_two_groups": Raises(
        ABORT,
        lambda: SGD([{"params": TIED.first}, {"params": TIED.second}]),
        ValueError,
        r"more than one parameter group: w in 'group0' and in 'group1'\. Make the gr",
    ),
    "one_optimizer_twice": Raises(
        ABORT,
        lambda: Along(*[SGD("**")] * 2),
        ValueError,
        "this optimizer is in the graph already: add it once",
    ),
    "model_cast_after_the_optimizer_was_made": Gives(
        ABORT, cast_after_the_optimizer, Cast("float64", pytest.approx(0.9, rel=1e-15))
    ),
    "optimizers_overlap": Raises(
        "ValueError about the parameter",
        lambda: trained(SGD("**"), Adam([{"params": "a", "name": "adam"}])),
        ValueError,
        r"model\.a in 'group0' and in 'adam'\. Make the groups disjoint",
    ),
    "empty_group": Gives(
        "accepted, no effect",
        lambda: trained(SGD([{"params": [], "name": "no"}, {"params": "**"}], lr=0.1)),
        {"a": 0.9, "b": 0.9},
        warns=r"'no' \(\[\]\) holds no parameters; .*leave the group out",
    ),
    "empty_group_with_clip": Gives(
        "accepted, no effect",
        lambda: trained(
            SGD(
                [
                    {"params": nnx.Dropout(0.5), "clip_grad_max_norm": 1.0},
                    {"params": "**"},
                ],
                lr=0.1,
            )
        ),
        {"a": 0.9, "b": 0.9},
        warns=r"'group0' \(Dropout\) holds no parameters; .*leave the group out",
    ),
    "pattern_that_matches_nothing": Raises(
        "there are no patterns: a misspelt module is a new one, in no group",
        lambda: trained(SGD([{"params": "classifer.**"}, {"params": ...}])),
        ValueError,
        r"'classifer\.\*\*' matches no parameter\. The paths nearest to it are ",
    ),
    "exhausted_generator": Raises(
        "trains nothing, silently",
        lambda: SGD([{"params": iter([]), "name": "late"}]),
        ValueError,
        r"iterator that is already exhausted, .*\{'params': list\(.*'late'",
    ),
    "no_groups": Raises(
        "IndexError",
        lambda: SGD([]),
        ValueError,
        r"empty parameter list: give it a module or groups, \[\{'params': \.\.\.\}\]",
    ),
    "exhausted_generator_in_place_of_groups": Raises(
        "accepted",
        lambda: SGD(iter([])),
        ValueError,
        r"empty parameter list: give it a module or groups, \[\{'params': \.\.\.\}\]",
    ),
    "parameter_in_no_group": Raises(
        "not trained, silently",
        lambda: trained(SGD("a")),
        ValueError,
        r"in no group and would never train: model\.b\. Add a group, "
        r"\{'params': 'model\.b'\}, or freeze .*'frozen': True.*\{'params': \.\.\.\}",
    ),
    "frozen_parameter": Gives(
        "skipped; unfreezing a compiled graph has no effect",
        frozen_then_not,
        (1.0, 0.9, 2),
    ),
    "frozen_parameter_of_another_module": Raises(
        "KeyError: tensor(...)",
        lambda: trained(
            SGD([{"params": MODEL}, {"params": OTHER, "name": "all", "frozen": True}]),
            model=MODEL,
        ),
        ValueError,
        r"'all' .*holds parameters that no module of the graph has: .*Was the module "
        r"replaced .*Make the optimizer last, or name its parameters by path",
    ),
    "trainable_parameter_of_another_module": Raises(
        "ValueError with the whole tensor, which advises to call to(...)",
        lambda: trained(group(OTHER), model=MODEL),
        ValueError,
        r"'all' \(Weights\) holds parameters that no module of the graph has: a, b\. ",
    ),
    "parameter_that_no_loss_reaches": Gives(
        "left alone, silently",
        unused,
        (1.0, 0),
        warns=r"no loss depends on model\.b: .*misspelt or not called\? Freeze them",
    ),
    # the keys of a group and their values
    "misspelt_key": Raises(
        "kept and ignored",
        lambda: group(lr_scal=0.5),
        KeyError,
        r"group 'all' has no 'lr_scal': did you mean 'lr_scale'\? It takes ",
    ),
    "lr_scale_none": Raises(
        "TypeError of float()",
        lambda: group(lr_scale=None),
        TypeError,
        r"lr_scale must be a number, not None.*'all'",
    ),
    "lr_scale_list": Raises(
        "TypeError of float()",
        lambda: group(lr_scale=[0.5]),
        TypeError,
        r"lr_scale must be a number, not \[0\.5\].*'all'",
    ),
    "lr_scale_text": Raises(
        "accepted",
        lambda: group(lr_scale="0.5"),
        TypeError,
        r"lr_scale must be a number, not '0\.5'.*'all'",
    ),
    "lr_scale_array": Gives(
        "accepted",
        lambda: trained(group(lr=0.1, lr_scale=jnp.float32(0.5)))["a"],
        0.95,
    ),
    "lr_scale_nan": Raises(
        "accepted: parameters become NaN",
        lambda: group(lr_scale=math.nan),
        ValueError,
        r"Invalid lr_scale: nan\. It must be finite, .*\{'lr_scale': 0\.1\}.*'all'",
    ),
    "lr_scale_infinite": Raises(
        "accepted: parameters become infinite",
        lambda: group(lr_scale=math.inf),
        ValueError,
        r"Invalid lr_scale: inf\. It must be finite, .*\{'lr_scale': 0\.1\}.*'all'",
    ),
    "lr_scale_nan_later": Gives(
        "a later value is ignored", edited_badly, {"a": 0.8, "b": 0.8}
    ),
    "lr_scale_negative": Gives(
        "ascends", lambda: trained(group(lr=0.1, lr_scale=-1.0))["a"], 1.1
    ),
    "lr_scale_zero": Gives("stays; Adam's slots go on", scale_zero, (1.0, 0.9, 2, 1)),
    "lr_nan": Raises(
        "AssertionError at the top",
        lambda: SGD("**", lr=math.nan),
        ValueError,
        r"Invalid learning rate: nan\. It must be finite, at least 0, .*\{'lr': 0\.1\}",
    ),
    "lr_negative_in_a_group": Raises(
        EVERYWHERE,
        lambda: group(lr=-0.1),
        ValueError,
        r"Invalid learning rate: -0\.1\. It must be finite, at least 0, .*'all'",
    ),
    "weight_decay_negative_in_a_group": Raises(
        EVERYWHERE,
        lambda: group(weight_decay=-0.1),
        ValueError,
        r"Invalid weight_decay value: -0\.1\. .*at least 0, .*'all'",
    ),
    "betas_too_large_in_a_group": Raises(
        EVERYWHERE,
        lambda: Adam([{"params": "**", "name": "all", "betas": (1.5, 0.9)}]),
        ValueError,
        r"Invalid beta parameter at index 0: 1\.5\. .*betas=\(0\.9, 0\.999\).*'all'",
    ),
    "clip_norm_without_a_type": Gives(
        "ignored",
        lambda: trained(
            group(lr=0.1, clip_grad_max_norm=1.0), grads={"a": 3.0, "b": 4.0}
        ),
        {"a": 1 - 0.1 * 3 / 5, "b": 1 - 0.1 * 4 / 5},
    ),
    "clip_of_everything": Gives(
        "a clip is of each group alone",
        lambda: trained(
            SGD([{"params": "a"}, {"params": "b"}], lr=0.1),
            grads={"a": 3.0, "b": 4.0},
            clip_grad_norm=1.0,
        ),
        {"a": 1 - 0.1 * 3 / 5, "b": 1 - 0.1 * 4 / 5},
    ),
    # gradients that are NaN
    "nan_gradient": Gives(
        "written into every parameter of the optimizer",
        lambda: trained(SGD("**", lr=0.1), grads=NAN),
        {"a": math.nan, "b": 0.9},
    ),
    "nan_gradient_skipped": Gives(
        "only a GradScaler skips it",
        lambda: nan_then_good(skip_nonfinite=True),
        ({"a": 0.9, "b": 0.9}, 1, 1, 1.0),
    ),
    "nan_gradient_with_clip": Gives(
        "one NaN is in the norm, so in the whole group",
        lambda: nan_then_good(group={"clip_grad_max_norm": 1e3}, skip_nonfinite=5),
        ({"a": 0.9, "b": 0.9}, 1, 1, 1.0),
    ),
    "nan_gradient_with_scaler": Gives(
        "a GradScaler skips the step",
        lambda: nan_then_good(glr.GradScaler(init_scale=8.0)),
        ({"a": 0.9, "b": 0.9}, 1, 1, 4.0),
    ),
    # optimizers and schedules of a graph
    "add_optimizer_none": Raises(
        "AssertionError",
        lambda: Along(None),
        TypeError,
        r"takes an optimizer, glr\.optim\.SGD\(model, lr=0\.1\), not NoneType",
    ),
    "add_optimizer_module": Raises(
        "AssertionError",
        lambda: Along(MODEL),
        TypeError,
        r"takes an optimizer, glr\.optim\.SGD\(model, lr=0\.1\), not Weights",
    ),
    "add_optimizer_optax": Raises(
        "an optimizer of one's own has no place in a graph",
        lambda: Along(optax.sgd(0.1)),
        TypeError,
        r"an optax transformation is a rule: glr\.optim\.Optimizer\(model, rule=lambda",
    ),
    "schedule_of_another_optimizer": Gives(
        "AssertionError: a schedule belongs to one optimizer",
        one_schedule_two_optimizers,
        {"a": 0.2, "b": 0.1},
    ),
    "two_schedules_for_one_optimizer": Raises(
        "AssertionError: a schedule belongs to one optimizer",
        two_schedules_one_optimizer,
        ValueError,
        "has a schedule from another graph, .*make an optimizer of its own for this",
    ),
    "reduce_on_plateau": Raises(
        "AssertionError without a message",
        lambda: Along(SGD("**"), lr_sch=lrs.ReduceLROnPlateau(SGD("**"))),
        ValueError,
        r"ReduceLROnPlateau\(.*, not a schedule, .*→ plateau\.step\(metric\) after",
    ),
    "lambda_schedule": Gives(
        "AttributeError",
        lambda: scheduled(lrs.LambdaLR(lambda step: 1 / (1 + step))),
        (pytest.approx(0.4 / 3), 1),
    ),
    "chained_schedule": Gives(
        "NotImplementedError",
        lambda: scheduled(
            lrs.ChainedScheduler([lrs.StepLR(1, gamma=0.5), lrs.ExponentialLR(0.1)])
        ),
        (pytest.approx(0.4 * 0.5**2 * 0.1**2), 1),
    ),
    "floor_above_the_rate": Gives(
        ABORT, lambda: scheduled(lrs.CosineAnnealingLR(2, eta_min=0.5)), (0.5, 1)
    ),
    "no_milestones": Gives(ABORT, lambda: scheduled(lrs.MultiStepLR([])), (0.4, 1)),
    "warmup_of_groups_with_different_rates": Gives(
        "ValueError",
        lambda: SGD(
            [{"params": "a", "lr": 0.0}, {"params": "b", "lr": 0.2}],
            lr_sch=lrs.WarmupLR(lrs.StepLR(9), warmup_factor=0.5, warmup_iters=2),
        ).lr(1),
        {"group0": 0.0, "group1": 0.15},
    ),
    "schedule_made_and_not_passed": Raises(
        "the graph goes on without it",
        lambda: lrs.StepLR(SGD("**"), 3),
        TypeError,
        r"StepLR takes no optimizer, .*→ self\.add_optimizer\(optimizer, lr_sch=Step",
    ),
    "numbers_changed_after_compiling": Gives(
        "ignored",
        lambda: edited(lr=0.3, lr_scale=0.5),
        ({"a": 0.9 - 0.15, "b": 0.9 - 0.15}, 1),
    ),
    # attributes of a graph
    "optimizer_as_attribute": Raises(
        "AttributeError",
        lambda: setattr(Along(), "opt", SGD("**")),
        AttributeError,
        r"self\.opt = optimizer would train nothing: self\.add_optimizer\(optimizer\)",
    ),
    "array_as_attribute": Gives("AttributeError", array_as_attribute, [4.0, 6.0]),
    "attribute_before_init": Raises(
        "AttributeError",
        early,
        AttributeError,
        r"self\.model is set before .*: call super\(\)\.__init__\(\) first",
    ),
    # build
    "no_backward": Raises(
        "'Loss blob not found' and a C++ trace",
        build_is(lambda self, a, b: self.model.a * a, SGD("**")),
        RuntimeError,
        r"never called self\.backward\(loss\): call it, or make the graph without add_",
    ),
    "no_optimizer": Raises(
        "an exception about its job's TrainConf",
        build_is(lambda self, a, b: self.backward(self.model.a * a)),
        RuntimeError,
        r"in a graph without optimizer: call self\.add_optimizer\(optimizer\) in __ini",
    ),
    "loss_that_is_no_scalar": Raises(
        "'Grad can be implicitly created only for scalar outputs'",
        build_is(
            lambda self, a, b: self.backward(self.model.a * np.ones(3)), SGD("**")
        ),
        ValueError,
        r"needs a scalar, and loss has shape \(3,\): self\.backward\(loss\.mean\(\)\)",
    ),
    "everything_frozen": Raises(
        "fails while building",
        lambda: trained(group(frozen=True)),
        ValueError,
        r"every parameter is frozen, .*param_groups\[0\]\['frozen'\] = False",
    ),
    "two_losses": Gives(
        "'gradient is missing for loss'", two_losses, {"a": 1 - 0.3, "b": 0.9}
    ),
    "text_number_and_none_as_arguments": Gives(
        "NotImplementedError",
        lambda: type("Gr", (Along,), {"build": lambda self, *args: args})()(
            "fast", 3, None, np.float32(2)
        ),
        ("fast", 3, None, 2.0),
    ),
    "train_and_eval_after_compiling": Gives(
        "the mode of the first call stays", modes, ([True, True], True, 1)
    ),
    "float64_parameters": Gives(
        "no kernel; with several parameters the process aborts",
        cast_after_the_optimizer,
        Cast("float64", pytest.approx(0.9, rel=1e-15)),
    ),
    # other arguments than before
    "last_smaller_batch": Gives(
        "RuntimeError",
        lambda: batches(8, 8, 5, 8, 5),
        (0.5, ["first call", BOTH.format("float32[5]", "float32[8]")]),
    ),
    "another_dtype": Gives(
        "RuntimeError",
        lambda: batches(2, dtypes=("float32", "float16")),
        (0.8, ["first call", BOTH.format("float16[2]", "float32[2]")]),
    ),
    "one_argument_less": Raises(
        "a mismatch of the sizes of two internal lists",
        lambda: Pair(SGD("**"))(1.0),
        TypeError,
        r"build\(\) missing 1 required positional argument: 'b'",
    ),
    "one_argument_more": Gives(
        "a mismatch of the sizes of two internal lists",
        one_argument_more,
        ["first call", "c float32[] (was absent)"],
    ),
    "batch_that_does_not_divide": Raises(
        "RuntimeError with '(1 vs 0)'",
        lambda: Rows(SGD("**"), gradient_accumulation_steps=4)(np.ones(6), np.ones(6)),
        ValueError,
        r"argument a has 6 entries, which don't divide into .* = 4 parts: .* 4 or 8",
    ),
    # after compiling
    "parameter_rebound": Raises(
        "not seen",
        rebound,
        ValueError,
        r"model\.a was replaced, .*make a new graph and optimizer over the changed mod",
    ),
    "option_set_too_late": Raises(
        "ignored",
        too_late(lambda graph: setattr(graph.config, "clip_grad_norm", 1.0)),
        AttributeError,
        r"comes too late, .*make a new graph over the same model and set it before",
    ),
    "optimizer_added_too_late": Raises(
        "ignored",
        too_late(lambda graph: graph.add_optimizer(Adam("**"))),
        RuntimeError,
        r"too late, .*call it in __init__, or optimizer\.add_param_group\(\{'params'",
    ),
    # state
    "resumed": Gives("bit for bit, if loaded before the first call", resumed, straight),
    "eager_after_compiled": Gives(
        "slots stay in the graph: nothing is handed over",
        handed_over,
        lambda: (trained(SGD("**", lr=0.1, momentum=0.9), steps=4), 4),
    ),
    "state_without_slots": Raises(
        "they start fresh, silently",
        loaded(lambda state: state.pop("slots.model.a.exp_avg")),
        ValueError,
        r"doesn't fit the graph \(strict=False .*missing: slots\.model\.a\.exp_avg",
    ),
    "state_with_a_slot_of_another_shape": Raises(
        "accepted",
        loaded(
            lambda state: state.update({"slots.model.a.exp_avg": np.zeros(2, "f4")})
        ),
        ValueError,
        r"slots\.model\.a\.exp_avg is float32\[2\], and the graph has a number",
    ),
}


def said(error):
    return "\n".join([str(error), *getattr(error, "__notes__", ())])


def all_that_are(kind):
    names = [name for name, row in ROWS.items() if isinstance(row, kind)]
    return pytest.mark.parametrize("name", names)


@all_that_are(Raises)
def test_errors(name):
    row = ROWS[name]
    with pytest.raises(row.kind) as caught:
        row.do()
    assert re.search(row.match, said(caught.value), re.DOTALL), said(caught.value)


def near(want):
    """`want` with its numbers within 1e-6."""
    if isinstance(want, tuple) and type(want) is tuple:
        return tuple(map(near, want))
    numbers = isinstance(want, float | dict)
    return pytest.approx(want, rel=1e-6, nan_ok=True) if numbers else want


@all_that_are(Gives)
def test_right_results(name):
    row = ROWS[name]
    if row.warns is None:
        got = row.do()
    else:
        with pytest.warns(UserWarning, match=row.warns):
            got = row.do()
    assert got == near(row.want() if callable(row.want) else row.want)
