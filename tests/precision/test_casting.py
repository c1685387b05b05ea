"""Mixed precision: what is computed in 16 bits, and what is not."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from graphlr.optim import SGD
from graphlr.precision.casting import cast
from tests.models import Classify, Evaluate, linear, state_of

RNG = np.random.default_rng(0)
X = RNG.normal(size=(8, 4, 4, 3)).astype(np.float32)
Y = RNG.integers(0, 4, 8)


class OwnNorm(nnx.Module):
    """A normalisation that isn't flax's."""

    def __init__(self, seen):
        self.scale, self.seen = nnx.Param(jnp.ones(4)), seen

    def __call__(self, x):
        self.seen["OwnNorm"] = x.dtype, self.scale.get_value().dtype
        return self.scale * x / (1e-6 + jnp.abs(x).max(-1, keepdims=True))


class Net(nnx.Module):
    """Notes in which types its parts are called."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.seen = {}
        self.conv = nnx.Conv(3, 4, (3, 3), rngs=rngs)
        self.bn = nnx.BatchNorm(4, rngs=rngs)
        self.norm = OwnNorm(self.seen)
        self.gain = nnx.Param(jnp.full((4,), 1.5))
        self.head = linear(4, 4)

    def __call__(self, x):
        self.seen["in"] = x.dtype
        x = self.seen_as("bn", self.bn(self.seen_as("conv", self.conv(x))))
        x = self.seen_as("gain", self.norm(x).mean((1, 2)).astype(x.dtype) * self.gain)
        return self.seen_as("head", self.head(x))

    def seen_as(self, name, x):
        self.seen[name] = x.dtype
        return x


class Trains(Classify):
    """Gives its logits back too."""

    def build(self, x, y):
        logits = self.model(x)
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()
        self.backward(loss)
        return loss, logits


def made(model=None, kind=Trains, **config):
    return kind(model or Net(), SGD("**", lr=0.1, momentum=0.9), **config)


def dtypes(**config):
    """What was seen in a trace; results and new parameters are float32."""
    graph = made(**config)
    results = graph.lower(X, Y).out_info
    kept = [*results.outputs, *results.state.trained]
    assert {str(array.dtype) for array in kept} == {"float32"}
    return {
        name: tuple(map(str, kind)) if isinstance(kind, tuple) else str(kind)
        for name, kind in graph.model.seen.items()
    }


@pytest.mark.parametrize("amp", ["bfloat16", "float16"])
def test_everything_but_norms_statistics_and_losses_is_low(amp):
    assert dtypes(amp=amp) == {
        "in": amp,
        "conv": amp,
        "bn": amp,
        "gain": amp,
        "head": amp,
        "OwnNorm": ("float32", "float32"),
    }


@pytest.mark.parametrize(
    "selector", ["head", "model.head", nnx.Linear, lambda path, m: path == ("head",)]
)
def test_exceptions_by_selector(selector):
    seen = dtypes(amp="bfloat16", amp_float32=selector)
    assert (seen["head"], seen["conv"]) == ("float32", "bfloat16")


def test_an_exception_that_selects_nothing():
    with pytest.raises(
        ValueError, match=r"amp_float32: 'heads' selects no module.*model.head"
    ):
        dtypes(amp="bfloat16", amp_float32="heads")


def test_a_dtype_that_the_model_says_stays():
    model = Net()
    model.head.dtype = jnp.float32
    made(model, amp="bfloat16").lower(X, Y)
    assert model.seen["head"] == jnp.float32
    assert model.conv.dtype is None  # only the traced copy computes low


def test_float_arrays_are_cast_and_nothing_else():
    layer, numbers = linear(), np.arange(2)
    tree = {"x": np.ones(2), "layer": layer, "n": numbers, "f": 0.5}
    low = cast(tree, jnp.float16)
    assert low["x"].dtype == jnp.float16
    assert (low["layer"], low["n"], low["f"]) == (layer, numbers, 0.5)


# --- training -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def compiled():
    """A graph that computes low, compiled once, and its state before any step."""
    graph = made(amp="bfloat16")
    start = state_of(graph)
    graph.compile(X, Y)
    return graph, start


@pytest.fixture
def low(compiled):
    """It, as it was before its first step."""
    graph, start = compiled
    graph.load_state_dict(start)
    yield graph
    assert graph.compiles.count == 1


def losses(graph, steps):
    loss, logits = zip(*(graph(X, Y) for _ in range(steps)), strict=True)
    assert {str(x.dtype) for x in (*loss, *logits)} == {"float32"}
    return np.array(loss)


def test_bfloat16_trains_like_float32_and_master_weights_stay(low):
    plain = made()
    expected, got = losses(plain, 20), losses(low, 20)
    np.testing.assert_allclose(got, expected, rtol=0.03)
    assert (got != expected).any()
    assert got[-1] < got[0]
    assert plain.compiles.count == 1
    params = jax.tree.leaves(nnx.state(low.model, nnx.Param))
    assert {str(param.dtype) for param in params} == {"float32"}


def test_small_updates_are_not_rounded_away(low):
    """1.5 + 2**-8 has no bfloat16, so only a float32 master weight moves by less."""
    low.optimizers[0].param_groups[0]["lr"] = 1e-3
    before = np.asarray(low.model.gain.get_value())
    low(X, Y)
    after = np.asarray(low.model.gain.get_value())
    assert 0 < np.abs(after - before).max() < 2**-8


def test_remat_under_amp_keeps_the_master_weights(low):
    again = made(amp="bfloat16", remat="**")
    np.testing.assert_allclose(losses(low, 5), losses(again, 5), rtol=1e-3)


class Gain(nnx.Module):
    """One parameter, cast because its module has no dtype."""

    def __init__(self):
        self.gain = nnx.Param(jnp.full((4,), 1.5))

    def __call__(self, x):
        return x * self.gain


def test_what_build_assigns_under_amp_is_kept_exactly_where_it_is_not_cast():
    class Assign(Trains):
        def build(self, x, y):
            loss = super().build(x, y)
            self.model.gain.set_value(self.model.gain.get_value() * 2)
            return loss

    model = Gain()
    graph = made(model, Assign, amp="bfloat16")
    graph.optimizers[0].param_groups[0]["lr"] = 0.0
    model.gain.set_value(jnp.full((4,), 1.5 + 2**-12))
    graph(X[:, 0, 0, :1], Y)
    np.testing.assert_allclose(model.gain.get_value(), 3.0 + 2**-12, rtol=1e-7)


def test_an_eval_graph_computes_low_too():
    class Both(Evaluate):
        def build(self, x):
            return self.model(x), self.model.head(jnp.ones((1, 4)))

    graph = Both(Net())
    graph.config.amp = "bfloat16"
    out, direct = graph(X)
    assert graph.model.seen["head"] == jnp.bfloat16
    assert out.dtype == direct.dtype == jnp.float32
