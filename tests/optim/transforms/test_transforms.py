"""Transformations against closed-form loops written in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from graphlr.optim.transforms.gradients import centralize, clip_by_norm, norm
from graphlr.optim.transforms.moments import scale_by_adam
from graphlr.optim.transforms.momentum import scale_by_momentum

RNG = np.random.default_rng(0)
GRADS = RNG.normal(size=(6, 3))


def run(tx, grads, dtype=jnp.float32):
    """Updates for the gradients of one parameter, and the last state."""
    params = {"w": jnp.zeros(grads.shape[1:], dtype)}
    state, updates = tx.init(params), []
    for g in grads:
        update, state = tx.update({"w": jnp.asarray(g, dtype)}, state, params)
        updates.append(np.asarray(update["w"], np.float64))
    return np.array(updates), state


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize(("momentum", "dampening"), [(0.9, 0.0), (0.5, 0.3), (0.0, 0)])
def test_momentum(momentum, dampening, nesterov):
    buf, expected = GRADS[0], []
    for t, g in enumerate(GRADS):
        if t:
            buf = momentum * buf + (1 - dampening) * g
        expected.append(g + momentum * buf if nesterov else buf)
    got, state = run(scale_by_momentum(momentum, dampening, nesterov=nesterov), GRADS)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
    assert not dampening or state.steps.tolist() == [len(GRADS)]


@pytest.mark.parametrize(
    ("b1", "b2", "eps", "amsgrad", "corrected"),
    [
        (0.9, 0.999, 1e-8, False, True),
        (0.9, 0.999, 1e-8, True, True),
        (0.5, 0.6, 1e-2, True, True),
        (0.9, 0.99, 1e-8, False, False),
        (0.0, 0.9, 1e-8, False, True),  # no momentum at all
        (0.0, 0.0, 1e-8, False, True),  # the sign
    ],
)
@pytest.mark.parametrize("traced", [False, True])
def test_adam(b1, b2, eps, amsgrad, corrected, traced):
    grads = GRADS * np.linspace(1, 0.1, len(GRADS))[:, None]  # v falls: amsgrad matters
    m = v = vmax = np.zeros(3)
    expected = []
    for t, g in enumerate(grads, 1):
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        vmax = np.maximum(vmax, v) if amsgrad else v
        c1, c2 = (1 - b1**t, 1 - b2**t) if corrected else (1, 1)
        expected.append((m / c1) / (np.sqrt(vmax) / np.sqrt(c2) + eps))
    numbers = (b1, b2, eps)
    numbers = map(jnp.float32, numbers) if traced else numbers
    tx = scale_by_adam(*numbers, amsgrad=amsgrad, bias_correction=corrected)
    got, _ = run(tx, grads)
    np.testing.assert_allclose(got, expected, rtol=2e-4, atol=1e-6)


def test_bias_correction_keeps_its_digits():
    """1 - 0.999999**1 has two digits in float32; the first update is exactly 1."""
    got, _ = run(scale_by_adam(0.999999, 0.999999, 0.0), np.ones((1, 1)))
    np.testing.assert_allclose(got, 1.0, rtol=1e-5)


@pytest.mark.parametrize(
    "tx",
    [
        scale_by_momentum(jnp.float32(0.9), jnp.float32(0.1)),
        scale_by_adam(*map(jnp.float32, (0.9, 0.999, 1e-8)), amsgrad=True),
    ],
)
def test_slots_keep_their_dtype_under_live_numbers(tx):
    _, state = run(tx, GRADS, jnp.bfloat16)
    kinds = {leaf.dtype for leaf in jax.tree.leaves(state)}
    assert kinds == {jnp.dtype("bfloat16"), jnp.dtype("int32")}


@pytest.mark.parametrize("tx", [scale_by_momentum(0.9, 0.5), scale_by_adam()])
def test_a_parameter_that_joins_late_has_its_own_first_step(tx):
    g = jnp.ones(1)
    state = tx.init({"old": g, "young": g})
    _, state = tx.update({"old": g, "young": g}, state)
    _, state = tx.update({"old": g, "young": g}, state)
    young = jax.tree.map(
        lambda leaf: leaf * 0 if leaf.ndim == 0 else leaf, state
    )._replace(steps=jnp.array([2, 0]))
    zero = {k: {**v, "young": g * 0} if isinstance(v, dict) else v
            for k, v in young._asdict().items()}  # fmt: skip
    updates, state = tx.update({"old": g, "young": g}, type(young)(**zero))
    first, _ = tx.update({"w": g}, tx.init({"w": g}))
    np.testing.assert_allclose(updates["young"], first["w"], rtol=1e-6)
    assert state.steps.tolist() == [3, 1]


@pytest.mark.parametrize("amsgrad", [False, True])
def test_slots_of_a_fresh_state_are_separate_buffers(amsgrad):
    """One array in two slots can't be donated."""
    state = scale_by_adam(amsgrad=amsgrad).init({"w": jnp.zeros(2)})
    leaves = jax.tree.leaves(state)
    assert len({leaf.unsafe_buffer_pointer() for leaf in leaves}) == len(leaves)


def torch_norm(arrays, p):
    flat = np.abs(np.concatenate([a.ravel() for a in arrays]))
    if np.isinf(p):
        return flat.max() if p > 0 else flat.min()
    return (flat**p).sum() ** (1 / p)


@pytest.mark.parametrize("p", [1, 2, 3.5, np.inf, -np.inf])
@pytest.mark.parametrize("most", [1e-3, 1e3])
def test_clip(p, most):
    grads = {"a": RNG.normal(size=(2, 3)), "b": RNG.normal(size=4)}
    size = torch_norm(grads.values(), p)
    np.testing.assert_allclose(norm(jax.tree.map(jnp.asarray, grads), p), size, 1e-5)
    tx = clip_by_norm(most, p)
    clipped, _ = tx.update(jax.tree.map(jnp.asarray, grads), tx.init(grads))
    factor = min(most / (size + 1e-6), 1.0)
    for key, g in grads.items():
        np.testing.assert_allclose(clipped[key], g * factor, rtol=1e-5)


def test_clip_divides_by_a_little_more_than_the_norm():
    """PyTorch's 1e-6: at a norm of 1e-6 it halves."""
    clipped, _ = clip_by_norm(1e-6).update({"w": jnp.array([1e-6])}, ())
    np.testing.assert_allclose(clipped["w"], 5e-7, rtol=1e-5)


def test_clip_of_nothing_is_nothing():
    tx = clip_by_norm(1.0)
    clipped, _ = tx.update({"w": jnp.zeros(2)}, tx.init(None))
    assert clipped["w"].tolist() == [0.0, 0.0]


def test_half_precision_norms_are_summed_in_single():
    many = jnp.full(4096, 0.1, jnp.bfloat16)  # in bfloat16 the sum would stick at 4
    value = float(many[0])
    assert float(norm({"w": many})) == pytest.approx(64 * value, rel=1e-3)
    assert float(norm({"w": many}, 1)) == pytest.approx(4096 * value, rel=1e-3)
    large = jnp.full(4, 300.0, jnp.float16)  # 300² is beyond float16
    assert float(norm({"w": large})) == pytest.approx(600.0)
    clipped, _ = clip_by_norm(1.0).update({"w": large}, ())
    assert clipped["w"].dtype == jnp.float16


def test_centralize_takes_the_mean_of_each_output_channel():
    g = RNG.normal(size=(3, 3, 2, 4))
    got, _ = centralize().update({"k": jnp.asarray(g)}, ())
    np.testing.assert_allclose(got["k"], g - g.mean((0, 1, 2)), rtol=1e-4, atol=1e-6)
    assert not np.allclose(got["k"], g - g.mean())


def test_centralize_is_for_convolutions():
    with pytest.raises(ValueError, match=r"bias.*shape \(4,\).*own"):
        centralize().update({"conv.bias": jnp.ones(4)}, ())
