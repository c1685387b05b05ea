"""The rules' arguments are PyTorch's, their errors too."""

import inspect

import numpy as np
import pytest

import graphlr as glr
from graphlr.optim.group_keys import COMMON

# torch 2.13, without what concerns its kernels (foreach, fused, capturable, ...)
TORCH = {
    "SGD": {
        "lr": 0.001,
        "momentum": 0,
        "dampening": 0,
        "weight_decay": 0,
        "nesterov": False,
        "maximize": False,
    },
    "Adam": {
        "lr": 0.001,
        "betas": (0.9, 0.999),
        "eps": 1e-08,
        "weight_decay": 0,
        "amsgrad": False,
        "maximize": False,
        "decoupled_weight_decay": False,
    },
    "AdamW": {
        "lr": 0.001,
        "betas": (0.9, 0.999),
        "eps": 1e-08,
        "weight_decay": 0.01,
        "amsgrad": False,
        "maximize": False,
    },
}


@pytest.mark.parametrize("name", TORCH)
def test_names_order_and_defaults_are_pytorchs(name):
    parameters = inspect.signature(getattr(glr.optim, name)).parameters
    first, *ours = [key for key in parameters if key not in COMMON]
    ours = {key: parameters[key].default for key in ours}
    ours.pop("do_bias_correction", None)  # OneFlow's
    assert first == "params"
    assert list(ours.items()) == list(TORCH[name].items())
    keyword_only = [k for k, p in parameters.items() if p.kind is p.KEYWORD_ONLY]
    assert keyword_only[0] == "maximize"


@pytest.mark.parametrize("name", TORCH)
def test_defaults_reach_every_group(name):
    optimizer = getattr(glr.optim, name)(["a", "b"])
    group = optimizer.param_groups[0]
    assert {key: group[key] for key in TORCH[name]} == TORCH[name]


BAD_NESTEROV = "Nesterov momentum requires a momentum and zero dampening"


@pytest.mark.parametrize(
    "keys",
    [
        {"nesterov": True},
        {"nesterov": True, "momentum": 0.9, "dampening": 0.1},
    ],
)
def test_nesterov_needs_momentum_and_no_dampening(keys):
    with pytest.raises(ValueError, match=BAD_NESTEROV):
        glr.optim.SGD("**", lr=0.1, **keys)
    with pytest.raises(ValueError, match=BAD_NESTEROV):
        glr.optim.SGD([{"params": "**", **keys}], lr=0.1)


@pytest.mark.parametrize("change", [{"momentum": 0.0}, {"dampening": 0.5}])
def test_nesterov_is_checked_when_a_group_is_edited(change):
    optimizer = glr.optim.SGD("**", lr=0.1, momentum=0.9, nesterov=True)
    group = optimizer.param_groups[0]
    before = dict(group)
    with pytest.raises(ValueError, match=BAD_NESTEROV) as error:
        group.update(change)
    assert "in group 'group0'" in error.value.__notes__
    assert dict(group) == before
    group.update({**change, "nesterov": False})
    assert not group["nesterov"]


@pytest.mark.parametrize("name", TORCH)
def test_maximize_ascends(name):
    params = {"w": np.zeros(2, np.float32)}
    kind = getattr(glr.optim, name)
    updates = []
    for maximize in (False, True):
        tx = kind("**", lr=0.1, weight_decay=0.0, maximize=maximize).as_optax(params)
        got, _ = tx.update({"w": np.ones(2, np.float32)}, tx.init(params), params)
        updates.append(np.asarray(got["w"]))
    assert (updates[0] < 0).all()
    np.testing.assert_allclose(updates[1], -updates[0])


@pytest.mark.parametrize(("kind", "decay"), [("Adam", 0.0), ("AdamW", -0.05)])
def test_decoupled_decay_is_times_the_whole_rate(kind, decay):
    """No gradient: Adam's own step is 0, and AdamW still shrinks by lr * scale * wd."""
    params = {"w": np.ones(1, np.float32)}
    groups = [{"params": "**", "lr_scale": 0.5}]
    optimizer = getattr(glr.optim, kind)(groups, lr=1.0)
    optimizer.param_groups[0]["weight_decay"] = 0.1 if kind == "AdamW" else 0.0
    tx = optimizer.as_optax(params)
    got, _ = tx.update({"w": np.zeros(1, np.float32)}, tx.init(params), params)
    assert float(got["w"][0]) == pytest.approx(decay)
