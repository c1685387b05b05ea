"""What OneFlow 0.9's own tests of graphs, optimizers and schedules check, checked here.

`COVERAGE` says for each of them which test of ours does, so that none is left out.
"""

import re
import subprocess
import sys
import threading
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import graphlr as glr
from graphlr.optim import SGD
from graphlr.optim import lr_scheduler as lrs
from tests import ROOT
from tests.models import (
    Evaluate,
    Given,
    Regress,
    Train,
    Weights,
    assert_close,
    assert_same,
    linear,
    values,
)

TESTS = ROOT / "tests"
SUITE = "oneflow/test_suite"

# OneFlow's test: ours, as file::function. What begins with "-" says why there is none.
COVERAGE: dict[str, list[str]] = {
    "graph/test_graph_lr_scale": [f"{SUITE}::test_scale_by_depth"],
    "graph/test_graph_lr_scheduler": [
        f"{SUITE}::test_the_compiled_rate_is_the_hosts",
        "optim/lr_scheduler/test_lr_scheduler::test_oneflow",
        "oneflow/test_golden::test_training",
    ],
    "graph/test_graph_lr_with_warmup": [
        f"{SUITE}::test_weights_of_21_steps",
        "oneflow/test_golden::test_training",
    ],
    "graph/test_graph_lrs": [f"{SUITE}::test_weights_of_21_steps"],
    "graph/test_graph_optimizer": [
        "test_graph::test_several_optimizers_each_with_its_schedule",
        "oneflow/test_golden::test_training",
        f"{SUITE}::test_a_clip_comes_before_every_rule",
    ],
    **{
        f"graph/test_graph_optim_{name}": [
            f"{SUITE}::test_optimizers_against_their_formulas",
            f"{SUITE}::test_a_clip_comes_before_every_rule",
            "oneflow/test_golden::test_training",
        ]
        for name in ("sgd", "adam", "adamw", "adagrad", "rmsprop", "lamb", "adadelta")
    },
    "graph/test_graph_optim_ftrl": ["- Ftrl is for sparse one-embedding tables"],
    "graph/test_graph_clip_grad_norm": [
        f"{SUITE}::test_clip_of_a_group",
        f"{SUITE}::test_clip_of_everything",
    ],
    "graph/test_graph_grad_acc": [
        f"{SUITE}::test_parts_equal_a_loop",
        f"{SUITE}::test_what_parts_give_back",
        "oneflow/test_golden::test_training",
        "optim/rules/test_scenarios::test_accumulation_takes_the_mean",
    ],
    "graph/test_graph_reshape_acc": [f"{SUITE}::test_reshape_sees_one_part"],
    "graph/test_graph_save_load": [
        f"{SUITE}::test_the_third_step_after_loading",
        "state/test_state_dict::test_a_state_before_the_first_call_is_complete",
        "state/test_loading::test_resume_equals_not_stopping",
    ],
    "graph/test_graph_save_load_global_b_s": ["- there is no sharding yet"],
    "graph/test_graph_zero": ["- there is no sharding yet"],
    "graph/test_graph_activation_checkpoint": [
        "modules/test_calls::test_the_same_training"
    ],
    "graph/test_graph_io_check": [
        f"{SUITE}::test_nested_arguments_and_results",
        "test_graph::test_any_pytree_in_and_out",
        "step/test_step::test_every_kind_of_result",
    ],
    "graph/test_graph_loss": [f"{SUITE}::test_losses"],
    "graph/test_graph": [
        "test_graph::test_trace_errors_say_with_what",  # the name of a graph
        f"{SUITE}::test_an_optimizer_made_inside",
        f"{SUITE}::test_two_threads",
        "test_graph::test_a_step_in_another_thread",
    ],
    "graph/test_graph_reuse_var": [
        f"{SUITE}::test_tied_weights",
        "groups/test_labels::test_tied_weights_appear_once_under_their_first_path",
    ],
    "graph/test_graph_linear_train": [
        f"{SUITE}::test_parts_equal_a_loop",
        "test_graph::test_eager_gives_the_same_step",
    ],
    "graph/test_forward_graph": [
        "test_graph::test_train_and_eval_graphs_share_the_model"
    ],
    "graph/test_multi_graph": [
        f"{SUITE}::test_two_train_graphs_and_one_to_evaluate",
        "test_graph::test_train_and_eval_graphs_share_the_model",
    ],
    "graph/test_graph_free_eager_tensor": [f"{SUITE}::test_captured_arrays"],
    "graph/test_graph_non_contiguous_tensors": [f"{SUITE}::test_strided_arguments"],
    "graph/test_graph_depend": [f"{SUITE}::test_assignments_keep_their_order"],
    "graph/test_graph_random_seed": [
        f"{SUITE}::test_two_dropouts_draw_differently",
        f"{SUITE}::test_recomputed_dropout_draws_the_same",
        "state/test_loading::test_resume_equals_not_stopping",
    ],
    "graph/test_graph_scalar": [f"{SUITE}::test_scalars"],
    "graph/test_graph_debug": [f"{SUITE}::test_debug"],
    "graph/test_optimization_conf": ["step/test_config::test_values_are_normalised"],
    "graph/test_graph_sparse_optimizer": ["- gradients are dense in JAX"],
    "graph/*pipeline*, *gbc*, *comb*, *nccl*, *separate_compile*, *auto_parallel*": [
        "- one device, one program"
    ],
    "graph/test_multi_tensor_{sgd,adam}_update_with_cast": [
        "precision/test_casting::test_small_updates_are_not_rounded_away"
    ],
    "modules/test_lr_scheduler": [
        "optim/lr_scheduler/test_lr_scheduler::test_oneflow",
        "optim/lr_scheduler/test_lr_scheduler::test_torch_on_the_host",
        "optim/lr_scheduler/test_plateau::test_every_setting",
        "optim/rules/test_conformance::test_saved_by_name_and_restored_goes_on_bit_for_bit",
    ],
    "modules/test_optim_{sgd,adam,adamw,adagrad,rmsprop,lamb,adadelta}": [
        f"{SUITE}::test_optimizers_against_their_formulas",
        f"{SUITE}::test_clip_of_a_group",
        "optim/rules/test_golden_torch::test_trajectory",
        "optim/rules/test_conformance::test_saved_by_name_and_restored_goes_on_bit_for_bit",
    ],
    "modules/test_optim_add_param_group": [
        "test_graph::test_add_param_group_in_mid_training"
    ],
    "exceptions/test_optim_add_param_group": [
        "groups/test_group::test_a_parameter_in_two_groups_names_it_and_both"
    ],
    "modules/test_clip_grad": [
        "optim/transforms/test_transforms::test_clip",
        f"{SUITE}::test_clip_of_everything",
    ],
    "modules/test_checkpointing": [f"{SUITE}::test_how_often_a_module_runs"],
}


def test_every_test_that_is_named_exists():
    for ours in COVERAGE.values():
        for name in ours:
            if not name.startswith("- "):
                file, function = name.split("::")
                text = (TESTS / f"{file}.py").read_text()
                assert f"\ndef {function}(" in text, name


# --- what the tests share -------------------------------------------------------------

RNG = np.random.default_rng(0)


class Fit(Train):
    """Trains the model to give y, and returns what it gave."""

    def build(self, x, y):
        prediction = self.model(x)
        loss = ((prediction - y) ** 2).mean()
        self.backward(loss)
        return loss, prediction


class Sum(Train):
    """Trained by the sum of what the model gives."""

    def loss(self, x):
        return self.model(x).sum()


class MLP(nnx.Module):
    def __init__(self):
        self.body, self.head = linear(4, 4, seed=0), linear(4, 4, seed=1)

    def __call__(self, x):
        return self.head(jnp.tanh(self.body(x)))


X, Y = RNG.normal(size=(2, 8, 4)).astype(np.float32)


def gradient(weights, x, y):
    """The loss of an MLP that is fitted, and its gradient, by hand in float64."""
    inner, x = weights["body.kernel"], x.astype(float)
    hidden = np.tanh(x @ inner + weights["body.bias"])
    error = hidden @ weights["head.kernel"] + weights["head.bias"] - y
    ahead = 2 * error / error.size
    behind = (ahead @ weights["head.kernel"].T) * (1 - hidden**2)
    return (error**2).mean(), {
        "body.kernel": x.T @ behind,
        "body.bias": behind.sum(0),
        "head.kernel": hidden.T @ ahead,
        "head.bias": ahead.sum(0),
    }


# --- learning rates -------------------------------------------------------------------


@pytest.mark.parametrize("how", [glr.Graph.__call__, glr.Graph.eager])
@pytest.mark.parametrize("depth", [3, 4])
def test_scale_by_depth(depth, how):
    """Layer i has the scale base^(i+1): one step of each rate, one compilation."""
    names, batch = [f"layer{i}" for i in range(depth)], 7
    groups = [{"params": f"{name}.*", "name": name} for name in names]
    optimizer = SGD(groups)
    model = nnx.Dict({name: linear(3, 2) for name in names})

    class OfAll(Train):
        def loss(self, ones):
            params = jax.tree.leaves(nnx.state(self.model, nnx.Param))
            return sum(param.sum() for param in params) * ones.sum()

    graph = OfAll(model, optimizer)
    for base in (0.1, 0.2):
        for lr in (1.0, 0.1):
            scales = {name: base ** (i + 1) for i, name in enumerate(names)}
            for name, scale in scales.items():
                optimizer.param_groups[name].update({"lr": lr, "lr_scale": scale})
            before = values(model)
            how(graph, np.ones(batch, np.float32))
            want = {
                key: value - batch * lr * scales[key.split(".")[0]]
                for key, value in before.items()
            }
            assert_close(values(model), want, rtol=1e-6, atol=1e-6)
    assert graph.compiles.count == (how is glr.Graph.__call__)


SCHEDULES = {
    "constant": lrs.ConstantLR(0.5, 7),
    "linear": lrs.LinearLR(0.25, total_iters=9),
    "linear down": lrs.LinearLR(1.0, 0.3, 9),
    "step": lrs.StepLR(4, 0.5),
    "multistep": lrs.MultiStepLR([3, 9, 15], 0.5),
    "exponential": lrs.ExponentialLR(0.9),
    "polynomial": lrs.PolynomialLR(12, 2.0, 1e-3),
    "polynomial cycle": lrs.PolynomialLR(6, 1.0, 1e-3, cycle=True),
    "cosine decay": lrs.CosineDecayLR(14, 0.1),
    "cosine": lrs.CosineAnnealingLR(14, 1e-3),
    "restarts": lrs.CosineAnnealingWarmRestarts(3, 2, 1e-3),
    "restarts limit": lrs.CosineAnnealingWarmRestarts(4, 1, 1e-3, 0.5, 2),
    "warmup none": lrs.WarmupLR(lrs.StepLR(5), warmup_iters=0),
    "warmup linear": lrs.WarmupLR(warmup_factor=0.1, warmup_iters=6),
    "warmup constant": lrs.WarmupLR(None, 0.1, 6, "constant"),
    "warmup prefix": lrs.WarmupLR(lrs.CosineDecayLR(10), 0.1, 5, warmup_prefix=True),
    "warmup cosine": lrs.WarmupLR(lrs.CosineDecayLR(15), 0.1, 5),
    "warmup constant cosine": lrs.WarmupLR(lrs.CosineDecayLR(15), 0.1, 5, "constant"),
    "warmup constant prefix": lrs.WarmupLR(lrs.StepLR(4), 0.1, 5, "constant", True),
    "sequential": lrs.SequentialLR([lrs.LinearLR(), lrs.ExponentialLR(0.9)], [6]),
}


class Run(NamedTuple):
    """21 steps of one graph with a group for every schedule."""

    host: list[dict[str, float]]
    compiled: list[dict[str, float]]
    weights: dict[str, np.ndarray]
    losses: list[float]
    targets: np.ndarray
    compiles: int


@pytest.fixture(scope="module")
def scheduled():
    names = {name: name.replace(" ", "_") for name in SCHEDULES}
    targets = np.random.default_rng(1).normal(size=(21, 3)).astype(np.float32)

    class Quadratic(Train):
        def loss(self, target):
            params = jax.tree.leaves(nnx.state(self.model, nnx.Param))
            return sum(((param - target) ** 2).sum() for param in params)

    groups = [
        {"params": names[name], "name": name, "lr_sch": schedule, "lr_scale": 0.5}
        for name, schedule in SCHEDULES.items()
    ]
    optimizer = SGD(groups, lr=0.2, momentum=0.9)
    model = Weights(**{name: np.ones(3) for name in names.values()})
    graph = Quadratic(model, optimizer, group_stats=True)
    host, compiled, losses = [], [], []
    for target in targets:
        host.append(graph.lr)
        losses.append(float(graph(target)))
        stats = graph.group_stats
        compiled.append({name: stats[name]["lr"] for name in SCHEDULES})
    weights = values(graph.model)
    weights = {name: weights[names[name]] for name in SCHEDULES}
    return Run(host, compiled, weights, losses, targets, graph.compiles.count)


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_compiled_rate_is_the_hosts(name, scheduled):
    """The rate that is read, the one that acted and the schedule's own are one."""
    want = SCHEDULES[name].sample(0.2, 21) * 0.5
    for got, limit in ((scheduled.host, 1e-12), (scheduled.compiled, 1e-6)):
        np.testing.assert_allclose([rate[name] for rate in got], want, rtol=limit)


def test_weights_of_21_steps(scheduled):
    """SGD with momentum under every schedule, in float64 by hand."""
    losses = np.zeros(21)
    for name, schedule in SCHEDULES.items():
        weight, buffer = np.ones(3), np.zeros(3)
        for t, target in enumerate(scheduled.targets.astype(float)):
            losses[t] += ((weight - target) ** 2).sum()
            gradient = 2 * (weight - target)
            buffer = 0.9 * buffer + gradient
            weight = weight - schedule(0.2, t) * 0.5 * buffer
        np.testing.assert_allclose(
            scheduled.weights[name], weight, rtol=1e-4, atol=1e-5, err_msg=name
        )
    np.testing.assert_allclose(scheduled.losses, losses, rtol=1e-5)
    assert scheduled.compiles == 1


# --- optimizers -----------------------------------------------------------------------

LR = 0.1


def sgd(w, g, s, t, *, momentum, dampening, weight_decay, nesterov, maximize):
    g = (-g if maximize else g) + weight_decay * w
    s["b"] = momentum * s["b"] + (1 - dampening) * g if t and momentum else g
    return w - LR * (g + momentum * s["b"] if nesterov else s["b"])


def adam(w, g, s, t, *, betas, weight_decay, amsgrad, do_bias_correction, kind="l2"):
    (b1, b2), eps = betas, 1e-8
    g = g + weight_decay * w if kind == "l2" else g
    s["m"] = b1 * s.get("m", 0.0) + (1 - b1) * g
    s["v"] = b2 * s.get("v", 0.0) + (1 - b2) * g**2
    s["top"] = np.maximum(s.get("top", 0.0), s["v"])
    c1, c2 = (1 - b ** (t + 1) if do_bias_correction else 1.0 for b in betas)
    v = s["top"] if amsgrad else s["v"]
    d = (s["m"] / c1) / (np.sqrt(v) / np.sqrt(c2) + eps)
    if kind == "l2":
        return w - LR * d
    if kind == "decoupled":
        return w - LR * d - LR * weight_decay * w
    ratio = np.linalg.norm(w) / np.linalg.norm(d)
    return w - LR * ratio * (d + (kind == "lamb") * weight_decay * w)


def adamw(w, g, s, t, **keys):
    return adam(w, g, s, t, kind="decoupled", **keys)


def lamb(w, g, s, t, *, weight_decay, adam_w_mode, **keys):
    g = g if adam_w_mode else g + weight_decay * w
    keys |= {"weight_decay": weight_decay, "amsgrad": False}
    return adam(w, g, s, t, kind="lamb" if adam_w_mode else "ratio", **keys)


def adagrad(w, g, s, t, *, lr_decay, weight_decay, initial_accumulator_value, eps):
    g = g + weight_decay * w
    s["s"] = s.get("s", initial_accumulator_value) + g**2
    return w - LR / (1 + t * lr_decay) * g / (np.sqrt(s["s"]) + eps)


def rmsprop(w, g, s, t, *, alpha, eps, weight_decay, centered, eps_inside_sqrt):
    g = g + weight_decay * w
    s["v"] = alpha * s.get("v", 0.0) + (1 - alpha) * g**2
    s["m"] = alpha * s.get("m", 0.0) + (1 - alpha) * g
    v = s["v"] - s["m"] ** 2 if centered else s["v"]
    return w - LR * g / (np.sqrt(v + eps) if eps_inside_sqrt else np.sqrt(v) + eps)


def adadelta(w, g, s, t, *, rho, eps, weight_decay):
    g = g + weight_decay * w
    s["v"] = rho * s.get("v", 0.0) + (1 - rho) * g**2
    d = np.sqrt(s.get("u", 0.0) + eps) / np.sqrt(s["v"] + eps) * g
    s["u"] = rho * s.get("u", 0.0) + (1 - rho) * d**2
    return w - LR * d


def grid(**choices):
    """Every combination, as dicts."""
    rows: list[dict[str, Any]] = [{}]
    for key, options in choices.items():
        rows = [{**row, key: option} for row in rows for option in options]
    return rows


DECAY = (0.0, 0.1)
ADAM = grid(
    betas=[(0.99, 0.9)],
    weight_decay=DECAY,
    amsgrad=[False, True],
    do_bias_correction=[False, True],
)
FORMULAS = [
    *(
        ("SGD", sgd, row)
        for row in grid(
            momentum=[0.0, 0.9],
            dampening=[0.0, 0.5],
            weight_decay=DECAY,
            nesterov=[False, True],
            maximize=[False, True],
        )
        if (row["momentum"] and not row["dampening"]) or not row["nesterov"]
        if row["momentum"] or not row["dampening"]
    ),
    *(("Adam", adam, row) for row in ADAM),
    *(("AdamW", adamw, row) for row in ADAM),
    *(
        ("LAMB", lamb, row)
        for row in grid(
            betas=[(0.99, 0.9)],
            weight_decay=DECAY,
            adam_w_mode=[False, True],
            do_bias_correction=[False, True],
        )
    ),
    *(
        ("Adagrad", adagrad, row)
        for row in grid(
            lr_decay=[0.0, 0.1],
            weight_decay=DECAY,
            initial_accumulator_value=[0.0, 2.1],
            eps=[1e-3],
        )
    ),
    *(
        ("RMSprop", rmsprop, row)
        for row in grid(
            alpha=[0.9],
            eps=[1e-3],
            weight_decay=DECAY,
            centered=[False, True],
            eps_inside_sqrt=[False, True],
        )
    ),
    *(
        ("Adadelta", adadelta, row)
        for row in grid(rho=[0.8], eps=[1e-4], weight_decay=DECAY)
    ),
]


@pytest.fixture(scope="module")
def trajectories():
    """Every setting is a group of one graph; 5 steps, a detour, back, 5 steps more."""
    rng = np.random.default_rng(2)
    start = rng.normal(size=(len(FORMULAS), 4))
    grads = rng.normal(size=(10, len(FORMULAS), 4))
    names = [f"w{i}" for i in range(len(FORMULAS))]
    groups = [
        {"params": name, "name": name, "optimizer": getattr(glr.optim, kind), **keys}
        for name, (kind, _, keys) in zip(names, FORMULAS, strict=True)
    ]

    def batch(t):
        return dict(zip(names, grads[t], strict=True))

    with jax.enable_x64(True):
        model = Weights(**dict(zip(names, start, strict=True)))
        graph = Given(model, SGD(groups, lr=LR))
        for t in range(5):
            graph(batch(t))
        saved = graph.state_dict()
        for _ in range(3):
            graph(batch(0))
        graph.load_state_dict(saved)
        for t in range(5, 10):
            graph(batch(t))
        assert graph.compiles.count == 1
        return start, grads, values(model)


@pytest.mark.parametrize("i", range(len(FORMULAS)))
def test_optimizers_against_their_formulas(i, trajectories):
    start, grads, got = trajectories
    kind, formula, keys = FORMULAS[i]
    weight, slots = start[i], {}
    for t in range(10):
        weight = formula(weight, grads[t, i], slots, t, **keys)
    np.testing.assert_allclose(
        got[f"w{i}"], weight, rtol=1e-6, err_msg=f"{kind} {keys}"
    )


def test_a_clip_comes_before_every_rule():
    """Each rule with a clip moves as without one by gradients clipped by hand."""
    kinds = ("SGD", "Adam", "AdamW", "Adagrad", "RMSprop", "LAMB", "Adadelta")
    rng = np.random.default_rng(3)
    start, *grads = rng.normal(size=(5, len(kinds), 4)).astype(np.float32)
    groups = [
        {
            "params": f"{kind}_{how}",
            "name": f"{kind} {how}",
            "optimizer": getattr(glr.optim, kind),
            "weight_decay": 0.1,
            "clip_grad_max_norm": clip,
        }
        for how, clip in (("clipped", 1.0), ("plain", None))
        for kind in kinds
    ]
    named = {group["params"]: start[i % len(kinds)] for i, group in enumerate(groups)}
    graph = Given(Weights(**named), SGD(groups, lr=0.1))
    for grad in grads:
        size = np.linalg.norm(grad, axis=1, keepdims=True)
        rows = np.concatenate([grad, grad / np.maximum(size + 1e-6, 1)])
        graph(dict(zip(named, rows, strict=True)))
    assert (np.linalg.norm(grads[0], axis=1) > 1.1).all()
    assert graph.compiles.count == 1
    got = values(graph.model)
    for kind in kinds:
        limits = {"rtol": 1e-5, "atol": 1e-6, "err_msg": kind}
        moved = got[f"{kind}_clipped"], got[f"{kind}_plain"]
        np.testing.assert_allclose(*moved, **limits)
        assert np.abs(moved[0] - start[kinds.index(kind)]).max() > 1e-3


# --- clips ----------------------------------------------------------------------------

NORMS = {"inf": np.inf, "-inf": -np.inf, 1: 1.0, 2: 2.0, 3.5: 3.5}
MOST = (0.0, 0.5, 1.0)
BIG = {name: RNG.normal(size=(4, 3)).astype(np.float32) for name in ("a", "b")}
MEAN = {name: grad.mean(0) for name, grad in BIG.items()}


def clipped(grads, most, p):
    sizes = np.abs(np.concatenate([np.ravel(grad) for grad in grads.values()]))
    ends = {np.inf: np.max, -np.inf: np.min}
    norm = ends[p](sizes) if p in ends else (sizes.astype(float) ** p).sum() ** (1 / p)
    factor = min(most / (norm + 1e-6), 1.0)
    return {name: grad * factor for name, grad in grads.items()}


class Batched(Given):
    """The gradient is the mean over the rows of the batch."""

    def loss(self, grads):
        return super().loss({name: grad.mean(0) for name, grad in grads.items()})


def zeros():
    return Weights(**{name: np.zeros(3) for name in BIG})


class InGroups(Train):
    """The same for several models."""

    def loss(self, grads):
        mean = {name: grad.mean(0) for name, grad in grads.items()}
        return sum(model.along(mean) for model in self.model)


@pytest.fixture(scope="module", params=[1, 4])
def clipping(request):
    """A graph with a group for every norm, of a batch in so many parts."""
    groups = [
        {"params": f"{i}.*", "clip_grad_norm_type": kind, "clip_grad_max_norm": 9.0}
        for i, kind in enumerate(NORMS)
    ]
    optimizer = SGD(groups, lr=1.0, maximize=True)
    models = nnx.List([zeros() for _ in NORMS])
    return InGroups(models, optimizer, gradient_accumulation_steps=request.param)


@pytest.mark.parametrize("kind", NORMS)
def test_clip_of_a_group(kind, clipping):
    """The clip is of the whole batch's gradient; new limits compile nothing."""
    place = [*NORMS].index(kind)
    model, (optimizer,) = clipping.model[place], clipping.optimizers
    for most in MOST:
        for weight in (model.a, model.b):
            weight.set_value(jnp.zeros(3))
        optimizer.param_groups[place]["clip_grad_max_norm"] = most
        clipping(BIG)
        want = clipped(MEAN, most, NORMS[kind])
        assert_close(values(model), want, rtol=1e-5, atol=1e-7)
    assert clipping.compiles.count == 1


@pytest.mark.parametrize("parts", [1, 4])
@pytest.mark.parametrize("kind", NORMS)
def test_clip_of_everything(kind, parts):
    """Over the groups, where each group's clip would be of its own norm."""
    optimizer = SGD([{"params": "a"}, {"params": "b"}], lr=1.0, maximize=True)
    graph = Batched(
        zeros(),
        optimizer,
        gradient_accumulation_steps=parts,
        clip_grad_norm=0.5,
        clip_grad_norm_type=kind,
    )
    graph(BIG)
    want = clipped(MEAN, 0.5, NORMS[kind])
    assert_close(values(graph.model), want, rtol=1e-5, atol=1e-7)
    assert graph.compiles.count == 1


def test_a_norm_of_type_zero_is_refused():
    """The number of nonzeros is no norm: clipping by it would scale by the size."""
    with pytest.raises(ValueError, match=r"clip_grad_norm_type is 0: give 2\.0, 1\.0"):
        SGD("**", clip_grad_norm_type=0, clip_grad_max_norm=1.0)
    with pytest.raises(ValueError, match=r"clip_grad_norm_type is 0: give 2\.0, 1\.0"):
        Given(zeros(), clip_grad_norm_type=0)


# --- a batch in parts -----------------------------------------------------------------


def loop(weights, lr, momentum, parts, steps, x, y):
    """By hand: gradients of loss / parts added up over the parts, then one step."""
    buffers = dict.fromkeys(weights, 0.0)
    losses = []
    for _ in range(steps):
        pairs = zip(np.split(x, parts), np.split(y, parts), strict=True)
        found = [gradient(weights, *pair) for pair in pairs]
        losses.append([loss for loss, _ in found])
        for name in weights:
            mean = sum(grads[name] for _, grads in found) / parts
            buffers[name] = momentum * buffers[name] + mean
        weights = {name: w - lr * buffers[name] for name, w in weights.items()}
    return np.array(losses), weights


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_parts_equal_a_loop(parts):
    optimizer = SGD("**", lr=0.1, momentum=0.9)
    graph = Fit(MLP(), optimizer, gradient_accumulation_steps=parts)
    want, weights = loop(values(graph.model), 0.1, 0.9, parts, 3, X, Y)
    losses = [np.ravel(graph(X, Y)[0]) for _ in range(3)]
    np.testing.assert_allclose(losses, want, rtol=1e-5)
    assert_close(values(graph.model), weights, rtol=1e-5, atol=1e-6)
    assert (graph.step, graph.compiles.count) == (3, 1)


CAPTURED = jnp.arange(1.0, 6.0)  # as long as no batch is


@pytest.fixture(scope="module")
def parts():
    class Parts(Fit):
        def __init__(self):
            super().__init__(MLP(), SGD("**", lr=0.1), gradient_accumulation_steps=4)
            self.held = np.arange(3.0)

        def build(self, x, y, factor):
            assert x.shape == (2, 4)  # one part
            loss, prediction = super().build(x.reshape(-1, 2, 2).reshape(x.shape), y)
            squares = x.reshape(-1)
            return {
                "loss": loss,
                "prediction": prediction,
                "rows": (x.sum(1), squares.reshape(-1, 4) * factor),
                "captured": (CAPTURED.sum(), self.held.sum()),
                "nothing": None,
                "text": "text",
            }

    model = MLP()
    prediction = np.asarray(model(X))
    graph = Parts()
    result = graph(X, Y, 2.0)
    graph(X, Y, 3.0)
    return graph, result, prediction


def test_what_parts_give_back(parts):
    """A scalar is one for each part, rows are put together, the rest is as it was."""
    graph, result, prediction = parts
    assert result["loss"].shape == (4,)
    np.testing.assert_allclose(result["prediction"], prediction, rtol=1e-5, atol=1e-6)
    want = ((prediction - Y) ** 2).reshape(4, -1).mean(1)
    np.testing.assert_allclose(result["loss"], want, rtol=1e-5)
    assert result["captured"][0].tolist() == [15.0] * 4  # a captured array is whole
    assert result["captured"][1].tolist() == [3.0] * 4
    assert (result["nothing"], result["text"]) == (None, "text")
    assert (graph.step, graph.compiles.count) == (2, 1)  # nor is a number divided


def test_reshape_sees_one_part(parts):
    _, result, _ = parts
    sums, rows = result["rows"]
    np.testing.assert_allclose(sums, X.sum(1), rtol=1e-5)
    np.testing.assert_allclose(rows, X * 2.0, rtol=1e-6)


# --- state, sharing, threads ----------------------------------------------------------


def test_the_third_step_after_loading():
    def make():
        optimizer = SGD([{"params": "body.*"}, {"params": ...}], lr=0.1, momentum=0.9)
        graph = Fit(MLP(), optimizer)
        optimizer.lr_sch = lrs.StepLR(1, gamma=0.5)
        return graph

    first, second = make(), make()
    for _ in range(2):
        first(X, Y)
    saved = first.state_dict()
    second.load_state_dict(saved)
    assert second.step == first.step == 2
    for key, value in saved.items():
        np.testing.assert_array_equal(second.state_dict()[key], value, err_msg=key)
    assert {k for k in saved if k.endswith(".momentum") and k.startswith("slots.")}
    assert float(first(X, Y)[0]) == float(second(X, Y)[0])
    assert second.lr == first.lr == {"group0": 0.0125, "group1": 0.0125}
    assert_same(values(first.model), values(second.model))
    assert (first.compiles.count, second.compiles.count) == (1, 1)


def test_an_optimizer_made_inside():
    class Inside(Fit):
        def __init__(self, model):
            super().__init__(model)
            groups = [{"params": self.model.body, "name": "body", "lr_scale": 0.5}]
            groups.append({"params": self.model.head, "name": "head"})
            self.add_optimizer(SGD(groups, lr=0.1), lr_sch=lrs.CosineDecayLR(4))

    graph = Inside(MLP())
    for _ in range(2):
        graph(X, Y)
    assert graph.lr == pytest.approx({"body": 0.025, "head": 0.05})
    assert graph.compiles.count == 1


def test_two_threads():
    """One trains, one evaluates, one model: as if there were one thread."""
    alone, together = (
        Regress(MLP(), SGD("**", lr=0.01, momentum=0.9)) for _ in range(2)
    )

    class EvaluateBoth(Evaluate):
        def build(self, x):
            return self.model(x), self.model.head.kernel.sum()

    evaluate, failures = EvaluateBoth(together.model), []

    def repeat(work):
        try:
            for _ in range(30):
                jax.block_until_ready(work())
        except Exception as error:
            failures.append(error)

    works = (lambda: together(X, Y), lambda: evaluate(X))
    threads = [threading.Thread(target=repeat, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for _ in range(30):
        alone(X, Y)
    for thread in threads:
        thread.join()
    assert not failures
    assert_same(values(together.model), values(alone.model))
    assert (together.compiles.count, evaluate.compiles.count) == (1, 1)


class Tied(nnx.Module):
    """One matrix at both ends, as a language model has."""

    def __init__(self):
        self.embed, self.head = linear(3, 3, seed=0), linear(3, 3, seed=1)
        self.head.kernel = self.embed.kernel

    def __call__(self, x):
        return self.head(self.embed(x))


def test_tied_weights():
    """One parameter, one slot, one step by the gradient of both uses."""
    model, x = Tied(), X[:, :3]
    kernel = np.asarray(model.embed.kernel.get_value())
    graph = Sum(model, SGD("**", lr=0.1, momentum=0.9))
    graph(x)
    ahead = np.ones_like(x)  # the gradient of the sum, by each result
    as_head, as_embedding = (x @ kernel).T @ ahead, x.T @ (ahead @ kernel.T)
    want = kernel - 0.1 * (as_head + as_embedding)
    np.testing.assert_allclose(model.embed.kernel.get_value(), want, rtol=1e-4)
    assert model.head.kernel is model.embed.kernel
    kernels = [key for key in graph.state_dict() if "kernel" in key]
    assert kernels == ["model.embed.kernel", "slots.model.embed.kernel.momentum"]
    assert "(3)" in str(graph)  # a kernel and two biases
    assert graph.compiles.count == 1


def test_two_train_graphs_and_one_to_evaluate():
    """Each trains its half of one model in turn, as a loop by hand does."""
    model = MLP()

    def half(mine, others):
        groups = [{"params": mine}, {"params": others, "frozen": True}]
        return Regress(model, SGD(groups, lr=0.1, momentum=0.9))

    body, head = half(model.body, model.head), half(model.head, model.body)
    evaluate = Evaluate(model)
    weights = values(model)
    buffers = dict.fromkeys(weights, 0.0)
    for _ in range(3):
        for graph, part in ((body, "body"), (head, "head")):
            graph(X, Y)
            _, grads = gradient(weights, X, Y)
            for name in (f"{part}.kernel", f"{part}.bias"):
                buffers[name] = 0.9 * buffers[name] + grads[name]
                weights[name] = weights[name] - 0.1 * buffers[name]
        hidden = np.tanh(X @ weights["body.kernel"] + weights["body.bias"])
        want = hidden @ weights["head.kernel"] + weights["head.bias"]
        np.testing.assert_allclose(evaluate(X), want, rtol=1e-4, atol=1e-5)
    assert_close(values(model), weights, rtol=1e-4, atol=1e-6)
    assert [graph.compiles.count for graph in (body, head, evaluate)] == [1, 1, 1]


# --- arguments and results ------------------------------------------------------------


@jax.tree_util.register_pytree_node_class
class Box:
    """A class that the user registered."""

    def __init__(self, array, label):
        self.array, self.label = array, label

    def tree_flatten(self):
        return (self.array,), self.label

    @classmethod
    def tree_unflatten(cls, label, children):
        return cls(*children, label)


class Item(NamedTuple):
    x: Any
    y: Any


def test_nested_arguments_and_results():
    class Nested(Fit):
        def build(self, batch, *rest, box, **named):
            loss, prediction = super().build(batch["item"].x, batch["item"].y)
            return {
                "loss": [loss, (loss * 2,)],
                "item": Item(prediction, None),
                "box": Box(box.array + 1, box.label),
                "rest": rest,
                "named": named,
            }

    graph = Nested(MLP(), SGD("**", lr=0.1))
    plain = Fit(MLP(), SGD("**", lr=0.1))
    for count in (1, 1, 2):  # another label is another constant
        label = "first" if count == 1 else "second"
        got = graph(
            {"item": Item(X, Y), "unused": [None, ()]},
            [X[0], {"deep": (X[1],)}],
            None,
            box=Box(X[2], label),
            flag=True,
            other={"a": [1, 2.5]},
        )
        loss, prediction = plain(X, Y)
        np.testing.assert_allclose(got["loss"][1][0], 2 * loss, rtol=1e-6)
        assert isinstance(got["item"], Item)
        np.testing.assert_allclose(got["item"].x, prediction, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(got["box"].array, X[2] + 1, rtol=1e-6)
        assert got["box"].label == label
        (first, nested), nothing = got["rest"]
        np.testing.assert_array_equal(first, X[0])
        np.testing.assert_array_equal(nested["deep"][0], X[1])
        assert nothing is None
        assert got["named"]["flag"] is True
        assert [float(x) for x in got["named"]["other"]["a"]] == [1.0, 2.5]
        assert graph.compiles.count == count
    with pytest.raises(TypeError, match=r"argument box is a object, which can't be"):
        graph({"item": Item(X, Y)}, box=object())


LABELS = RNG.integers(0, 4, 8)
LOSSES = {
    "cross entropy": lambda out: optax.softmax_cross_entropy_with_integer_labels(
        out, LABELS
    ).mean(),
    "binary": lambda out: optax.sigmoid_binary_cross_entropy(
        out[:, 0], LABELS % 2
    ).sum(),
    "smooth L1": lambda out: optax.huber_loss(out, Y, delta=1.0).mean(),
    "KL": lambda out: optax.kl_divergence(
        jax.nn.log_softmax(out), jax.nn.softmax(jnp.asarray(Y))
    ).mean(),
}


@pytest.fixture(scope="module")
def by_each_loss():
    """Losses and weights of a model for each loss: of a graph, and of jax.grad."""

    class Losses(Train):
        def build(self, x):
            found = [
                loss(m(x)) for loss, m in zip(LOSSES.values(), self.model, strict=True)
            ]
            self.backward(sum(found))
            return found

    models = nnx.List([MLP() for _ in LOSSES])
    graphdef, params = nnx.split(nnx.clone(models), nnx.Param)
    graph = Losses(models, SGD("**", lr=0.1))

    @jax.jit
    def step(params):
        def total(params):
            pairs = zip(LOSSES.values(), nnx.merge(graphdef, params), strict=True)
            found = [loss(model(X)) for loss, model in pairs]
            return sum(found), found

        grads, found = jax.grad(total, has_aux=True)(params)
        return found, jax.tree.map(lambda w, g: w - 0.1 * g, params, grads)

    losses = []
    for _ in range(2):
        found, params = step(params)
        losses.append((graph(X), found))
    assert graph.compiles.count == 1
    return losses, models, nnx.merge(graphdef, params)


@pytest.mark.parametrize("name", LOSSES)
def test_losses(name, by_each_loss):
    """A graph's step equals one by jax.grad."""
    losses, models, others = by_each_loss
    place = [*LOSSES].index(name)
    for found, want in losses:
        np.testing.assert_allclose(found[place], want[place], rtol=1e-5)
    got, want = values(models[place]), values(others[place])
    assert_close(got, want, rtol=1e-4, atol=1e-6)
    assert np.abs(got["head.kernel"] - values(MLP())["head.kernel"]).max() > 1e-3


def test_strided_arguments():
    """Views are read as they are, and left as they are in the caller."""
    wide = RNG.normal(size=(4, 16)).astype(np.float32)
    views = [wide.T[::2], wide.T[::-2], np.asfortranarray(wide.T[:8]), wide.T[:8]]
    strided, plain = (Regress(linear(4, 4), SGD("**", lr=0.1)) for _ in range(2))
    for view in views:
        strides, copy = view.strides, np.ascontiguousarray(view)
        losses = strided(view, Y), plain(copy, Y)
        np.testing.assert_allclose(*losses, rtol=1e-6)
        assert view.strides == strides
        np.testing.assert_array_equal(view, copy)
    assert_close(values(strided.model), values(plain.model), rtol=1e-6)
    assert (strided.compiles.count, plain.compiles.count) == (1, 1)


def test_captured_arrays():
    """An array from outside is a constant; a strided view of one too."""
    table = np.arange(12, dtype=np.float32).reshape(3, 4)
    column, device = table[:, 1], jnp.asarray(table.T)[::2]

    class Captured(Train):
        def build(self, x):
            loss = (self.model.w * x * column).sum() + (
                self.model.w * device[1, :]
            ).sum()
            self.backward(loss)
            return loss, column + 0

    compiled, eager = (
        Captured(Weights(w=np.ones(3)), SGD("**", lr=0.1)) for _ in range(2)
    )
    x = np.float32([1.0, 2.0, 3.0])
    for _ in range(2):
        (a, seen), (b, _) = compiled(x), eager.eager(x)
        np.testing.assert_allclose(a, b, rtol=1e-6)
        np.testing.assert_array_equal(seen, [1.0, 5.0, 9.0])
    want = 1 - 0.1 * 2 * (x * table[:, 1] + table[:, 2])
    np.testing.assert_allclose(compiled.model.w.get_value(), want, rtol=1e-5)
    assert [k for k in compiled.state_dict() if k.startswith("model")] == ["model.w"]
    assert compiled.compiles.count == 1


class Counter(nnx.Module):
    def __init__(self):
        self.count = nnx.Variable(jnp.zeros(()))
        self.w = nnx.Param(jnp.ones(()))

    def __call__(self, x):
        self.count.set_value(self.count.get_value() + 1)
        return self.w * x * self.count


def test_assignments_keep_their_order():
    """What build assigns is read by what follows it, and by the next call."""

    class Ordered(Train):
        def build(self, x):
            before = self.model.count.get_value()
            first = self.model(x)  # counts
            self.model.count.set_value(self.model.count.get_value() * 10)
            second = self.model(x)  # counts
            self.backward(first + second)
            return before, first, second, self.model.count.get_value()

    compiled, eager = (Ordered(Counter(), SGD("**", lr=0.0)) for _ in range(2))
    want = [(0.0, 1.0, 11.0, 11.0), (11.0, 12.0, 121.0, 121.0)]
    for row in want:
        assert tuple(map(float, compiled(1.0))) == row
        assert tuple(map(float, eager.eager(1.0))) == row
    assert compiled.compiles.count == 1


# --- randomness, scalars, recomputation, debug ----------------------------------------


class TwoDropouts(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(dropout=0)
        self.w = nnx.Param(jnp.ones(64))
        self.a, self.b = nnx.Dropout(0.5, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        x = x * self.w
        return self.a(x), self.b(x)


class Drop(Train):
    def build(self, x):
        a, b = self.model(x)
        self.backward((a + b).sum())
        return a, b


ONES = np.ones(64, np.float32)


@pytest.fixture(scope="module")
def drawn():
    """What two dropouts drew in two steps: compiled, by hand, in parts."""
    compiled, eager = (Drop(TwoDropouts(), SGD("**", lr=0.0)) for _ in range(2))
    calls = [np.array([compiled(ONES), eager.eager(ONES)]) for _ in range(2)]
    assert compiled.compiles.count == 1
    return np.array(calls)  # step, way, dropout, entry


def test_two_dropouts_draw_differently(drawn):
    np.testing.assert_array_equal(drawn[:, 0], drawn[:, 1])  # compiled as by hand
    assert set(np.unique(drawn)) == {0.0, 2.0}
    masks = {tuple(mask) for mask in drawn[:, 0].reshape(4, -1)}
    assert len(masks) == 4  # two dropouts, two steps
    assert (np.abs(drawn[:, 0].mean(-1) - 1) < 0.5).all()


def test_parts_of_a_batch_draw_differently():
    class Rows(Drop):
        def build(self, x):
            a, b = super().build(x[0])
            return a[None], b[None]

    graph = Rows(TwoDropouts(), SGD("**", lr=0.0), gradient_accumulation_steps=2)
    a, b = graph(np.ones((2, 64), np.float32))
    assert len({tuple(mask) for mask in np.concatenate([a, b]).tolist()}) == 4
    assert graph.compiles.count == 1


def test_recomputed_dropout_draws_the_same(drawn):
    """The gradient is the mask that the result was made with."""
    graph = Drop(TwoDropouts(), SGD("**", lr=1.0), remat="model")
    a, b = graph(ONES)
    np.testing.assert_array_equal([a, b], drawn[0, 0])
    np.testing.assert_allclose(1 - graph.model.w.get_value(), a + b, rtol=1e-6)
    graph.model.w.set_value(jnp.ones(64))
    np.testing.assert_array_equal(graph(ONES), drawn[1, 0])
    assert graph.compiles.count == 1


@pytest.mark.parametrize(("remat", "runs"), [(None, 1), ("model.body", 2)])
def test_how_often_a_module_runs(remat, runs):
    seen = []

    class Watched(nnx.Linear):
        def __call__(self, x):
            jax.debug.callback(lambda: seen.append(1))
            return jnp.tanh(super().__call__(x))

    model = MLP()
    model.body = Watched(4, 4, rngs=nnx.Rngs(0))
    graph = Regress(model, SGD("**", lr=0.1), remat=remat)
    for _ in range(3):
        graph(X, Y)
    jax.effects_barrier()
    assert len(seen) == 3 * runs
    assert graph.compiles.count == 1


@pytest.mark.parametrize(
    "numbers",
    [(1.0, 2.5, -3.0), (np.float32(1), jnp.float32(2.5), np.array(-3.0, np.float32))],
    ids=["Python", "arrays"],
)
def test_scalars(numbers):
    """Numbers go in, into the loss and out; another one compiles nothing new."""

    class Scalars(Train):
        def build(self, x, power):
            w = self.model.w
            y = 3 - (2.0 * w + x) / 4 + w**power - (-w) * np.float32(0.5)
            self.backward(y)
            return y, x + 1, y > 0, jnp.floor(y).astype(int)

    graph = Scalars(Weights(w=0.5), SGD("**", lr=0.125))
    w = 0.5
    for x in numbers:
        y, more, positive, whole = graph(x, 3)
        want = 3 - (2 * w + float(x)) / 4 + w**3 + w / 2
        np.testing.assert_allclose(y, want, rtol=1e-5)
        assert float(more) == float(x) + 1
        assert (bool(positive), int(whole)) == (want > 0, np.floor(want))
        w -= 0.125 * (-0.5 + 3 * w**2 + 0.5)
        np.testing.assert_allclose(graph.model.w.get_value(), w, rtol=1e-5)
    assert graph.compiles.count == 1


def test_debug(capsys):
    """Each level says what the one below says, and more; -1 says nothing."""
    said = []
    for level in (-1, 0, 1, 2, 3):
        graph = Regress(linear(4, 4), SGD("**", lr=0.1))
        graph.debug(level)
        graph(X, Y)
        said.append(capsys.readouterr().out)
        graph(X, Y)
        assert not capsys.readouterr().out
    assert said[0] == ""
    lengths = [len(text) for text in said]
    assert lengths == sorted(lengths)
    assert len(set(lengths)) == 5
    for level in (4, -2, "all", None):
        with pytest.raises(ValueError, match="give -1, 0, 1, 2 or 3"):
            Regress(linear(4, 4)).debug(level)


# --- docs/from_oneflow.md -------------------------------------------------------------

PAGE = (ROOT / "docs" / "from_oneflow.md").read_text()


def test_options_of_jax_that_are_named_exist():
    names = set(re.findall(r"[`\"](jax_\w+)", PAGE))
    assert names
    for name in names:
        assert hasattr(jax.config, name), name


def test_flags_of_xla_that_are_named_exist():
    """XLA ends a process that has a flag it doesn't know."""
    flags = sorted(set(re.findall(r"--xla_\w+=\w+", PAGE)))
    assert flags
    code = "import jax; jax.jit(lambda x: x + 1)(1.0)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"XLA_FLAGS": " ".join(flags), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
