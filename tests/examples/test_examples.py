"""The examples, shortened, as a user would run them."""

import importlib.util
import sys
import urllib.error

import jax
import pytest
from flax import nnx

import graphlr as glr
from tests import ROOT

EXAMPLES = ROOT / "examples"


def load(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def test_mobilenetv2_help(capsys):
    with pytest.raises(SystemExit) as stop:
        load("mobilenetv2").main(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for option in (
        *("--data", "--data-dir", "--epochs", "--batch-size", "--optimizer", "--lr"),
        *("--features-lr-scale", "--classifier-lr-scale", "--schedule", "--seed"),
        *("--out", "--amp", "--group-stats", "--compile-cache"),
    ):
        assert option in text


@pytest.mark.parametrize(
    "argv", [["--epochs", "0"], ["--lr", "nan"], ["--data", "imagenet"], ["--lr", "x"]]
)
def test_mobilenetv2_refuses_bad_arguments(argv, capsys):
    with pytest.raises(SystemExit) as stop:
        load("mobilenetv2").main(argv)
    assert stop.value.code == 2
    assert argv[0] in capsys.readouterr().err


def test_mobilenetv2_without_network_says_what_to_download(tmp_path, monkeypatch):
    def offline(*_args, **_keys):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr("urllib.request.urlopen", offline)
    with pytest.raises(SystemExit, match=r"cifar10: .*by hand and put it at"):
        load("mobilenetv2").main(["--data", "cifar10", "--data-dir", str(tmp_path)])


class Small(nnx.Module):
    """In MobileNetV2's place: compiled in a second, with parts of the same names."""

    def __init__(self, classes, *, rngs):
        self.features = nnx.Linear(3, 4, rngs=rngs)
        self.classifier = nnx.Linear(4, classes, rngs=rngs)

    def __call__(self, x):
        return self.classifier(nnx.relu(self.features(x)).mean((1, 2)))


def test_mobilenetv2_trains_prints_and_draws(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(glr.models, "mobilenet_v2", Small)
    out = tmp_path / "pictures"
    accuracy = load("mobilenetv2").main(
        [
            "--epochs",
            "1",
            "--batch-size",
            "719",  # half of the training images: no smaller batch to compile for
            "--optimizer",
            "adam",
            "--schedule",
            "step",
            "--group-stats",
            "--compile-cache",
            "off",
            "--out",
            str(out),
        ]
    )
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == f"test accuracy {100 * accuracy:.1f} %"
    assert 0 <= accuracy <= 1
    assert lines[0].startswith("device: ")
    text = "\n".join(lines)
    for part in (
        *("features", "classifier", "lr_scale", "compiled in", "images/s"),
        "update_ratio",
    ):
        assert part in text
    assert (out / "loss_and_lr.png").read_bytes().startswith(b"\x89PNG")


def test_mobilenetv2_is_what_is_trained_and_tested():
    example = load("mobilenetv2")
    args = example.parse_args(["--optimizer", "adam"])
    model = glr.models.mobilenet_v2(10, rngs=nnx.Rngs(0))
    optimizer = example.make_optimizer(args, model)
    schedule = example.SCHEDULES[args.schedule](100)
    train = example.TrainGraph(model, optimizer, schedule, group_stats=True)
    batch = jax.ShapeDtypeStruct((8, 32, 32, 3), "f4"), jax.ShapeDtypeStruct((8,), "i4")
    for graph in (train, example.EvalGraph(model)):
        assert "tensor<8x32x32x3xf32>" in graph.lower(*batch).as_text()
    assert train.lr == pytest.approx({"features": 9e-4, "classifier": 7e-4})


@pytest.mark.slow
def test_mobilenetv2_default_run_reaches_97_percent(tmp_path):
    cache = str(tmp_path / "cache")
    argv = ["--out", str(tmp_path), "--compile-cache", cache]
    assert load("mobilenetv2").main(argv) >= 0.97
    glr.runtime.compile_cache(None)


@pytest.mark.slow
def test_the_tutorial_in_both_modes(capsys):
    rates = load("oneflow_tutorial").main(["--compile-cache", "off"])
    assert rates["eager"] == pytest.approx(
        {"features": 1e-3 * 0.9**2, "classifier": 1e-5 * 0.7**2}
    )
    assert rates["graph"] == pytest.approx({"features": 9e-4, "classifier": 7e-4})
    assert "loss:" in capsys.readouterr().out
