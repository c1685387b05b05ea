"""A graph in a file: the same bits without its Python code, at any batch size."""

import dataclasses
import enum
import functools
import re
import subprocess
import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import graphlr as glr
from graphlr.export.batch_sizes import ExportError
from graphlr.export.loading import load
from graphlr.state import archive

DRAW = np.random.default_rng(0)
IMAGE = DRAW.normal(size=(8, 12, 12, 3)).astype(np.float32)
LABEL = np.arange(8) % 5


class Net(nnx.Module):
    """Every convolution that CPU and GPU compute differently, BatchNorm, dropout."""

    def __init__(self, seed):
        rngs = nnx.Rngs(seed)
        conv = functools.partial(glr.layers.Conv, rngs=rngs)
        self.stem = conv(3, 8, (3, 3), 2, padding=1)
        self.norm = glr.layers.BatchNorm(8, rngs=rngs)
        self.depthwise = conv(8, 8, (3, 3), padding=1, feature_group_count=8)
        self.pointwise = conv(8, 16, (1, 1))
        self.dropout = nnx.Dropout(0.2, rngs=rngs)
        self.head = nnx.Linear(16, 5, rngs=rngs)

    def __call__(self, x):
        x = jax.nn.relu(self.norm(self.stem(x)))
        x = jax.nn.relu6(self.pointwise(self.depthwise(x))).mean((1, 2))
        return self.head(self.dropout(x))


class Train(glr.Graph):
    def __init__(self, seed=0):
        super().__init__()
        self.model = Net(seed)
        groups = [
            {"params": "head.**", "name": "head", "lr_scale": 2.0},
            {"params": ...},
        ]
        schedule = glr.optim.lr_scheduler.CosineDecayLR(decay_steps=10)
        self.optimizer = [glr.optim.AdamW(groups, lr=1e-2)]
        self.add_optimizer(self.optimizer[0], lr_sch=schedule)

    def build(self, image, label):
        logits = self.model(image)
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, label).mean()
        self.backward(loss)
        return {"loss": loss, "logits": logits}


class Eval(glr.Graph):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def build(self, image):
        return self.model(image)


def equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """A graph exported after two steps, and what two more gave and left."""
    path = tmp_path_factory.mktemp("export") / "train.zip"
    train = Train()
    train(IMAGE, LABEL), train(IMAGE, LABEL)
    train.export(path)
    given = [train(IMAGE, LABEL), train(IMAGE[:5], LABEL[:5])]
    return path, train, given


WITHOUT_THE_MODEL = """
import sys
import numpy as np
import graphlr as glr

path, batch, result = sys.argv[1:]
train, batch = glr.export.load(path), np.load(batch)
image, label = batch["image"], batch["label"]
given = [train(image, label), train(image=image[:5], label=label[:5])]
np.savez(result, *[out[key] for out in given for key in ("loss", "logits")])
train.save(path + ".later")
print(train)
"""


def test_a_fresh_process_goes_on_with_the_same_bits(straight, tmp_path):
    path, train, given = straight
    np.savez(tmp_path / "batch.npz", image=IMAGE, label=LABEL)
    files = [path, tmp_path / "batch.npz", tmp_path / "result.npz"]
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", WITHOUT_THE_MODEL, *map(str, files)],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == (
        "Train (exported, train, step 4) takes image: float32[b,12,12,3], "
        "label: int32[b]"
    )
    results = [*np.load(files[2]).values()]
    equal(results, [out[key] for out in given for key in ("loss", "logits")])
    later = load(f"{path}.later")
    equal(later.state_dict(), train.state_dict())
    back = Train(seed=1)
    back.load_state_dict(later.state_dict())
    equal(back(IMAGE, LABEL), later(IMAGE, LABEL))
    equal(back.state_dict(), later.state_dict())


def test_the_state_is_that_of_the_graph(straight):
    exported, train = load(straight[0]), Train()
    train(IMAGE, LABEL), train(IMAGE, LABEL)
    state = exported.state_dict()
    equal(state, train.state_dict())
    assert state["groups.head.betas"] == (0.9, 0.999)
    assert state["step"] == exported.step == train.step == 2
    assert np.load(straight[0])["model.head.kernel"].shape == (16, 5)


def test_the_manifest_says_what_it_is(straight):
    manifest = load(straight[0]).manifest
    assert manifest["name"] == "Train"
    assert manifest["training"] is True
    assert manifest["platforms"] == ["cpu", "cuda", "tpu"]
    assert (manifest["graphlr"], manifest["jax"]) == (glr.__version__, jax.__version__)
    kernel = manifest["state"]["model.head.kernel"]
    assert kernel == {"dtype": "float32", "shape": [16, 5]}
    assert len(manifest["parts"]["step.jax"]["sha256"]) == 64


def test_every_platform_gets_its_own_convolution(straight):
    parts = archive.read(straight[0])[1]
    text = jax.export.deserialize(bytearray(parts["step.jax"])).mlir_module()
    assert "stablehlo.case" in text
    assert "feature_group_count = 8" in text  # as GPU and TPU have it; CPU has slices


def test_forward_pass_at_every_batch_size(tmp_path):
    evaluate = Eval(Net(0))
    evaluate.export(tmp_path / "eval.zip", jax.ShapeDtypeStruct(IMAGE.shape, "float32"))
    assert evaluate.compiles.count == 0
    exported = load(tmp_path / "eval.zip")
    for size in (8, 3, 1):
        equal(exported(IMAGE[:size]), evaluate(IMAGE[:size]))
    assert (exported.lr, exported.step, dict(exported.numbers)) == ({}, 0, {})


def test_forward_pass_takes_the_state_of_training(straight, tmp_path):
    _, train, _ = straight
    evaluate = Eval(Net(1))
    evaluate.export(tmp_path / "eval.zip", IMAGE)
    exported = load(tmp_path / "eval.zip")
    loaded = exported.load_state_dict(train.state_dict())
    assert loaded.missing == loaded.unexpected == []
    equal(exported(IMAGE), Eval(train.model)(IMAGE))


# --- options --------------------------------------------------------------------------

X = DRAW.normal(size=(8, 4)).astype(np.float32)


class Small(glr.Graph):
    """A step with every option that `make` sets."""

    def __init__(self, make=None, optimizers=None):
        super().__init__()
        self.model = nnx.Sequential(
            nnx.Linear(4, 4, rngs=nnx.Rngs(0)),
            nnx.BatchNorm(4, rngs=nnx.Rngs(0)),
            nnx.Linear(4, 1, rngs=nnx.Rngs(1)),
        )
        for optimizer in optimizers or [glr.optim.SGD("**", lr=0.1, momentum=0.9)]:
            self.add_optimizer(optimizer)
        if make:
            make(self)

    def build(self, x):
        loss = (self.model(x) ** 2).mean()
        self.backward(loss)
        return loss


def config(**options):
    def make(graph):
        for name, value in options.items():
            setattr(graph.config, name, value)

    return make


def float16(graph):
    graph.config.amp = "float16"
    graph.set_grad_scaler(glr.GradScaler())


OPTIONS = {
    "averages": config(ema_decay=0.9),
    "skips": config(skip_nonfinite=True),
    "bfloat16": config(amp="bfloat16"),
    "float16": float16,
    "recomputed": config(remat="model.layers.0"),
    "not donated": config(donate=False),
    "statistics": config(group_stats=True, clip_grad_norm=0.5),
}
OPTIMIZERS = {
    "two": lambda: [
        glr.optim.SGD("**.layers.0.**", lr=0.1),
        glr.optim.Adam(re.compile(r"layers\.[12]"), lr=0.1),
    ],
    "frozen": lambda: [
        glr.optim.SGD([{"params": "**.bias", "frozen": True}, {"params": ...}], lr=0.1)
    ],
    "steps for each": lambda: [glr.optim.ASGD("**", lr=0.1)],
}


def steps_alike(graph, path, calls=3, batch=X):
    graph.export(path, batch)
    exported = load(path)
    for _ in range(calls):
        equal(exported(batch), graph(batch))
    equal(exported.state_dict(), graph.state_dict())
    return exported


@pytest.mark.parametrize("make", OPTIONS.values(), ids=OPTIONS)
def test_options_are_part_of_the_step(make, tmp_path):
    steps_alike(Small(make), tmp_path / "step.zip")


@pytest.mark.parametrize("optimizers", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_optimizers_are_part_of_the_step(optimizers, tmp_path):
    steps_alike(Small(optimizers=optimizers()), tmp_path / "step.zip")


def test_a_skipped_batch_changes_nothing_there_either(tmp_path):
    graph = Small(config(skip_nonfinite=True))
    graph(X)
    graph.export(tmp_path / "step.zip")
    exported = load(tmp_path / "step.zip")
    before = exported.state_dict()
    exported(X * np.nan)
    after = exported.state_dict()
    assert (after.pop("skipped.total"), before.pop("skipped.total")) == (1, 0)
    assert (after.pop("skipped.in_a_row"), before.pop("skipped.in_a_row")) == (1, 0)
    equal(after, before)


def test_wide_types(tmp_path):
    with jax.enable_x64(True):
        graph = Eval(nnx.Linear(4, 2, param_dtype=jnp.float64, rngs=nnx.Rngs(0)))
        graph.export(tmp_path / "wide.zip", X.astype(np.float64))
        exported = load(tmp_path / "wide.zip")
        equal(exported(X.astype(np.float64)), graph(X.astype(np.float64)))
    with pytest.raises(ExportError, match=r"with 64-bit .*jax_enable_x64', True\) bef"):
        load(tmp_path / "wide.zip")


# --- arguments and results ------------------------------------------------------------


@dataclasses.dataclass
class Batch:
    image: object
    scale: object


class Scores(NamedTuple):
    mean: object
    rest: dict


class Mode(enum.Enum):
    DOUBLE = 2.0


class Shapes(glr.Graph):
    """Arguments of every form."""

    def __init__(self):
        super().__init__()
        self.model = nnx.Linear(4, 1, rngs=nnx.Rngs(0))

    def build(self, batch, /, mode, *rest, extra=None, flag=True, **named):
        out = self.model(batch.image) * batch.scale * mode.value
        for more in (*rest, *named.values()):
            out = out + more["x"].mean()
        return Scores(out.mean(), {"none": extra, "flag": flag, "list": [out, "text"]})


def test_arguments_and_results_of_every_form(tmp_path):
    graph, path = Shapes(), tmp_path / "shapes.zip"
    args = (Batch(X, 0.5), Mode.DOUBLE, {"x": X}, {"x": X + 1})
    named = {"flag": False, "other": {"x": X}}
    graph.export(path, *args, **named)
    exported = load(path)
    found, expected = exported(*args, **named), graph(*args, **named)
    assert repr(found).startswith("Scores(mean=Array(")
    equal([*found], [*expected])
    assert found.rest["flag"] is False
    assert exported.manifest["arguments"] == {
        "batch.image": "float32[b,4]",
        "batch.scale": "float32[]",
        "rest[0]['x']": "float32[b,4]",
        "rest[1]['x']": "float32[b,4]",
        "other['x']": "float32[b,4]",
    }
    with pytest.raises(TypeError, match=r"flag is True, and .* is made for False"):
        exported(*args, flag=True, other={"x": X})
    with pytest.raises(TypeError, match=r"rest must have 2 entries, and it has 1"):
        exported(*args[:3], **named)


def test_what_was_left_out_may_be_left_out(tmp_path):
    graph, path = Shapes(), tmp_path / "shapes.zip"
    graph.export(path, Batch(X, 0.5), Mode.DOUBLE)
    exported = load(path)
    equal(exported(Batch(X, 0.5), Mode.DOUBLE)[0], graph(Batch(X, 0.5), Mode.DOUBLE)[0])
    equal(
        exported(Batch(X, 0.5), Mode.DOUBLE, extra=None, flag=True).rest["flag"], True
    )


class Computes(glr.Graph):
    """Computes what it is given."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def build(self, *args):
        return self.function(*args)


def test_keys_are_arguments_and_results_too(tmp_path):
    graph = Computes(lambda key: jax.random.split(key)[0])
    graph.export(tmp_path / "key.zip", jax.random.key(0))
    found = load(tmp_path / "key.zip")(jax.random.key(3))
    assert found == jax.random.split(jax.random.key(3))[0]


def test_results_that_no_file_holds_are_refused(tmp_path):
    with pytest.raises(ExportError, match=r"build\(\) returns the Mode <Mode.DOUBLE"):
        Computes(lambda x: (x, Mode.DOUBLE)).export(tmp_path / "x.zip", X)
    Computes(lambda x: (x, optax.EmptyState())).export(tmp_path / "x.zip", X)
    graph, state = Computes(lambda state, x: x), nnx.state(Net(0))
    with pytest.raises(ExportError, match=r"build\(\) takes arrays in the State State"):
        graph.export(tmp_path / "x.zip", state, X)


def test_variables_that_a_forward_pass_changes(tmp_path):
    class Counting(nnx.Module):
        def __init__(self):
            self.count, self.rngs = nnx.Variable(jnp.zeros((), int)), nnx.Rngs(0)

        def __call__(self, x):
            self.count[...] += 1
            return x + jax.random.normal(self.rngs(), x.shape)

    steps_alike(Eval(Counting()), tmp_path / "count.zip")


def test_a_model_reached_by_another_name_is_refused(tmp_path):
    model = nnx.Linear(4, 1, rngs=nnx.Rngs(0))

    class Global(glr.Graph):
        def __init__(self):
            super().__init__()
            self.model = model

        def build(self, x):
            return model(x)

    with pytest.raises(ValueError, match=r"build\(\) uses .*model\.kernel.* constant"):
        Global().export(tmp_path / "x.zip", X)


# --- the worked model -----------------------------------------------------------------


@pytest.mark.slow
def test_mobilenet_v2(tmp_path):
    class MobileNet(Train):
        def __init__(self, seed=0):
            glr.Graph.__init__(self)
            self.model = glr.models.mobilenet_v2(num_classes=10, rngs=nnx.Rngs(seed))
            groups = [
                {"params": self.model.features, "name": "features", "lr_scale": 0.9},
                {"params": self.model.classifier, "name": "classifier"},
            ]
            self.add_optimizer(glr.optim.SGD(groups, lr=0.01, momentum=0.9))

    train, path = MobileNet(), tmp_path / "mobilenet.zip"
    image = DRAW.normal(size=(4, 32, 32, 3)).astype(np.float32)
    train(image, LABEL[:4])
    train.export(path, symbolic=True)
    exported = load(path)
    for _ in range(2):
        equal(exported(image, LABEL[:4]), train(image, LABEL[:4]))
    equal(exported.state_dict(), train.state_dict())
