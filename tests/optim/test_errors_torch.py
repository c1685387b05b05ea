"""Each of 83 conditions that PyTorch 2.13 was seen to handle, and what happens here.

`golden/torch_errors.json` has PyTorch's exception type and message, or, where it raises
nothing, the value it gives and its warnings.
"""

import builtins
import json
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
from graphlr.optim import SGD, Adam, Muon, Optimizer
from graphlr.optim import lr_scheduler as lrs
from graphlr.optim.lr_scheduler import ReduceLROnPlateau, StepLR
from tests import GOLDEN
from tests.models import Train, linear
from tests.optim.trees import together

TORCH = json.loads((GOLDEN / "torch_errors.json").read_text())


def net(outputs=3, names=("body", "head")):
    return nnx.Dict({name: linear(2, outputs) for name in names})


class OfAll(Train):
    """The loss is the sum of all weights, so every gradient is 1."""

    def loss(self):
        params = jax.tree.leaves(nnx.state(self.model, nnx.Param))
        return sum(param.sum() for param in params)


def train(optimizer, lr_sch=None, model=None, **config):
    return OfAll(model or net(), optimizer, lr_sch=lr_sch, **config)


NET = net()
KERNEL, BIAS = NET.body.kernel, NET.body.bias


def two_groups(order=("body", "head"), lr=None, **keys):
    """Two named groups; `lr` for each, by name."""
    rates = {name: {"lr": rate} for name, rate in (lr or {}).items()}
    groups = [{"params": f"{n}.*", "name": n, **rates.get(n, {})} for n in order]
    return SGD(groups, **keys)


def steps(optimizer, params, count=1):
    """The updates of `count` steps whose gradients are 1."""
    tx = optimizer.as_optax(params)
    state, updates = tx.init(params), []
    for _ in range(count):
        update, state = tx.update(jax.tree.map(jnp.ones_like, params), state, params)
        updates.append(jax.tree.map(np.asarray, update))
    return updates


def moved(optimizer, model):
    """Paths of the parameters that a step moves."""
    state = nnx.state(model, nnx.Param)
    (update,) = steps(optimizer, state)
    return {
        ".".join(path)
        for path, leaf in nnx.to_flat_state(update)
        if np.any(leaf.get_value())
    }


def rates(optimizer, step=None):
    return list(optimizer.lr(step).values())


def loaded(state, optimizer, model=None, *, strict=True):
    graph = train(optimizer, model=model)
    graph.load_state_dict(state, strict=strict)
    return graph


def saved(optimizer=None, model=None):
    return train(optimizer or SGD("**"), model=model).state_dict()


def of_class(name, **keys):
    return lambda: getattr(glr.optim, name)([{"params": "**", "name": "all", **keys}])


# --- one row for each condition -------------------------------------------------------


class Raises(NamedTuple):
    """An error: of PyTorch's type, unless `kind` says which and `why` the reason."""

    do: Callable[[], Any]
    match: str
    kind: type[Exception] | None = None
    why: str = ""


class Warns(NamedTuple):
    """A UserWarning."""

    do: Callable[[], Any]
    match: str


class Gives(NamedTuple):
    """The right result, `want` or PyTorch's own; `why` there is nothing to raise."""

    do: Callable[[], Any]
    why: str
    want: Any = None


def added_group_rates(schedule):
    """Rates after a step of a schedule that was there before the second group."""
    optimizer = SGD("body.*", lr=0.1, lr_sch=schedule)
    optimizer.add_param_group({"params": "head.*", "lr": 0.01})
    return rates(optimizer, 1)


def added_group_floors():
    optimizer = SGD("body.*")
    plateau = ReduceLROnPlateau(optimizer, min_lr=[0.1])
    optimizer.add_param_group({"params": "head.*"})
    plateau.step(1.0)


def resumed_rates():
    optimizer = SGD("**", lr=1.0, lr_sch=StepLR(10))
    loaded({**saved(SGD("**", lr=0.5)), "step": 30}, optimizer)
    return rates(optimizer)


def reordered():
    state = saved(two_groups(lr={"body": 0.5, "head": 0.05}))
    return loaded(state, two_groups(("head", "body"))).lr


def partly_loaded():
    kernel = np.full((2, 3), 7, np.float32)
    state = {"model.head.kernel": kernel, "model.neck.kernel": kernel}
    graph = train(SGD("**"))
    bias = np.asarray(graph.model.head.bias.get_value()) + 1
    graph.model.head.bias.set_value(jnp.asarray(bias))
    graph.load_state_dict(state, strict=False)
    head = graph.model.head
    same = np.array_equal(head.bias.get_value(), bias)
    return np.array_equal(head.kernel.get_value(), kernel), same


def quasi_newton_by_group():
    """Each group's steps are those of a parameter alone, whose memory is its own."""
    params = {"a": jnp.ones(2), "b": jnp.arange(3.0)}
    groups = [{"params": "a"}, {"params": "b", "lr_scale": 0.5}]
    given = {"both": (groups, 0.1), "a": ("a", 0.1), "b": ("b", 0.05)}
    now = {"both": params, **{name: {name: x} for name, x in params.items()}}
    rules = {
        name: Optimizer(groups, rule=optax.scale_by_lbfgs, lr=lr).as_optax(now[name])
        for name, (groups, lr) in given.items()
    }
    states = {name: tx.init(now[name]) for name, tx in rules.items()}
    step, alike = together(rules), []
    for _ in range(3):
        now, states = step(now, now, states)
        alike += [np.allclose(now["both"][name], now[name][name]) for name in params]
    return all(alike)


ONE_NUMBER = "a list is refused whatever its length: a schedule has one number"
CHECKED = "checked in a group as at the top"

ROWS: dict[str, Raises | Warns | Gives] = {
    # numbers of the optimizers
    "adadelta_rho": Raises(
        of_class("Adadelta", rho=1.1),
        r"Invalid rho value: 1\.1\. .*at most 1.*\{'rho': 0\.1\}.*group 'all'",
    ),
    "adagrad_lr_decay": Raises(
        of_class("Adagrad", lr_decay=-0.5),
        r"Invalid lr_decay value: -0\.5\. .*at least 0.*\{'lr_decay': 0\.1\}.*'all'",
    ),
    "adam_beta1": Raises(
        of_class("Adam", betas=(1.0, 0.9)),
        r"Invalid beta parameter at index 0: 1\.0\. .*betas=\(0\.9, 0\.999\).*'all'",
    ),
    "adam_beta2": Raises(
        of_class("Adam", betas=(0.9, 1.0)),
        r"Invalid beta parameter at index 1: 1\.0\. .*betas=\(0\.9, 0\.999\).*'all'",
    ),
    "adam_eps": Raises(
        of_class("Adam", eps=-1.0),
        r"Invalid epsilon value: -1\.0\. .*at least 0.*\{'eps': 0\.1\}.*'all'",
    ),
    "nadam_momentum_decay": Raises(
        of_class("NAdam", momentum_decay=-0.2),
        r"Invalid momentum_decay value: -0\.2\. .*\{'momentum_decay': 0\.1\}.*'all'",
    ),
    "rmsprop_alpha": Raises(
        of_class("RMSprop", alpha=-0.5),
        r"Invalid alpha value: -0\.5\. .*at least 0.*\{'alpha': 0\.1\}.*'all'",
    ),
    "rprop_etas": Raises(
        of_class("Rprop", etas=(1.0, 0.5)),
        r"Invalid eta values: 1\.0, 0\.5\. .*etas=\(0\.5, 1\.2\).*'all'",
    ),
    "negative_lr": Raises(
        lambda: SGD("**", lr=-1.0),
        r"Invalid learning rate: -1\.0\. .*at least 0.*\{'lr': 0\.1\}.*'group0'",
    ),
    "negative_momentum": Raises(
        lambda: SGD("**", momentum=-0.5),
        r"Invalid momentum value: -0\.5\. .*\{'momentum': 0\.1\}.*'group0'",
    ),
    "negative_weight_decay": Raises(
        lambda: SGD("**", weight_decay=-0.5),
        r"Invalid weight_decay value: -0\.5\. .*\{'weight_decay': 0\.1\}.*'group0'",
    ),
    "negative_lr_in_group_is_not_checked": Raises(
        of_class("SGD", lr=-1.0),
        r"Invalid learning rate: -1\.0\. .*at least 0.*\{'lr': 0\.1\}.*'all'",
        ValueError,
        CHECKED,
    ),
    "nesterov_without_momentum": Raises(
        lambda: SGD("**", nesterov=True),
        r"requires a momentum and zero dampening: SGD\(\.\.\., momentum=0\.9, ",
    ),
    "nesterov_with_dampening": Raises(
        lambda: SGD("**", momentum=0.9, dampening=0.5, nesterov=True),
        r"requires a momentum and zero dampening: .*dampening=0\.0, nesterov=True\)",
    ),
    "nesterov_in_group_is_not_checked": Raises(
        of_class("SGD", nesterov=True),
        r"requires a momentum and zero dampening: SGD\(.*momentum=0\.9.*'all'",
        ValueError,
        CHECKED,
    ),
    "unknown_group_key_is_kept": Raises(
        of_class("SGD", learning_rate=0.1),
        r"group 'all' has no 'learning_rate': did you mean 'lr'\? It takes .*lr_scale",
        KeyError,
        "a key that nothing reads would change nothing, silently",
    ),
    "seed_adam_with_momentum": Raises(
        lambda: Adam("**", momentum=0.9),
        r"Adam has no 'momentum': did you mean 'betas'\? It takes amsgrad, betas",
    ),
    "ema_decay": Raises(
        lambda: train(SGD("**"), ema_decay=1.5),
        r"Invalid decay value 1\.5 of config\.ema_decay\. .*for example 0\.999",
    ),
    # which parameters a group holds
    "empty_list": Raises(
        lambda: SGD([]), r"got an empty parameter list: .*\[\{'params': \.\.\.\}\]"
    ),
    "empty_group_is_fine": Warns(
        lambda: moved(SGD([{"params": []}, {"params": ...}]), NET),
        r"group 'group0' \(\[\]\) holds no parameters.*: leave the group out",
    ),
    "bare_tensor": Raises(
        lambda: SGD(jnp.ones(3)),
        r"params is an array of shape \(3,\).*\{'params': model\.head\}.*'group0'",
    ),
    "not_a_tensor": Raises(
        lambda: SGD([KERNEL, 0.5]),
        r"params\[1\] is 0\.5 \(float\), which selects no parameters: give .*'group0'",
    ),
    "set_of_params": Raises(
        lambda: SGD({NET.body, NET.head}),
        r"params is a set, whose order changes .*\{'params': \[\.\.\.\]\}.*'group0'",
    ),
    "tensor_then_dict": Raises(
        lambda: SGD([KERNEL, {"params": BIAS}]),
        r"params\[1\] is a dict .*\[\{'params': \.\.\.\}, \{'params': \.\.\.\}\]",
    ),
    "dict_then_tensor": Raises(
        lambda: SGD([{"params": KERNEL}, BIAS]),
        r"param_group must be a dict, but got .*Param.*: give \{'params': \.\.\., ",
    ),
    "add_param_group_not_dict": Raises(
        lambda: SGD(KERNEL).add_param_group([BIAS]),
        r"param_group must be a dict, but got .*list.*: give \{'params': \.\.\., ",
    ),
    "group_without_params_key": Raises(
        lambda: SGD([{"lr": 0.1, "name": "head"}]),
        r"params: group 'head' has lr, name; add \{'params': \.\.\.\}",
    ),
    "same_param_in_two_groups": Raises(
        lambda: SGD([{"params": NET.body}, {"params": KERNEL}]),
        r"more than one parameter group: kernel in 'group0' and in 'group1'\. "
        r".*\{'params': \.\.\.\}",
    ),
    "add_param_group_duplicate": Raises(
        lambda: SGD(NET.body).add_param_group({"params": KERNEL, "name": "again"}),
        r"more than one parameter group: kernel in 'group0' and in 'again'\. "
        r".*\{'params': \.\.\.\}",
    ),
    "duplicate_in_group": Warns(
        lambda: SGD([NET.body, KERNEL]),
        r"'group0' has a parameter twice: params\.0\.kernel is params\.1\. .*leave the",
    ),
    "frozen_param_is_fine": Gives(
        lambda: moved(
            SGD(
                [{"params": "head.*", "frozen": True}, {"params": ...}], weight_decay=1
            ),
            NET,
        ),
        "a frozen group is not moved, by weight decay either",
        {"body.bias", "body.kernel"},
    ),
    "named_and_unnamed_groups": Gives(
        lambda: set(SGD([{"params": "a", "name": "body"}, {"params": "b"}]).lr()),
        "a group without a name gets one",
        {"body", "group1"},
    ),
    "named_and_unnamed_in_group": Gives(
        lambda: moved(
            SGD(
                [
                    {"params": [("head.kernel", KERNEL), BIAS]},
                    {"params": ..., "frozen": True},
                ]
            ),
            NET,
        ),
        "a pair's name is for messages: the graph knows every parameter's path",
        {"body.bias", "body.kernel"},
    ),
    "seed_filter_and_groups_both_positional": Raises(
        lambda: SGD("body.*", [{"params": "head.*"}], lr=0.1),
        r"multiple values for argument 'lr'.*All groups go into one list",
    ),
    "muon_1d": Raises(
        lambda: train(Muon("**"))(),
        r"only supports 2D parameters .*\(3,\)\. Not matrices: model\.body\.bias.*"
        r"\{\"params\": \.\.\., \"optimizer\": glr\.optim\.AdamW\}",
    ),
    "lbfgs_groups": Gives(
        quasi_newton_by_group,
        "without an LBFGS class, optax's direction is a rule like any, with groups",
        True,
    ),
    # schedules: numbers
    "cawr_T_0": Raises(
        lambda: lrs.CosineAnnealingWarmRestarts(0), r"T_0 is 0, not an int .*→ T_0=1"
    ),
    "cawr_T_mult": Raises(
        lambda: lrs.CosineAnnealingWarmRestarts(1, T_mult=1.5),
        r"T_mult is 1\.5, not an int from 1 .*→ T_mult=1",
    ),
    "constant_factor_2": Raises(
        lambda: lrs.ConstantLR(factor=2.0),
        r"ConstantLR: factor is 2\.0, not a number > 0 and <= 1 → factor=1\.0",
    ),
    "linear_end_2": Raises(
        lambda: lrs.LinearLR(end_factor=2.0),
        r"LinearLR: end_factor is 2\.0, not a number from 0 to 1 → end_factor=1\.0",
    ),
    "linear_start_0": Raises(
        lambda: lrs.LinearLR(start_factor=0),
        r"LinearLR: start_factor is 0, not a number > 0 .*→ WarmupLR\(warmup_factor=0",
    ),
    "cyclic_mode": Raises(
        lambda: lrs.CyclicLR(0.1, 0.2, mode="x"),
        r"CyclicLR: mode is 'x', not one of \(.*\) → mode='triangular'",
    ),
    "onecycle_anneal": Raises(
        lambda: lrs.OneCycleLR(0.1, 5, anneal_strategy="x"),
        r"OneCycleLR: anneal_strategy is 'x', not one of .* → anneal_strategy='cos'",
    ),
    "onecycle_no_length": Raises(
        lambda: lrs.OneCycleLR(0.1),
        r"total_steps is None, .*epochs and steps_per_epoch → .*total_steps=1000\)",
    ),
    "onecycle_pct_start_int": Raises(
        lambda: lrs.OneCycleLR(0.1, 5, pct_start=1),
        r"pct_start is 1, not a float from 0 to 1 → pct_start=1\.0",
    ),
    "onecycle_total_steps_0": Raises(
        lambda: lrs.OneCycleLR(0.1, 0),
        r"total_steps is 0, not an int .*→ total_steps=1",
    ),
    "onecycle_too_many_steps": Raises(
        lambda: lrs.OneCycleLR(0.1, 5).sample(0.1, 7),
        r"OneCycleLR: step is 6, not <= 5 → OneCycleLR\(\.\.\., total_steps=6\)",
    ),
    "swalr_anneal": Raises(
        lambda: lrs.SWALR(0.1, anneal_strategy="x"),
        r"SWALR: anneal_strategy is 'x', not one of .* → anneal_strategy='cos'",
    ),
    "swalr_epochs": Raises(
        lambda: lrs.SWALR(0.1, anneal_epochs=-1),
        r"SWALR: anneal_epochs is -1, not an int from 0 .*→ anneal_epochs=1",
    ),
    "multiplicative_not_callable": Raises(
        lambda: lrs.MultiplicativeLR(0.9),
        r"lr_lambda is 0\.9, not a function .*→ lr_lambda=lambda step: 0\.9\*\*step",
    ),
    # schedules: a number for each group
    "cyclic_count": Raises(
        lambda: lrs.CyclicLR([0.1, 0.2], 0.3),
        r"base_lr is \[0\.1, 0\.2\], not one number → \{\"params\": .*\} per group",
        TypeError,
        ONE_NUMBER,
    ),
    "onecycle_max_lr_count": Raises(
        lambda: lrs.OneCycleLR([0.1, 0.2], 5),
        r"max_lr is \[0\.1, 0\.2\], not one number → \{\"params\": .*\} per group",
        TypeError,
        ONE_NUMBER,
    ),
    "swalr_count": Raises(
        lambda: lrs.SWALR([0.1, 0.2]),
        r"swa_lr is \[0\.1, 0\.2\], not one number → \{\"params\": .*\} per group",
        TypeError,
        ONE_NUMBER,
    ),
    "lambda_count": Raises(
        lambda: lrs.LambdaLR([abs, abs]),
        r"lr_lambda is \[.*\], not a function .*one for a group: .*\"lr_sch\": ",
        TypeError,
        ONE_NUMBER,
    ),
    # schedules and their optimizer
    "sched_not_optimizer": Raises(
        lambda: ReduceLROnPlateau(1),
        r"optimizer is 1, not an optimizer → glr\.optim\.SGD\(model, lr=0\.1\)",
    ),
    "cyclic_no_momentum": Raises(
        lambda: train(glr.optim.Adagrad("**"), lrs.CyclicLR(0.1, 0.2))(),
        r"group 'group0': CyclicLR\(.*momentum nor betas: .*cycle_momentum=False",
    ),
    "onecycle_no_momentum": Raises(
        lambda: train(glr.optim.Adagrad("**"), lrs.OneCycleLR(0.1, 5))(),
        r"group 'group0': OneCycleLR\(.*momentum nor betas: .*cycle_momentum=False",
    ),
    "group_added_then_CosineAnnealingLR": Gives(
        lambda: added_group_rates(lrs.CosineAnnealingLR(10)),
        "a schedule is a function of the group's lr; PyTorch's raises later, at T_max",
    ),
    "group_added_then_StepLR": Gives(
        lambda: added_group_rates(StepLR(1, gamma=0.5)),
        "a schedule is a function of the group's lr",
    ),
    "group_added_then_LambdaLR": Gives(
        lambda: added_group_rates(lrs.LambdaLR(lambda step: 0.5**step)),
        "a schedule is a function of the group's lr, and PyTorch's a list of them",
        [0.05, 0.005],
    ),
    "get_lr_outside_step": Gives(
        lambda: rates(SGD("**", lr=0.1, lr_sch=StepLR(3))),
        "rates can be read at any time",
    ),
    "scheduler_before_optimizer": Gives(
        lambda: [
            float(update["w"])
            for update in steps(
                SGD("w", lr=0.5, lr_sch=StepLR(1, gamma=0.5)), {"w": jnp.ones(())}, 3
            )
        ],
        "updates are what a schedule counts, so no value of it can be skipped",
        [-0.5, -0.25, -0.125],
    ),
    "resume_without_initial_lr": Gives(
        resumed_rates,
        "a schedule is a function of the base lr and the step, both in the state",
        [0.5 * 0.1**3],
    ),
    "sequential_empty": Raises(
        lambda: lrs.SequentialLR([], []),
        r"SequentialLR: schedules is \[\], not a list with an item → schedules=\[",
    ),
    "sequential_milestones": Raises(
        lambda: lrs.SequentialLR([StepLR(3)], [3]),
        r"milestones is \(3,\), not one fewer than the 1 schedules → SequentialLR\(\[",
    ),
    "sequential_plateau": Raises(
        lambda: lrs.SequentialLR([StepLR(3), ReduceLROnPlateau(SGD("**"))], [3]),
        r"schedules\[1\] is ReduceLROnPlateau\(.*→ plateau\.step\(metric\) after each",
    ),
    "chained_empty": Raises(
        lambda: lrs.ChainedScheduler([]),
        r"ChainedScheduler: schedules is \[\], not a list with an item → schedules=\[",
    ),
    "chained_plateau": Raises(
        lambda: lrs.ChainedScheduler([ReduceLROnPlateau(SGD("**"))]),
        r"schedules\[0\] is ReduceLROnPlateau\(.*→ plateau\.step\(metric\) after each",
    ),
    # reduction on a plateau
    "plateau_factor": Raises(
        lambda: ReduceLROnPlateau(SGD("**"), factor=1.0),
        r"factor is 1\.0, not a number >= 0 and < 1 → factor=0\.1",
    ),
    "plateau_mode": Raises(
        lambda: ReduceLROnPlateau(SGD("**"), mode="x"),
        r"mode is 'x', not one of \('min', 'max'\) → mode='min'",
    ),
    "plateau_threshold_mode": Raises(
        lambda: ReduceLROnPlateau(SGD("**"), threshold_mode="x"),
        r"threshold_mode is 'x', not one of \('rel', 'abs'\) → threshold_mode='rel'",
    ),
    "plateau_min_lr_count": Raises(
        lambda: ReduceLROnPlateau(SGD("**"), min_lr=[0.1, 0.2]),
        r"min_lr is \[0\.1, 0\.2\], not one number, or .* the 1 groups .*→ min_lr=0\.0",
    ),
    "plateau_group_added": Raises(
        added_group_floors,
        r"min_lr is \[0\.1\], not one number, or one for each of the 2 groups "
        r"\['group0', 'group1'\] → min_lr=0\.0",
    ),
    "plateau_step_without_metric": Raises(
        lambda: ReduceLROnPlateau(SGD("**")).step(),
        r"step\(\) missing 1 required positional argument: 'metric'",
    ),
    # states
    "load_other_group_size": Raises(
        lambda: loaded(saved(), SGD("**"), net(names=("body", "head", "neck"))),
        r"doesn't fit .*\(strict=False .*\): missing: model\.neck\.bias, ",
    ),
    "load_other_number_of_groups": Raises(
        lambda: loaded(saved(), two_groups()),
        r"doesn't fit .*\(strict=False .*\): missing: groups\.body\.lr.*"
        r"unexpected: groups\.group0\.lr",
    ),
    "load_overrides_constructor_lr": Gives(
        lambda: loaded(saved(SGD("**", lr=0.5)), SGD("**", lr=0.1)).lr["group0"],
        "the state holds the base lr",
    ),
    "load_reordered_groups_swaps_silently": Gives(
        reordered, "groups are matched by name", {"head": 0.05, "body": 0.5}
    ),
    "module_missing_and_unexpected": Raises(
        lambda: loaded(saved(model=net(names=("0",))), SGD("**"), net(names=("neck",))),
        r"\(strict=False takes what fits by name\): missing: model\.neck\.bias, "
        r"model\.neck\.kernel.*; unexpected: model\.0\.bias, model\.0\.kernel",
    ),
    "module_missing_and_unexpected_strict_false": Gives(
        partly_loaded, "what fits by name is taken, the rest left alone", (True, True)
    ),
    "module_shape_mismatch": Raises(
        lambda: loaded(saved(), SGD("**"), net(outputs=4)),
        r"model\.head\.kernel is float32\[2, 3\], and the graph has float32\[2, 4\]",
    ),
    "module_shape_mismatch_strict_false": Raises(
        lambda: loaded(saved(), SGD("**"), net(outputs=4), strict=False),
        r"model\.head\.kernel is float32\[2, 3\], and the graph has float32\[2, 4\]",
    ),
}
NOT_HERE = {
    "non_leaf": "arrays have no autograd graph: one that is computed from a parameter "
    "is an array like any, and an array in `params` is the TypeError of bare_tensor",
}


def said(error):
    return "\n".join([str(error), *getattr(error, "__notes__", ())])


def all_that_are(kind):
    names = [name for name, row in ROWS.items() if isinstance(row, kind)]
    return pytest.mark.parametrize("name", names)


def test_every_condition_has_a_row_or_a_reason():
    assert ROWS.keys().isdisjoint(NOT_HERE)
    assert sorted([*ROWS, *NOT_HERE]) == sorted(TORCH)
    assert len(TORCH) == 83


@all_that_are(Raises)
def test_errors(name):
    row, torch = ROWS[name], TORCH[name]["raises"]
    own = row.kind.__name__ if row.kind else torch
    assert bool(row.why) == (own != torch)
    with pytest.raises(getattr(builtins, own)) as caught:
        row.do()
    assert re.search(row.match, said(caught.value), re.DOTALL), said(caught.value)


@all_that_are(Warns)
def test_warnings(name):
    assert TORCH[name]["raises"] is None
    with pytest.warns(UserWarning, match=ROWS[name].match):
        ROWS[name].do()


@all_that_are(Gives)
def test_right_results(name):
    row = ROWS[name]
    want = TORCH[name]["value"] if row.want is None else row.want
    numbers = isinstance(want, list | dict | float)
    assert row.do() == (pytest.approx(want, rel=1e-6) if numbers else want)
