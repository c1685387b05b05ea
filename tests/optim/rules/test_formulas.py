"""Signatures and errors of PyTorch's, and formulas that no golden number covers."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import graphlr as glr
from graphlr.optim.group_keys import COMMON

RNG = np.random.default_rng(0)
W = RNG.normal(size=(4, 3))
GRADS = RNG.normal(size=(6, 4, 3))
BETAS = (0.9, 0.999)
# torch 2.13, without what concerns its kernels (foreach, fused, capturable, ...)
TORCH = {
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
OUR_OWN = {"eps_inside_sqrt", "output_axis"}


@pytest.mark.parametrize("name", TORCH)
def test_names_order_and_defaults_are_pytorchs(name):
    parameters = inspect.signature(getattr(glr.optim, name)).parameters
    ours = {
        key: parameter.default
        for key, parameter in parameters.items()
        if key not in {"params", *COMMON, *OUR_OWN}
    }
    assert list(ours.items()) == list(TORCH[name].items())


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


def run(optimizer, grads, w=W):
    """The parameter after every step, in float64."""
    with jax.enable_x64(True):
        params = {"w": jnp.asarray(w)}
        tx = optimizer.as_optax(params)
        update, state = jax.jit(tx.update), tx.init(params)
        values = []
        for g in grads:
            updates, state = update({"w": jnp.asarray(g)}, state, params)
            params = optax.apply_updates(params, updates)
            values.append(np.asarray(params["w"]))
        return np.array(values)


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_lars(momentum, nesterov):
    w, buf, expected = W, np.zeros_like(W), []
    for g in GRADS:
        size, slope = np.linalg.norm(w), np.linalg.norm(g)
        rate = 0.02 * size / (slope + 0.1 * size + 1e-8)
        g = rate * (g + 0.1 * w)
        buf = momentum * buf + g
        w = w - 0.5 * (g + momentum * buf if nesterov else buf)
        expected.append(w)
    optimizer = glr.optim.LARS(
        "**", 0.5, momentum, 0.1, trust_coefficient=0.02, nesterov=nesterov
    )
    np.testing.assert_allclose(run(optimizer, GRADS), expected, rtol=1e-12)


def test_a_zero_weight_leaves_lars_and_lamb_their_gradient():
    zero = np.zeros_like(W)
    for kind, step in (
        (glr.optim.LARS, GRADS[0]),
        (glr.optim.LAMB, np.sign(GRADS[0])),
    ):
        optimizer = kind("**", 0.5, eps=0.0)
        got = run(optimizer, GRADS[:1], zero)[0]
        np.testing.assert_allclose(got, -0.5 * step, rtol=1e-12)


@pytest.mark.parametrize("decay_in_ratio", [False, True])
def test_lamb(decay_in_ratio):
    w, m, v, expected = W, 0.0, 0.0, []
    for t, g in enumerate(GRADS, 1):
        m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g * g
        d = (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.99**t)) + 1e-6)
        decayed = d + 0.1 * w
        slope = np.linalg.norm(decayed if decay_in_ratio else d)
        w = w - 0.02 * np.linalg.norm(w) / slope * decayed
        expected.append(w)
    optimizer = glr.optim.LAMB(
        "**", 0.02, (0.9, 0.99), 1e-6, 0.1, decay_in_ratio=decay_in_ratio
    )
    np.testing.assert_allclose(run(optimizer, GRADS), expected, rtol=1e-12)


def test_lion():
    w, m, expected = W, np.zeros_like(W), []
    for g in GRADS:
        w = w - 0.02 * (np.sign(0.9 * m + 0.1 * g) + 0.1 * w)
        m = 0.95 * m + 0.05 * g
        expected.append(w)
    optimizer = glr.optim.Lion("**", 0.02, (0.9, 0.95), 0.1)
    np.testing.assert_allclose(run(optimizer, GRADS), expected, rtol=1e-12)


def test_sparse_adam_leaves_untouched_rows_alone():
    touched = RNG.random(size=(len(GRADS), 4)) < 0.5
    touched[2] = False
    grads = GRADS * touched[:, :, None]
    w, m, v, expected = W.copy(), np.zeros_like(W), np.zeros_like(W), []
    for t, (g, rows) in enumerate(zip(grads, touched, strict=True), 1):
        m[rows] += 0.1 * (g - m)[rows]
        v[rows] += 0.01 * (g * g - v)[rows]
        size = 0.02 * np.sqrt(1 - 0.99**t) / (1 - 0.9**t)
        w[rows] -= size * m[rows] / (np.sqrt(v[rows]) + 1e-8)
        expected.append(w.copy())
    got = run(glr.optim.SparseAdam("**", 0.02, (0.9, 0.99)), grads)
    np.testing.assert_allclose(got, expected, rtol=1e-12)
    for t in range(1, len(got)):
        np.testing.assert_array_equal(got[t][~touched[t]], got[t - 1][~touched[t]])


def test_centered_rmsprop_of_a_constant_gradient_is_finite():
    params = {"w": jnp.ones(1)}
    tx = glr.optim.RMSprop("**", alpha=0.9, centered=True).as_optax(params)
    update, state = jax.jit(tx.update), tx.init(params)
    for _ in range(300):
        updates, state = update({"w": jnp.full(1, 0.1)}, state, params)
        assert jnp.isfinite(updates["w"]).all()


def test_rprop_and_asgd_read_the_rate_when_pytorch_does():
    """Rprop at the first step; ASGD a step ahead of its use."""
    down = np.ones((3, 1))
    rprop = run(glr.optim.Rprop("**", lr=[0.5, 99.0, 99.0]), down, np.zeros(1))
    np.testing.assert_allclose(rprop.ravel(), -np.cumsum([0.5, 0.6, 0.72]))
    asgd = glr.optim.ASGD("**", lr=[0.5, 0.25, 0.125], lambd=0.0)
    got = run(asgd, down, np.zeros(1))
    np.testing.assert_allclose(got.ravel(), -np.cumsum([0.5, 0.5, 0.25]))


def test_asgd_keeps_the_average_in_a_slot():
    class Model(nnx.Module):
        def __init__(self):
            self.w = nnx.Param(jnp.zeros(1))

    class Train(glr.Graph):
        def __init__(self):
            super().__init__()
            self.model = Model()
            self.add_optimizer(glr.optim.ASGD(..., lr=1.0, lambd=0.0, t0=2))

        def build(self):
            self.backward(self.model.w.sum())

    graph, weights = Train(), []
    for _ in range(6):
        graph()
        weights.append(float(graph.model.w.get_value()[0]))
    average = graph.state_dict()["slots.model.w.ax"]
    np.testing.assert_allclose(average, np.mean(weights[3:]), rtol=1e-6)


def test_muon_is_for_matrices():
    layer = nnx.Linear(3, 4, rngs=nnx.Rngs(0))

    class Train(glr.Graph):
        def __init__(self, groups):
            super().__init__()
            self.model = layer
            self.add_optimizer(glr.optim.Muon(groups))

        def build(self, x):
            self.backward((self.model(x) ** 2).mean())

    with pytest.raises(ValueError, match=r"model\.bias \(4,\).*glr\.optim\.AdamW"):
        Train(...)(np.ones((2, 3), np.float32))
    split = [
        {"params": "kernel"},
        {"params": ..., "optimizer": glr.optim.AdamW, "weight_decay": 0.0},
    ]
    graph = Train(split)
    graph(np.ones((2, 3), np.float32))
    assert graph.lr == {"group0": 0.001, "group1": 0.001}


@pytest.mark.parametrize("shape", [(16, 8), (8, 16), (8, 8)])
def test_muons_step_is_nearly_orthogonal(shape):
    params = {"w": jnp.zeros(shape)}
    optimizer = glr.optim.Muon("**", lr=1.0, adjust_lr_fn="match_rms_adamw")
    tx = optimizer.as_optax(params)
    g = {"w": jnp.asarray(RNG.normal(size=shape))}
    step = np.asarray(tx.update(g, tx.init(params), params)[0]["w"], np.float64)
    values = np.linalg.svd(step / (0.2 * np.sqrt(max(shape))), compute_uv=False)
    assert ((values > 0.3) & (values < 1.3)).all()  # 5 iterations: not tighter


def test_muon_of_an_nnx_kernel_is_pytorchs_of_its_transpose():
    torchs = run(glr.optim.Muon("**", lr=0.1), GRADS)
    ours = run(
        glr.optim.Muon("**", lr=0.1, output_axis=1), GRADS.transpose(0, 2, 1), W.T
    )
    np.testing.assert_allclose(ours, torchs.transpose(0, 2, 1), atol=0.02)
    assert not np.allclose(
        ours, run(glr.optim.Muon("**", lr=0.1), GRADS.swapaxes(1, 2), W.T), atol=0.02
    )


def test_radams_length_keeps_its_digits():
    """In float32 the textbook formula loses four digits of rho at beta2 = 0.9999."""
    g = np.float32(RNG.normal(size=(40, 8)))
    got = {}
    for wide in (False, True):
        with jax.enable_x64(wide):
            params = {"w": jnp.zeros(8)}
            betas = (0.9, float(np.float32(0.9999)))
            tx = glr.optim.RAdam("**", lr=1.0, betas=betas).as_optax(params)
            update, state = jax.jit(tx.update), tx.init(params)
            for row in g:
                updates, state = update({"w": jnp.asarray(row)}, state, params)
            got[wide] = np.asarray(updates["w"], np.float64)
    np.testing.assert_allclose(got[False], got[True], rtol=1e-5)
