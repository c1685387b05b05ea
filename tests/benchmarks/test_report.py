"""README and docs show what benchmarks/results holds; gpu says that it needs one."""

import importlib
import json
import sys

import pytest

from tests import ROOT

MACHINE = {
    "device": "cpu",
    "processor": "a processor",
    "cores": 2,
    "python": "3.11.0",
    "versions": {"jax": "0.10.2"},
}
ROW = {"min_ms": 1.0, "p10_ms": 1.0, "p90_ms": 2000.0}
RESULT = {
    "command": "python -m benchmarks step",
    "machine": MACHINE,
    "tables": [
        {
            "title": "a step",
            "unit": "ms",
            "rows": [
                {"name": "ours", **ROW, "median_ms": 1234.5, "ratio": 1.0},
                {"name": "theirs", **ROW, "median_ms": 2.5, "ratio": 0.002025},
            ],
        }
    ],
    "series": [
        {
            "title": "by groups",
            "x_label": "groups",
            "y_label": "ms",
            "x": [1, 300],
            "lines": {"ours": [1.0, 1.5]},
            "slopes": {"ours": 0.001672},
            "slope_unit": "ms per group",
        }
    ],
    "ratios": [
        {"what": "good", "value": 0.5, "target": 1, "better": "lower"},
        {"what": "bad", "value": 1.053, "target": 1.05, "better": "lower"},
        {"what": "more", "value": 0.4, "target": 0.4, "better": "higher"},
    ],
    "figures": {"a figure": 3.25},
    "skipped": {"another": "not installed"},
}


@pytest.fixture(scope="module")
def report():
    sys.path.insert(0, str(ROOT))
    yield importlib.import_module("benchmarks.report")
    sys.path.remove(str(ROOT))


@pytest.fixture
def repository(tmp_path):
    """A folder with one result and a README with marks."""
    results = tmp_path / "benchmarks" / "results"
    results.mkdir(parents=True)
    (results / "step.json").write_text(json.dumps(RESULT))
    (results / "options.json").write_text('{"device": "of another form"}')
    text = "before\n<!-- benchmarks -->\nold\n<!-- /benchmarks -->\nafter\n"
    (tmp_path / "README.md").write_text(text)
    return tmp_path


def test_what_is_committed_is_what_the_results_say(report):
    assert report.main(["--check"]) == 0, "run python -m benchmarks.report"


def test_targets_are_met_or_missed(report):
    rows = report.targets({"step": RESULT})[2:-1]
    assert rows == [
        "| good | 0.5 | ≤ 1 | met | `step` |",
        "| bad | 1.053 | ≤ 1.05 | **missed** | `step` |",
        "| more | 0.4 | ≥ 0.4 | met | `step` |",
    ]


def test_readme_has_the_steps_and_names_what_is_missing(report, repository):
    assert report.main(["--root", str(repository)]) == 0
    text = (repository / "README.md").read_text()
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "old" not in text
    assert "| ours | – | 1,234 | 1.00 |" in text
    assert "* options: not measured: `python -m benchmarks options`" in text
    assert "* step: a processor, 2 cores; Python 3.11.0, jax 0.10.2" in text


def test_docs_have_everything(report, repository):
    report.main(["--root", str(repository)])
    text = (repository / "docs" / "benchmarks.md").read_text()
    assert "| theirs | 2.5 | 1 | 1–2,000 | 0.00202 |" in text
    assert "| ours | 1 | 1.5 | 0.00167 |" in text
    assert "| a figure | 3.25 |" in text
    assert "* skipped another: not installed" in text
    drawn = sorted(path.name for path in repository.rglob("*.svg"))
    assert drawn == ["step-a-step.svg", "step-by-groups.svg"]
    assert all(f"(benchmarks/{name})" in text for name in drawn)


def test_check_finds_every_change(report, repository):
    arguments = ["--check", "--root", str(repository)]
    assert report.main(arguments) == 1
    report.main(arguments[1:])
    assert report.main(arguments) == 0
    readme = repository / "README.md"
    written = readme.read_text()
    readme.write_text(written.replace("1,234", "1,000"))
    assert report.main(arguments) == 1
    readme.write_text(written)
    path = repository / "benchmarks" / "results" / "step.json"
    path.write_text(json.dumps({**RESULT, "series": []}))
    assert report.main(arguments) == 1
    report.main(arguments[1:])
    assert len([*repository.rglob("*.svg")]) == 1


def test_pictures_are_the_same_each_time(report, tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        for picture in report.pictures({"step": RESULT}):
            report.draw(picture, tmp_path / folder)
    first, second = (
        {path.name: path.read_bytes() for path in (tmp_path / folder).iterdir()}
        for folder in ("a", "b")
    )
    assert len(first) == 2
    assert first == second


def test_nothing_measured_is_said(report):
    block = report.readme_block({})
    assert block.count("not measured") == len(report.NAMES)
    with pytest.raises(ValueError, match="needs the marks"):
        report.between_marks("no marks", block)


def test_gpu_needs_one(report, monkeypatch, tmp_path, capsys):
    gpu = importlib.import_module("benchmarks.gpu")
    main = importlib.import_module("benchmarks.__main__").main
    monkeypatch.setattr(gpu, "has_gpu", lambda: False)
    monkeypatch.setenv("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    with pytest.raises(SystemExit) as stop:
        main(["gpu", "--results", str(tmp_path)])
    assert stop.value.code == 2
    assert "needs a CUDA GPU" in capsys.readouterr().err
    assert not [*tmp_path.iterdir()]


def test_roofline_of_a_gpu(report):
    gpu = importlib.import_module("benchmarks.gpu")
    point = gpu.Point("graphlr", "gpu", "float32", 32, 64)
    assert gpu.roofline_ms(point, 40) == pytest.approx((5.5 * 64 + 45) / 40)
    large = point._replace(precision="bfloat16", size=224, batch=1024)
    assert 31 < gpu.roofline_ms(large, 4300) < 33
    lines = gpu.targets(large, {"graphlr": 50.0, "torch.compile": 60.0}, 4300)
    assert [round(line["value"], 2) for line in lines] == [1.2, 0.64]
