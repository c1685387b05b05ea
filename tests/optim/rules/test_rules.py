"""Names, order, defaults and errors of the rules are PyTorch's."""

import inspect

import numpy as np
import pytest

import graphlr as glr
from graphlr.optim.group_keys import COMMON

BETAS = (0.9, 0.999)
# torch 2.13, without what concerns its kernels (foreach, fused, capturable, ...)
TORCH = {
    "SGD": {"lr": 1e-3, "momentum": 0, "dampening": 0, "weight_decay": 0}
    | {"nesterov": False, "maximize": False},
    "Adam": {"lr": 1e-3, "betas": BETAS, "eps": 1e-8, "weight_decay": 0}
    | {"amsgrad": False, "maximize": False, "decoupled_weight_decay": False},
    "AdamW": {"lr": 1e-3, "betas": BETAS, "eps": 1e-8, "weight_decay": 1e-2}
    | {"amsgrad": False, "maximize": False},
    "Adamax": {"lr": 2e-3, "betas": BETAS, "eps": 1e-8, "weight_decay": 0}
    | {"maximize": False},
    "NAdam": {"lr": 2e-3, "betas": BETAS, "eps": 1e-8, "weight_decay": 0}
    | {"momentum_decay": 4e-3, "decoupled_weight_decay": False, "maximize": False},
    "RAdam": {"lr": 1e-3, "betas": BETAS, "eps": 1e-8, "weight_decay": 0}
    | {"decoupled_weight_decay": False, "maximize": False},
    "Adagrad": {"lr": 1e-2, "lr_decay": 0, "weight_decay": 0}
    | {"initial_accumulator_value": 0, "eps": 1e-10, "maximize": False},
    "Adadelta": {"lr": 1.0, "rho": 0.9, "eps": 1e-6, "weight_decay": 0}
    | {"maximize": False},
    "RMSprop": {"lr": 1e-2, "alpha": 0.99, "eps": 1e-8, "weight_decay": 0}
    | {"momentum": 0, "centered": False, "maximize": False},
    "Rprop": {"lr": 1e-2, "etas": (0.5, 1.2), "step_sizes": (1e-6, 50)}
    | {"maximize": False},
    "ASGD": {"lr": 1e-2, "lambd": 1e-4, "alpha": 0.75, "t0": 1e6, "weight_decay": 0}
    | {"maximize": False},
    "Adafactor": {"lr": 1e-2, "beta2_decay": -0.8, "eps": (None, 1e-3), "d": 1.0}
    | {"weight_decay": 0, "maximize": False},
    "Muon": {"lr": 1e-3, "weight_decay": 0.1, "momentum": 0.95, "nesterov": True}
    | {"ns_coefficients": (3.4445, -4.775, 2.0315), "eps": 1e-7, "ns_steps": 5}
    | {"adjust_lr_fn": None},
    "SparseAdam": {"lr": 1e-3, "betas": BETAS, "eps": 1e-8, "maximize": False},
}
OUR_OWN = {"eps_inside_sqrt", "output_axis", "do_bias_correction"}


@pytest.mark.parametrize("name", TORCH)
def test_names_order_and_defaults_are_pytorchs(name):
    parameters = inspect.signature(getattr(glr.optim, name)).parameters
    first, *keys = [key for key in parameters if key not in {*COMMON, *OUR_OWN}]
    assert first == "params"
    ours = [(key, parameters[key].default) for key in keys]
    assert ours == list(TORCH[name].items())


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW"])
def test_what_comes_after_maximize_is_given_by_name(name):
    parameters = inspect.signature(getattr(glr.optim, name)).parameters
    keyword_only = [k for k, p in parameters.items() if p.kind is p.KEYWORD_ONLY]
    assert keyword_only[0] == "maximize"


@pytest.mark.parametrize("name", TORCH)
def test_defaults_reach_every_group(name):
    optimizer = getattr(glr.optim, name)(["a", "b"])
    group = optimizer.param_groups[0]
    assert {key: group[key] for key in TORCH[name]} == TORCH[name]


# --- values that can't be -------------------------------------------------------------

BAD = [  # what PyTorch says at the top only
    ("Adadelta", {"rho": 1.1}, "Invalid rho value: 1.1"),
    ("Adadelta", {"rho": -0.1}, "Invalid rho value: -0.1"),
    ("Adagrad", {"lr_decay": -0.5}, "Invalid lr_decay value: -0.5"),
    (
        "Adagrad",
        {"initial_accumulator_value": -1.0},
        "Invalid initial_accumulator_value value: -1.0",
    ),
    ("RMSprop", {"alpha": -0.5}, "Invalid alpha value: -0.5"),
    ("RMSprop", {"momentum": -0.5}, "Invalid momentum value: -0.5"),
    ("NAdam", {"momentum_decay": -0.2}, "Invalid momentum_decay value: -0.2"),
    ("RAdam", {"betas": (0.9, 1.0)}, "Invalid beta parameter at index 1: 1.0"),
    ("Rprop", {"etas": (1.0, 0.5)}, "Invalid eta values: 1.0, 0.5"),
    ("Rprop", {"etas": (0.5, 1.0)}, "Invalid eta values: 0.5, 1.0"),
    ("Rprop", {"step_sizes": (1.0, 0.5)}, "Invalid step sizes: 1.0, 0.5"),
    ("ASGD", {"lambd": -1.0}, "Invalid lambd value: -1.0"),
    ("Adafactor", {"d": 0.5}, "Clipping threshold d should be >= 1 but is: 0.5"),
    ("Adafactor", {"beta2_decay": 0.1}, "Invalid beta2_decay value: 0.1"),
    ("Adafactor", {"eps": (None, -1.0)}, "Invalid epsilon value: -1.0"),
    ("Adafactor", {"eps": (1e-3,)}, "eps must be 2 numbers"),
    ("Muon", {"adjust_lr_fn": "new"}, "Adjust learning rate function new is not"),
    ("Muon", {"ns_steps": 100}, "Number of steps must be less than 100"),
    ("Muon", {"ns_coefficients": (1.0, 2.0)}, "ns_coefficients must be 3 numbers"),
    ("Muon", {"output_axis": 2}, "output_axis is 2"),
    ("LARS", {"trust_coefficient": -1.0}, "Invalid trust_coefficient value: -1.0"),
    ("SparseAdam", {"eps": -1.0}, "Invalid epsilon value: -1.0"),
]


@pytest.mark.parametrize(("name", "keys", "message"), BAD)
def test_bad_values_are_refused_everywhere(name, keys, message):
    kind = getattr(glr.optim, name)
    with pytest.raises(ValueError, match=message):
        kind("**", **keys)
    with pytest.raises(ValueError, match=message):
        kind([{"params": "**", **keys}])
    group = kind("**").param_groups[0]
    before = dict(group)
    with pytest.raises(ValueError, match=message):
        group.update(keys)
    assert dict(group) == before


@pytest.mark.parametrize(("name", "key"), [("Adafactor", "eps"), ("Rprop", "etas")])
def test_one_number_in_place_of_two(name, key):
    with pytest.raises(TypeError, match=rf"{key} must be like \(.*not 0.5"):
        getattr(glr.optim, name)("**", **{key: 0.5})


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


# --- signs ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW"])
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
