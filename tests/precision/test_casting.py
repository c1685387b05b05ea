"""Mixed precision and the loss scale, against PyTorch's GradScaler and float32."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import graphlr as glr
from graphlr import GradScaler, StaticGradScaler

RNG = np.random.default_rng(0)
X = RNG.normal(size=(16, 8, 8, 3)).astype(np.float32)
Y = RNG.integers(0, 4, 16)


class OwnNorm(nnx.Module):
    """A normalisation that isn't flax's."""

    def __init__(self, seen):
        self.scale, self.seen = nnx.Param(jnp.ones(4)), seen

    def __call__(self, x):
        self.seen["OwnNorm"] = x.dtype, self.scale.get_value().dtype
        return self.scale * x / (1e-6 + jnp.abs(x).max(-1, keepdims=True))


class Net(nnx.Module):
    def __init__(self, seen):
        rngs = nnx.Rngs(0)
        self.conv = nnx.Conv(3, 4, (3, 3), rngs=rngs)
        self.bn = nnx.BatchNorm(4, rngs=rngs)
        self.norm = OwnNorm(seen)
        self.gain = nnx.Param(jnp.full((4,), 1.5))
        self.head = nnx.Linear(4, 4, rngs=rngs)
        self.seen = seen

    def __call__(self, x):
        self.seen["in"] = x.dtype
        x = self.seen_as("bn", self.bn(self.seen_as("conv", self.conv(x))))
        x = self.seen_as("gain", self.norm(x).mean((1, 2)).astype(x.dtype) * self.gain)
        return self.seen_as("head", self.head(x))

    def seen_as(self, name, x):
        self.seen[name] = x.dtype
        return x


class Train(glr.Graph):
    def __init__(self, model, scaler=None, **config):
        super().__init__()
        self.model = model
        self.optimizers = [glr.optim.SGD(model, lr=0.1, momentum=0.9)]
        self.add_optimizer(self.optimizers[0])
        if scaler is not None:
            self.set_grad_scaler(scaler)
        for name, value in config.items():
            setattr(self.config, name, value)

    def build(self, x, y):
        logits = self.model(x)
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()
        self.backward(loss)
        return loss, logits


def dtypes(**config):
    seen = {}
    graph = Train(Net(seen), **config)
    loss, logits = graph(X, Y)
    assert loss.dtype == logits.dtype == jnp.float32
    params = jax.tree.leaves(nnx.state(graph.model, nnx.Param))
    assert {str(param.dtype) for param in params} == {"float32"}
    return {
        name: tuple(map(str, kind)) if isinstance(kind, tuple) else str(kind)
        for name, kind in seen.items()
    }


@pytest.mark.filterwarnings("ignore:config.amp = 'float16' without a loss scale")
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
    assert dtypes(amp="bfloat16", amp_float32=selector)["head"] == "float32"
    assert dtypes(amp="bfloat16", amp_float32=selector)["conv"] == "bfloat16"


def test_an_exception_that_selects_nothing():
    with pytest.raises(
        ValueError, match=r"amp_float32: 'heads' selects no module.*model.head"
    ):
        dtypes(amp="bfloat16", amp_float32="heads")


def test_a_dtype_that_the_model_says_stays():
    seen = {}
    model = Net(seen)
    model.head.dtype = jnp.float32
    Train(model, amp="bfloat16")(X, Y)
    assert seen["head"] == jnp.float32
    assert model.conv.dtype is None  # only the traced copy computes low


def test_bfloat16_trains_like_float32_and_master_weights_stay():
    curves = {}
    for amp in (None, "bfloat16"):
        graph = Train(Net({}), amp=amp)
        curves[amp] = [float(graph(X, Y)[0]) for _ in range(20)]
        assert graph.compiles.count == 1
    np.testing.assert_allclose(curves["bfloat16"], curves[None], rtol=0.03)
    assert curves["bfloat16"] != curves[None]
    assert curves["bfloat16"][-1] < curves["bfloat16"][0]


def test_small_updates_are_not_rounded_away():
    """1.5 + 2**-8 has no bfloat16, so only a float32 master weight moves by less."""
    model = Net({})
    graph = Train(model, amp="bfloat16")
    graph.optimizers[0].param_groups[0]["lr"] = 1e-3
    before = np.asarray(model.gain.get_value())
    graph(X, Y)
    after = np.asarray(model.gain.get_value())
    assert 0 < np.abs(after - before).max() < 2**-8


def test_what_build_assigns_under_amp_is_kept_exactly_where_it_is_not_cast():
    model = Net({})

    class Assign(Train):
        def build(self, x, y):
            loss, logits = super().build(x, y)
            self.model.gain.set_value(self.model.gain.get_value() * 2)
            return loss, logits

    graph = Assign(model, amp="bfloat16")
    graph.optimizers[0].param_groups[0]["lr"] = 0.0
    model.gain.set_value(jnp.full((4,), 1.5 + 2**-12))
    graph(X, Y)
    np.testing.assert_allclose(model.gain.get_value(), 3.0 + 2**-12, rtol=1e-7)


def test_remat_under_amp_keeps_the_master_weights():
    curves = [
        [float(graph(X, Y)[0]) for _ in range(5)]
        for graph in (
            Train(Net({}), amp="bfloat16"),
            Train(Net({}), amp="bfloat16", remat="**"),
        )
    ]
    np.testing.assert_allclose(*curves, rtol=1e-3)


def test_an_eval_graph_computes_low_too():
    class Evaluate(glr.Graph):
        def __init__(self, model):
            super().__init__()
            self.model = model
            self.config.amp = "bfloat16"

        def build(self, x):
            return self.model(x), self.model.head(jnp.ones((1, 4)))

    seen = {}
    out, direct = Evaluate(Net(seen))(X)
    assert seen["head"] == jnp.bfloat16
    assert out.dtype == direct.dtype == jnp.float32


# --- the loss scale -------------------------------------------------------------------


def torch_trace(overflows, init, growth, backoff, interval):
    """PyTorch's `_amp_update_scale_`, written out."""
    scale, tracker, trace = init, 0, []
    for overflow in overflows:
        if overflow:
            scale, tracker = scale * backoff, 0
        else:
            tracker += 1
            if tracker == interval:
                scale, tracker = scale * growth, 0
        trace.append((scale, tracker))
    return trace


@pytest.mark.parametrize("interval", [1, 2, 3])
def test_dynamic_scale_follows_pytorch(interval):
    overflows = [0, 0, 1, 0, 0, 0, 1, 1, 0, 0, 0, 0]
    keys = {"growth": 4.0, "backoff": 0.25, "interval": interval}
    scaler = GradScaler(
        init_scale=8.0, growth_factor=4.0, backoff_factor=0.25, growth_interval=interval
    )
    graph, got = Train(Net({}), scaler), []
    for overflow in overflows:
        x = X.copy()
        x.flat[0] = np.inf if overflow else x.flat[0]
        graph(x, Y)
        state = graph.state_dict()
        got.append((float(state["scaler.scale"]), int(state["scaler.good"])))
    assert got == torch_trace(overflows, 8.0, **keys)
    assert graph.loss_scale == got[-1][0]
    assert (graph.step, graph.skipped) == (overflows.count(0), overflows.count(1))
    assert graph.compiles.count == 1


def test_the_scale_does_not_overflow_itself():
    scaler = GradScaler(init_scale=3e38, growth_interval=1)
    scale, good = scaler.update(jnp.float32(3e38), jnp.int32(0), jnp.bool_(True))
    assert (float(scale), int(good)) == (float(jnp.float32(3e38)), 0)


@pytest.mark.parametrize("scaler", [GradScaler(), StaticGradScaler(128.0)])
def test_a_power_of_two_changes_nothing(scaler):
    plain, scaled = Train(Net({})), Train(Net({}), scaler)
    for _ in range(3):
        (a, _), (b, _) = plain(X, Y), scaled(X, Y)
        assert float(a) == float(b)


@pytest.mark.parametrize("scaler", [GradScaler(init_scale=4.0), StaticGradScaler(4.0)])
def test_an_overflow_changes_the_scale_alone(scaler):
    graph = Train(Net({}), scaler, amp="float16", ema_decay=0.9)
    graph(X, Y)
    before = graph.state_dict()
    loss, _ = graph(np.full_like(X, np.inf), Y)
    assert not np.isfinite(loss)
    after = graph.state_dict()
    changed = {k for k in before if not np.array_equal(before[k], after[k])}
    dynamic = {"scaler.scale"} if isinstance(scaler, GradScaler) else set()
    assert changed == {"skipped.total", "skipped.in_a_row", "scaler.good"} | dynamic
    assert (graph.step, graph.skipped) == (1, 1)


def test_a_tiny_gradient_survives_float16_only_when_scaled():
    tiny = np.full(2, 1e-4, np.float16)  # 1e-8 is zero in float16

    def moved(scaler):
        class Tiny(Train):
            def build(self, x):
                low = self.model.gain.astype(jnp.float16)
                loss = (low * x[0] * x[1]).sum().astype(jnp.float32)
                self.backward(loss)
                return loss

        model = Net({})
        graph = Tiny(model, scaler)
        graph.optimizers[0].param_groups[0].update({"lr": 1e6, "momentum": 0.0})
        before = np.asarray(model.gain.get_value())
        with pytest.warns(UserWarning, match="no loss depends on"):
            graph(tiny)
        return np.abs(np.asarray(model.gain.get_value()) - before).max()

    assert moved(None) == 0
    assert moved(GradScaler(init_scale=2.0**15)) > 0


def test_float16_without_a_scale_is_a_warning():
    with pytest.warns(UserWarning, match=r"set_grad_scaler\(glr.GradScaler\(\)\)"):
        Train(Net({}), amp="float16")(X, Y)


def test_the_scale_is_saved_and_resumed():
    scaler = GradScaler(init_scale=8.0, growth_interval=2)
    whole, other = Train(Net({}), scaler), Train(Net({}), scaler)
    for _ in range(3):
        whole(X, Y)
    other(X, Y)
    other.load_state_dict(whole.state_dict())
    whole(X, Y), other(X, Y)
    assert whole.loss_scale == other.loss_scale == 32.0


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"init_scale": 0.0}, "init_scale is 0.0, and must be above 0"),
        ({"growth_factor": 1.0}, "growth_factor is 1.0, and must be above 1"),
        ({"backoff_factor": 1.0}, "backoff_factor is 1.0, and must be between 0 and 1"),
        ({"growth_interval": 0}, "growth_interval is 0, and must be at least 1"),
    ],
)
def test_bad_settings_of_a_scaler(keys, message):
    with pytest.raises(ValueError, match=message):
        GradScaler(**keys)


def test_faults_of_scalers():
    with pytest.raises(ValueError, match="scale_factor is -1"):
        StaticGradScaler(-1)
    graph = Train(Net({}))
    with pytest.raises(TypeError, match=r"takes glr.GradScaler\(\), not float"):
        graph.set_grad_scaler(128.0)
    graph(X, Y)
    with pytest.raises(RuntimeError, match="comes too late"):
        graph.set_grad_scaler(GradScaler())
