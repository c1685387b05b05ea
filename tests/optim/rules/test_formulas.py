"""Formulas that no golden number covers, in float64 by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import graphlr as glr
from graphlr.optim import (
    ASGD,
    LAMB,
    LARS,
    Lion,
    Muon,
    RAdam,
    RMSprop,
    Rprop,
    SparseAdam,
)
from tests.models import Given, Train, Weights, linear
from tests.optim.trees import together

RNG = np.random.default_rng(0)
W = RNG.normal(size=(4, 3))
GRADS = RNG.normal(size=(6, 4, 3))
TOUCHED = RNG.random(size=(6, 4)) < 0.5  # rows of an embedding
TOUCHED[2] = False
ZERO = np.zeros_like(W)
DOWN = np.ones((6, 1))
SHAPES = [(16, 8), (8, 16), (8, 8)]


def lars(momentum, nesterov):
    return LARS("**", 0.5, momentum, 0.1, trust_coefficient=0.02, nesterov=nesterov)


def lamb(decay_in_ratio):
    betas = (0.9, 0.99)
    return LAMB("**", 0.02, betas, 1e-6, 0.1, decay_in_ratio=decay_in_ratio)


RUNS = {  # an optimizer, the gradients that it is given, the weights at the start
    **{
        ("lars", momentum, nesterov): (lars(momentum, nesterov), GRADS, W)
        for momentum in (0.0, 0.9)
        for nesterov in (False, True)
    },
    **{("lamb", decay): (lamb(decay), GRADS, W) for decay in (False, True)},
    "lars of zero": (LARS("**", 0.5, eps=0.0), GRADS, ZERO),
    "lamb of zero": (LAMB("**", 0.5, eps=0.0), GRADS, ZERO),
    "lion": (Lion("**", 0.02, (0.9, 0.95), 0.1), GRADS, W),
    "sparse": (SparseAdam("**", 0.02, (0.9, 0.99)), GRADS * TOUCHED[..., None], W),
    "rprop": (Rprop("**", lr=[0.5, 99.0, 99.0]), DOWN, np.zeros(1)),
    "asgd": (ASGD("**", lr=[0.5, 0.25, 0.125], lambd=0.0), DOWN, np.zeros(1)),
    "muon": (Muon("**", lr=0.1), GRADS, W),
    "muon of kernels": (Muon("**", lr=0.1, output_axis=1), GRADS.swapaxes(1, 2), W.T),
    "muon transposed": (Muon("**", lr=0.1), GRADS.swapaxes(1, 2), W.T),
    **{
        shape: (
            Muon("**", lr=1.0, adjust_lr_fn="match_rms_adamw"),
            RNG.normal(size=(6, *shape)),
            np.zeros(shape),
        )
        for shape in SHAPES
    },
}


@pytest.fixture(scope="module")
def after():
    """The weights of every run after each step, in float64, from one program."""
    with jax.enable_x64(True):
        names = {str(name): run for name, run in RUNS.items()}
        params = {name: {"w": jnp.asarray(w)} for name, (_, _, w) in names.items()}
        rules = {
            name: optimizer.as_optax(params[name])
            for name, (optimizer, _, _) in names.items()
        }
        states = {name: tx.init(params[name]) for name, tx in rules.items()}
        step, values = together(rules), []
        for t in range(6):
            grads = {name: {"w": grads[t]} for name, (_, grads, _) in names.items()}
            params, states = step(grads, params, states)
            values.append(params)
    return {
        run: np.array([found[name]["w"] for found in values])
        for name, run in zip(names, RUNS, strict=True)
    }


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_lars(momentum, nesterov, after):
    w, buf, expected = W, np.zeros_like(W), []
    for g in GRADS:
        size, slope = np.linalg.norm(w), np.linalg.norm(g)
        rate = 0.02 * size / (slope + 0.1 * size + 1e-8)
        g = rate * (g + 0.1 * w)
        buf = momentum * buf + g
        w = w - 0.5 * (g + momentum * buf if nesterov else buf)
        expected.append(w)
    got = after["lars", momentum, nesterov]
    np.testing.assert_allclose(got, expected, rtol=1e-12)


def test_a_zero_weight_leaves_lars_and_lamb_their_gradient(after):
    step = GRADS[0]
    np.testing.assert_allclose(after["lars of zero"][0], -0.5 * step, rtol=1e-12)
    sign = np.sign(step)
    np.testing.assert_allclose(after["lamb of zero"][0], -0.5 * sign, rtol=1e-12)


@pytest.mark.parametrize("decay_in_ratio", [False, True])
def test_lamb(decay_in_ratio, after):
    w, m, v, expected = W, 0.0, 0.0, []
    for t, g in enumerate(GRADS, 1):
        m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g * g
        d = (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.99**t)) + 1e-6)
        decayed = d + 0.1 * w
        slope = np.linalg.norm(decayed if decay_in_ratio else d)
        w = w - 0.02 * np.linalg.norm(w) / slope * decayed
        expected.append(w)
    np.testing.assert_allclose(after["lamb", decay_in_ratio], expected, rtol=1e-12)


def test_lion(after):
    w, m, expected = W, np.zeros_like(W), []
    for g in GRADS:
        w = w - 0.02 * (np.sign(0.9 * m + 0.1 * g) + 0.1 * w)
        m = 0.95 * m + 0.05 * g
        expected.append(w)
    np.testing.assert_allclose(after["lion"], expected, rtol=1e-12)


def test_sparse_adam_leaves_untouched_rows_alone(after):
    w, m, v, expected = W.copy(), np.zeros_like(W), np.zeros_like(W), []
    for t, (g, rows) in enumerate(zip(GRADS, TOUCHED, strict=True), 1):
        m[rows] += 0.1 * (g - m)[rows]
        v[rows] += 0.01 * (g * g - v)[rows]
        size = 0.02 * np.sqrt(1 - 0.99**t) / (1 - 0.9**t)
        w[rows] -= size * m[rows] / (np.sqrt(v[rows]) + 1e-8)
        expected.append(w.copy())
    got = after["sparse"]
    np.testing.assert_allclose(got, expected, rtol=1e-12)
    for t in range(1, len(got)):
        idle = ~TOUCHED[t]
        np.testing.assert_array_equal(got[t][idle], got[t - 1][idle])


def test_rprop_and_asgd_read_the_rate_when_pytorch_does(after):
    """Rprop at the first step; ASGD a step ahead of its use."""
    rprop, asgd = (after[name][:3].ravel() for name in ("rprop", "asgd"))
    np.testing.assert_allclose(rprop, -np.cumsum([0.5, 0.6, 0.72]))
    np.testing.assert_allclose(asgd, -np.cumsum([0.5, 0.5, 0.25]))


@pytest.mark.parametrize("shape", SHAPES)
def test_muons_step_is_nearly_orthogonal(shape, after):
    step = after[shape][0]
    values = np.linalg.svd(step / (0.2 * np.sqrt(max(shape))), compute_uv=False)
    assert ((values > 0.3) & (values < 1.3)).all()  # 5 iterations: not tighter


def test_muon_of_an_nnx_kernel_is_pytorchs_of_its_transpose(after):
    torchs, ours = after["muon"].swapaxes(1, 2), after["muon of kernels"]
    np.testing.assert_allclose(ours, torchs, atol=0.02)
    assert not np.allclose(ours, after["muon transposed"], atol=0.02)


# --- where single precision or a graph is the point -----------------------------------


def updates(optimizer, grads):
    """The updates of a parameter that is given these gradients."""
    params = {"it": {"w": jnp.zeros(grads.shape[1:])}}
    rules = {"it": optimizer.as_optax(params["it"])}
    step, states, found = together(rules), {"it": rules["it"].init(params["it"])}, []
    for g in grads:
        new, states = step({"it": {"w": jnp.asarray(g)}}, params, states)
        found.append(np.asarray(new["it"]["w"], np.float64))
    return np.array(found)


def test_centered_rmsprop_of_a_constant_gradient_is_finite():
    optimizer = RMSprop("**", alpha=0.9, centered=True)
    assert np.isfinite(updates(optimizer, np.full((300, 1), 0.1, np.float32))).all()


def test_radams_length_keeps_its_digits():
    """In float32 the textbook formula loses four digits of rho at beta2 = 0.9999."""
    g = np.float32(RNG.normal(size=(40, 8)))
    got = {}
    for wide in (False, True):
        with jax.enable_x64(wide):
            optimizer = RAdam("**", lr=1.0, betas=(0.9, float(np.float32(0.9999))))
            got[wide] = updates(optimizer, g)[-1]
    np.testing.assert_allclose(got[False], got[True], rtol=1e-5)


def test_asgd_keeps_the_average_in_a_slot():
    optimizer = ASGD(..., lr=1.0, lambd=0.0, t0=2)
    graph, weights = Given(Weights(w=np.zeros(1)), optimizer), []
    for _ in range(6):
        graph({"w": np.ones(1, np.float32)})
        weights.append(float(graph.model.w.get_value()[0]))
    average = graph.state_dict()["slots.model.w.ax"]
    np.testing.assert_allclose(average, np.mean(weights[3:]), rtol=1e-6)


def test_muon_is_for_matrices():
    layer, x = linear(3, 4), np.ones((2, 3), np.float32)
    with pytest.raises(ValueError, match=r"model\.bias \(4,\).*glr\.optim\.AdamW"):
        Train(layer, Muon(...))(x)
    split = [
        {"params": "kernel"},
        {"params": ..., "optimizer": glr.optim.AdamW, "weight_decay": 0.0},
    ]
    graph = Train(layer, Muon(split))
    graph(x)
    assert graph.lr == {"group0": 0.001, "group1": 0.001}
