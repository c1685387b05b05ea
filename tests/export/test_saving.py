"""A graph in a file: the same bits without its Python code, at any batch size."""

import dataclasses
import enum
import re
import subprocess
import sys
from pathlib import Path
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
from tests.models import (
    IMAGE,
    LABEL,
    Computes,
    ConvNet,
    Evaluate,
    Train,
    built,
    linear,
)

DRAW = np.random.default_rng(0)
PICTURE = DRAW.normal(size=(8, 6, 6, 3)).astype(np.float32)
KIND = np.arange(8) % 5


class Learn(Train):
    """Pictures by their kinds; gives the logits too."""

    def build(self, picture, kind):
        logits = self.model(picture)
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, kind).mean()
        self.backward(loss)
        return {"loss": loss, "logits": logits}


def learner(seed=0):
    groups = [{"params": "head.**", "name": "head", "lr_scale": 2.0}, {"params": ...}]
    schedule = glr.optim.lr_scheduler.CosineDecayLR(decay_steps=10)
    optimizer = glr.optim.AdamW(groups, lr=1e-2)
    return Learn(built(ConvNet, seed), optimizer, lr_sch=schedule)


def check_equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


class Straight(NamedTuple):
    """A graph that was exported after two steps.

    Attributes:
        path: Of the file.
        graph: The same that was exported.
        given: What two more steps of a smaller batch gave, and then a whole one.
        states: After two, four and five steps.
    """

    path: Path
    graph: Learn
    given: list
    states: list


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    path, graph = tmp_path_factory.mktemp("export") / "train.zip", learner()
    graph(PICTURE, KIND), graph(PICTURE, KIND)
    graph.export(path)
    states = [graph.state_dict()]
    given = [graph(PICTURE[:5], KIND[:5]) for _ in range(2)]
    states.append(graph.state_dict())
    given.append(graph(PICTURE, KIND))
    states.append(graph.state_dict())
    return Straight(path, graph, given, states)


WITHOUT_THE_MODEL = """
import sys
import numpy as np
import graphlr as glr

path, batch, result = sys.argv[1:]
train, batch = glr.export.load(path), np.load(batch)
picture, kind = batch["picture"], batch["kind"]
given = [train(picture, kind), train(kind=kind, picture=picture)]
np.savez(result, *[out[key] for out in given for key in ("loss", "logits")])
train.save(path + ".later")
print(train)
"""


def test_a_fresh_process_goes_on_with_the_same_bits(straight, tmp_path):
    np.savez(tmp_path / "batch.npz", picture=PICTURE[:5], kind=KIND[:5])
    files = [straight.path, tmp_path / "batch.npz", tmp_path / "result.npz"]
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", WITHOUT_THE_MODEL, *map(str, files)],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == (
        "Learn (exported, train, step 4) takes picture: float32[b,6,6,3], "
        "kind: int32[b]"
    )
    results = [*np.load(files[2]).values()]
    *given, then = straight.given
    check_equal(results, [out[key] for out in given for key in ("loss", "logits")])
    _, after_four, after_five = straight.states
    later, graph = load(f"{straight.path}.later"), straight.graph
    check_equal(later.state_dict(), after_four)
    graph.load_state_dict(learner(seed=1).state_dict())
    graph.load_state_dict(later.state_dict())
    check_equal(graph(PICTURE, KIND), then)
    check_equal(graph.state_dict(), after_five)


def test_the_state_is_that_of_the_graph(straight):
    exported = load(straight.path)
    state = exported.state_dict()
    check_equal(state, straight.states[0])
    assert state["groups.head.betas"] == (0.9, 0.999)
    assert state["step"] == exported.step == 2
    assert np.load(straight.path)["model.head.kernel"].shape == (16, 5)


def test_every_platform_gets_its_own_convolution(straight):
    parts = archive.read(straight.path)[1]
    text = jax.export.deserialize(bytearray(parts["step.jax"])).mlir_module()
    assert "stablehlo.case" in text
    assert "feature_group_count = 8" in text  # as GPU and TPU have it; CPU has slices


def test_a_forward_pass_at_every_batch_size_and_with_the_state_of_training(
    straight, tmp_path
):
    evaluate = Evaluate(built(ConvNet, 1))
    kind = jax.ShapeDtypeStruct(PICTURE.shape, "float32")
    evaluate.export(tmp_path / "eval.zip", kind)
    assert evaluate.compiles.count == 0
    exported = load(tmp_path / "eval.zip")
    for size in (8, 3, 1):
        check_equal(exported(PICTURE[:size]), evaluate(PICTURE[:size]))
    assert (exported.lr, exported.step, dict(exported.numbers)) == ({}, 0, {})
    before = exported(PICTURE)
    for graph in (exported, evaluate):
        loaded = graph.load_state_dict(straight.states[-1])
        assert loaded.missing == loaded.unexpected == []
    after = exported(PICTURE)
    check_equal(after, evaluate(PICTURE))
    assert not np.allclose(after, before)


def test_a_failed_export_keeps_the_old_file(path, graph, tmp_path, monkeypatch):
    file = tmp_path / "train.zip"
    file.write_bytes(path.read_bytes())

    def full(array):
        raise OSError("no space left on device")

    monkeypatch.setattr(archive, "pack", full)
    with pytest.raises(OSError, match="no space left"):
        graph.export(file, IMAGE, LABEL)
    assert file.read_bytes() == path.read_bytes()
    assert [*tmp_path.iterdir()] == [file]


# --- options --------------------------------------------------------------------------


def layers():
    return nnx.Sequential(
        linear(4, 4), nnx.BatchNorm(4, rngs=nnx.Rngs(0)), linear(4, 1)
    )


def sgd(*groups):
    return glr.optim.SGD([*groups, {"params": ...}], lr=0.1, momentum=0.9)


OPTIONS = {
    "averages, skips, bfloat16, two optimizers": lambda: Train(
        layers(),
        glr.optim.SGD("**.layers.0.**", lr=0.1),
        glr.optim.Adam(re.compile(r"layers\.[12]"), lr=0.1),
        ema_decay=0.9,
        skip_nonfinite=True,
        amp="bfloat16",
    ),
    "float16, recomputed, frozen": lambda: Train(
        layers(),
        sgd({"params": "**.bias", "frozen": True}),
        scaler=glr.GradScaler(),
        amp="float16",
        remat="model.layers.0",
    ),
    "not donated, statistics, steps for each": lambda: Train(
        layers(),
        glr.optim.ASGD("**", lr=0.1),
        donate=False,
        group_stats=True,
        clip_grad_norm=0.5,
    ),
}


def check_steps(graph, path, calls=3):
    """The steps of a graph and of what is exported of it are the same."""
    graph.export(path, IMAGE)
    exported = load(path)
    for _ in range(calls):
        check_equal(exported(IMAGE), graph(IMAGE))
    check_equal(exported.state_dict(), graph.state_dict())


@pytest.mark.parametrize("make", OPTIONS.values(), ids=OPTIONS)
def test_options_and_optimizers_are_part_of_the_step(make, tmp_path):
    check_steps(make(), tmp_path / "step.zip")


def test_a_skipped_batch_changes_nothing_there_either(tmp_path):
    graph = Train(layers(), sgd(), skip_nonfinite=True)
    graph.export(tmp_path / "step.zip", IMAGE)
    exported = load(tmp_path / "step.zip")
    exported(IMAGE)
    before = exported.state_dict()
    exported(IMAGE * np.nan)
    after = exported.state_dict()
    assert (after.pop("skipped.total"), before.pop("skipped.total")) == (1, 0)
    assert (after.pop("skipped.in_a_row"), before.pop("skipped.in_a_row")) == (1, 0)
    check_equal(after, before)


def test_wide_types(tmp_path):
    wide = IMAGE.astype(np.float64)
    with jax.enable_x64(True):
        ones = {"param_dtype": jnp.float64, "kernel_init": nnx.initializers.ones}
        graph = Evaluate(linear(4, 2, **ones))
        graph.export(tmp_path / "wide.zip", wide)
        exported = load(tmp_path / "wide.zip")
        found = exported(wide)
        assert found.dtype == np.float64
        check_equal(found, graph(wide))
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
        self.model = linear(4, 1)

    def build(self, batch, /, mode, *rest, extra=None, flag=True, **named):
        out = self.model(batch.image) * batch.scale * mode.value
        for more in (*rest, *named.values()):
            out = out + more["x"].mean()
        return Scores(out.mean(), {"none": extra, "flag": flag, "list": [out, "text"]})


def test_arguments_and_results_of_every_form(tmp_path):
    graph, path = Shapes(), tmp_path / "shapes.zip"
    args = (Batch(IMAGE, 0.5), Mode.DOUBLE, {"x": IMAGE}, {"x": IMAGE + 1})
    named = {"flag": False, "other": {"x": IMAGE}}
    graph.export(path, *args, **named)
    exported = load(path)
    found, expected = exported(*args, **named), graph(*args, **named)
    assert repr(found).startswith("Scores(mean=Array(")
    check_equal([*found], [*expected])
    assert found.rest["flag"] is False
    assert exported.manifest["arguments"] == {
        "batch.image": "float32[b,4]",
        "batch.scale": "float32[]",
        "rest[0]['x']": "float32[b,4]",
        "rest[1]['x']": "float32[b,4]",
        "other['x']": "float32[b,4]",
    }
    with pytest.raises(TypeError, match=r"flag is True, and .* is made for False"):
        exported(*args, flag=True, other={"x": IMAGE})
    with pytest.raises(TypeError, match=r"rest must have 2 entries, and it has 1"):
        exported(*args[:3], **named)


def test_what_was_left_out_may_be_left_out(tmp_path):
    graph, path = Shapes(), tmp_path / "shapes.zip"
    graph.export(path, Batch(IMAGE, 0.5), Mode.DOUBLE)
    exported = load(path)
    check_equal(
        exported(Batch(IMAGE, 0.5), Mode.DOUBLE)[0],
        graph(Batch(IMAGE, 0.5), Mode.DOUBLE)[0],
    )
    check_equal(
        exported(Batch(IMAGE, 0.5), Mode.DOUBLE, extra=None, flag=True).rest["flag"],
        True,
    )


def test_keys_are_arguments_and_results_too(tmp_path):
    graph = Computes(lambda key: jax.random.split(key)[0])
    graph.export(tmp_path / "key.zip", jax.random.key(0))
    found = load(tmp_path / "key.zip")(jax.random.key(3))
    assert found == jax.random.split(jax.random.key(3))[0]


def test_variables_that_a_forward_pass_changes(tmp_path):
    class Counting(nnx.Module):
        def __init__(self):
            self.count, self.rngs = nnx.Variable(jnp.zeros((), int)), nnx.Rngs(0)

        def __call__(self, x):
            self.count[...] += 1
            return x, jax.random.key_data(self.rngs())

    graph = Evaluate(Counting())
    check_steps(graph, tmp_path / "count.zip")
    assert graph.model.count.get_value() == 3


def test_a_model_reached_by_another_name_is_refused(tmp_path):
    model = linear(4, 1)

    class Global(Evaluate):
        def build(self, x):
            return model(x)

    with pytest.raises(ValueError, match=r"build\(\) uses .*model\.kernel.* constant"):
        Global(model).export(tmp_path / "x.zip", IMAGE)


# --- the worked model -----------------------------------------------------------------


@pytest.mark.slow
def test_mobilenet_v2(tmp_path):
    model = glr.models.mobilenet_v2(num_classes=10, rngs=nnx.Rngs(0))
    groups = [
        {"params": model.features, "name": "features", "lr_scale": 0.9},
        {"params": model.classifier, "name": "classifier"},
    ]
    train = Learn(model, glr.optim.SGD(groups, lr=0.01, momentum=0.9))
    path, image = tmp_path / "mobilenet.zip", DRAW.normal(size=(4, 32, 32, 3))
    batch = image.astype(np.float32), np.arange(4)
    train(*batch)
    train.export(path, symbolic=True)
    exported = load(path)
    for _ in range(2):
        check_equal(exported(*batch), train(*batch))
    check_equal(exported.state_dict(), train.state_dict())
