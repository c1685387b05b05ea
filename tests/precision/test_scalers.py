"""The loss scale, against PyTorch's GradScaler."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from graphlr import GradScaler, StaticGradScaler
from graphlr.optim import SGD
from tests.models import IMAGE, LABEL, Classify, Train, linear, state_of


def made(scaler=None, **config):
    return Classify(linear(4, 3), SGD("**", lr=0.1), scaler=scaler, **config)


def overflowing():
    x = IMAGE.copy()
    x.flat[0] = np.inf
    return x


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
    graph, got = made(scaler), []
    for overflow in overflows:
        graph(overflowing() if overflow else IMAGE, LABEL)
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


def test_a_static_scale_stays():
    scaler = StaticGradScaler(4.0)
    assert scaler.init_scale == 4.0
    for ok, good in ((True, 3), (False, 0)):
        after = scaler.update(jnp.float32(4.0), jnp.int32(2), jnp.bool_(ok))
        assert tuple(map(float, after)) == (4.0, good)


def test_a_power_of_two_changes_nothing():
    graphs = [made(), made(GradScaler()), made(StaticGradScaler(128.0))]
    for _ in range(3):
        plain, *scaled = (float(graph(IMAGE, LABEL)) for graph in graphs)
        assert scaled == [plain, plain]


@pytest.mark.parametrize("scaler", [GradScaler(init_scale=4.0), StaticGradScaler(4.0)])
def test_an_overflow_changes_the_scale_alone(scaler):
    model = nnx.Sequential(nnx.BatchNorm(4, rngs=nnx.Rngs(0)), linear(4, 3))
    options = {"amp": "float16", "ema_decay": 0.9}
    graph = Classify(model, SGD("**", momentum=0.9), scaler=scaler, **options)
    graph(IMAGE, LABEL)
    before = state_of(graph)
    assert not np.isfinite(graph(np.full_like(IMAGE, np.inf), LABEL))
    after = state_of(graph)
    changed = {k for k in before if not np.array_equal(before[k], after[k])}
    dynamic = {"scaler.scale"} if isinstance(scaler, GradScaler) else set()
    assert changed == {"skipped.total", "skipped.in_a_row", "scaler.good"} | dynamic
    assert (graph.step, graph.skipped) == (1, 1)


def test_a_tiny_gradient_survives_float16_only_when_scaled():
    tiny = np.full(2, 1e-4, np.float16)  # 1e-8 is zero in float16

    class Tiny(Train):
        def loss(self, x):
            low = self.model.astype(jnp.float16)
            return (low * x[0] * x[1]).sum().astype(jnp.float32)

    def moved(scaler):
        gain = nnx.Param(jnp.full(4, 1.5))
        Tiny(gain, SGD("**", lr=1e6), scaler=scaler)(tiny)
        return np.abs(np.asarray(gain.get_value()) - 1.5).max()

    assert moved(None) == 0
    assert moved(GradScaler(init_scale=2.0**15)) > 0


def test_float16_without_a_scale_is_a_warning():
    with pytest.warns(UserWarning, match=r"set_grad_scaler\(glr.GradScaler\(\)\)"):
        made(amp="float16")(IMAGE, LABEL)


def test_the_scale_is_saved_and_resumed():
    scaler = GradScaler(init_scale=8.0, growth_interval=2)
    whole, other = made(scaler), made(scaler)
    for _ in range(3):
        whole(IMAGE, LABEL)
    other(IMAGE, LABEL)
    other.load_state_dict(whole.state_dict())
    whole(IMAGE, LABEL), other(IMAGE, LABEL)
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
    graph = made()
    with pytest.raises(TypeError, match=r"takes glr.GradScaler\(\), not float"):
        graph.set_grad_scaler(128.0)
    graph(IMAGE, LABEL)
    with pytest.raises(RuntimeError, match="comes too late"):
        graph.set_grad_scaler(GradScaler())
