"""MobileNetV2: torchvision's names, shapes and initialisation, PyTorch's numbers."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from graphlr.models import MobileNetV2, mobilenet_v2
from tests.models import quick

# What PyTorch 2.13 computes in float64 from the weights and images of the last test.
TORCH = {
    "loss": 4.034513075709,
    "logits": [
        [-2.224185145796, -0.822211526463, 0.871529363930, 0.786958059152],
        [-1.739679990290, -1.390974628134, 1.203489549873, 0.575167387768],
    ],
    "gradient norms": {
        "features.0.0.kernel": 501.2270473114,
        "features.3.conv.1.0.kernel": 378.2446033345,
        "features.4.conv.1.0.kernel": 358.5463947576,
        "features.9.conv.2.kernel": 10.57604957844,
        "features.14.conv.1.0.kernel": 98.26739060033,
        "features.17.conv.1.1.bias": 0.5845262495979,
        "classifier.1.kernel": 9.635070883269,
    },
    "mean |statistics|": {
        "features.0.1.mean": 0.00075766185131,
        "features.14.conv.1.1.var": 0.9000904214463,
        "features.18.1.var": 0.9525288477061,
    },
    "eval": [
        [0.061120181643, 0.035736035389, 0.118898057822, 0.280516022697],
        [0.061120177766, 0.035736036903, 0.118898057904, 0.280516020239],
    ],
}


def abstract(*args, **kwargs):
    return nnx.eval_shape(lambda: mobilenet_v2(*args, **kwargs, rngs=nnx.Rngs(0)))


def flat(model, *filters):
    leaves = nnx.to_flat_state(nnx.state(model, *filters))
    return {".".join(map(str, path)): leaf for path, leaf in leaves}


def noise(shape, start=0):
    """The same irregular numbers of deviation 1 on every machine and in any library."""
    index = np.arange(start, start + math.prod(shape), dtype=np.float64)
    uniform = np.sin(12.9898 * index) * 43758.5453 % 1
    return (math.sqrt(12) * (uniform - 0.5)).reshape(shape)


@pytest.fixture(scope="module")
def model():
    return mobilenet_v2(num_classes=10, dropout=0.0, rngs=nnx.Rngs(0))


@pytest.mark.parametrize(("classes", "count"), [(1000, 3_504_872), (10, 2_236_682)])
def test_parameter_counts_are_torchvisions(classes, count):
    params = flat(abstract(classes), nnx.Param)
    assert sum(leaf.size for leaf in params.values()) == count
    assert len(params) == 158


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("features.0.0.kernel", (3, 3, 3, 32)),
        ("features.0.1.scale", (32,)),
        ("features.1.conv.0.0.kernel", (3, 3, 1, 32)),
        ("features.1.conv.1.kernel", (1, 1, 32, 16)),
        ("features.1.conv.2.bias", (16,)),
        ("features.2.conv.0.0.kernel", (1, 1, 16, 96)),
        ("features.2.conv.1.0.kernel", (3, 3, 1, 96)),
        ("features.2.conv.2.kernel", (1, 1, 96, 24)),
        ("features.2.conv.3.mean", (24,)),
        ("features.18.1.var", (1280,)),
        ("classifier.1.kernel", (1280, 10)),
        ("classifier.1.bias", (10,)),
    ],
)
def test_names_are_torchvisions(model, name, shape):
    assert flat(model)[name].shape == shape


def test_features_and_classifier_are_modules(model):
    assert isinstance(model, MobileNetV2)
    for part in (model.features, model.classifier):
        assert isinstance(part, nnx.Module)
    assert len(model.features) == 19


@pytest.mark.parametrize(
    ("arguments", "trunks"),
    [
        ({}, {32: (1, 1, 1280), 224: (7, 7, 1280)}),
        ({"stem_stride": 1}, {32: (2, 2, 1280)}),
        ({"width_mult": 0.35}, {97: (4, 4, 1280)}),
        ({"width_mult": 1.4}, {64: (2, 2, 1792)}),
    ],
)
def test_output_shapes(arguments, trunks):
    network = abstract(7, **arguments)
    network.eval()
    for image, trunk in trunks.items():
        x = jax.ShapeDtypeStruct((2, image, image, 3), jnp.float32)
        features = nnx.eval_shape(lambda m, x: m.features(x), network, x)
        assert features.shape == (2, *trunk)
        assert network.classifier[1].kernel.shape == (trunk[-1], 7)


def test_initialisation_is_torchvisions(model):
    params = flat(model, nnx.Param)
    for name in ("features.18.0.kernel", "features.14.conv.1.0.kernel"):
        kernel = np.asarray(params[name][...])
        deviation = math.sqrt(2 / (math.prod(kernel.shape[:2]) * kernel.shape[3]))
        assert kernel.std() == pytest.approx(deviation, rel=0.03)
        assert abs(kernel.mean()) < 0.05 * deviation
    assert params["classifier.1.kernel"][...].std() == pytest.approx(0.01, rel=0.03)
    assert not params["classifier.1.bias"][...].any()
    assert (params["features.5.conv.3.scale"][...] == 1).all()
    assert not params["features.5.conv.3.bias"][...].any()


def test_equal_seeds_give_equal_models_and_streams_advance(model):
    rngs = nnx.Rngs(0)
    first, second = (mobilenet_v2(10, dropout=0.0, rngs=rngs) for _ in range(2))
    kernels = [flat(m, nnx.Param) for m in (model, first, second)]
    for name in ("features.7.conv.2.kernel", "classifier.1.kernel"):
        reference, again, other = (params[name][...] for params in kernels)
        assert jnp.array_equal(reference, again)
        assert not jnp.array_equal(reference, other)


def test_a_new_model_trains_and_train_and_eval_switch_everything():
    network = abstract(10)
    dropout, norm = network.classifier[0], network.features[17].conv[1][1]
    assert (dropout.deterministic, norm.use_running_average) == (False, False)
    network.eval()
    assert (dropout.deterministic, norm.use_running_average) == (True, True)
    network.train()
    assert (dropout.deterministic, norm.use_running_average) == (False, False)


def test_dtype_and_param_dtype():
    network = abstract(10, dtype=jnp.bfloat16, param_dtype=jnp.float16)
    assert {leaf.dtype for leaf in flat(network, nnx.Param).values()} == {
        jnp.dtype("float16")
    }
    x = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    assert nnx.eval_shape(lambda m, x: m(x), network, x).dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (np.zeros((32, 32, 3), "float32"), ValueError, r"\(32, 32, 3\).*x\[None\]"),
        (np.zeros((2, 3, 32, 32), "float32"), ValueError, r"transpose\(0, 2, 3, 1\)"),
        (np.zeros((2, 32, 32, 3), "uint8"), TypeError, r"uint8.*/ 255"),
    ],
)
def test_a_wrong_input_is_explained(model, x, error, message):
    with pytest.raises(error, match=message):
        model(x)


def test_numbers_are_pytorchs():
    with jax.enable_x64(True):
        network = mobilenet_v2(
            10, dropout=0.0, rngs=nnx.Rngs(0), param_dtype=jnp.float64
        )
        for name, leaf in flat(network, nnx.Param).items():
            if name.endswith("kernel"):
                *window, _, outputs = leaf.shape
                fan_out = math.prod(window) * outputs
                scale = math.sqrt(2 / fan_out) if window else 0.1
                leaf[...] = jnp.asarray(scale * noise(leaf.shape))
        x = jnp.asarray(noise((4, 64, 64, 3), start=1))
        graphdef, params, rest = nnx.split(network, nnx.Param, ...)

        def loss(params):
            network = nnx.merge(graphdef, params, rest, copy=True)
            logits = network(x)
            chosen = jax.nn.log_softmax(logits)[jnp.arange(4), jnp.arange(4)]
            return -chosen.mean(), (logits, nnx.state(network, nnx.BatchStat))

        step = quick(jax.value_and_grad(loss, has_aux=True))
        (value, (logits, stats)), gradients = step(params)
        nnx.update(network, stats)
        network.eval()
        graphdef, state = nnx.split(network)
        predicted = quick(lambda state: nnx.merge(graphdef, state)(x))(state)

    gradients, stats = flat(gradients), flat(stats)
    norms = {name: np.linalg.norm(gradients[name]) for name in TORCH["gradient norms"]}
    means = {name: np.abs(stats[name]).mean() for name in TORCH["mean |statistics|"]}
    assert float(value) == pytest.approx(TORCH["loss"], rel=1e-6)
    assert norms == pytest.approx(TORCH["gradient norms"], rel=1e-6)
    assert means == pytest.approx(TORCH["mean |statistics|"], rel=1e-6)
    np.testing.assert_allclose(logits[:2, :4], TORCH["logits"], rtol=1e-6)
    np.testing.assert_allclose(predicted[:2, :4], TORCH["eval"], rtol=1e-6)
