"""`--against FOLDER`: an earlier checkout is run as one more system."""

from pathlib import Path

import pytest

from benchmarks import __main__ as command
from benchmarks import timing
from benchmarks.peers import Variant, against, before_and_after, sample

OURS = Variant("graphlr, tiny", size=52)
# Stands for the worker of an earlier commit, which takes half a second for a step.
WORKER = """
import json, sys
print(json.dumps({"first_s": 0.5}), flush=True)
for line in sys.stdin: print(json.dumps([0.5] * int(line)), flush=True)
"""


@pytest.fixture
def earlier(tmp_path: Path) -> Path:
    """A checkout whose benchmarks are those of another commit."""
    folder = tmp_path / "v1"
    (folder / "benchmarks").mkdir(parents=True)
    (folder / "benchmarks" / "__init__.py").touch()
    (folder / "benchmarks" / "worker.py").write_text(WORKER)
    return folder


def test_help_says_which_benchmarks_take_it(capsys):
    with pytest.raises(SystemExit, match="0"):
        command.main(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "--against FOLDER of step and dispatch: a checkout" in text


def test_a_folder_without_benchmarks_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        command.parse(["dispatch", "--against", str(tmp_path)])
    assert f"git worktree add {tmp_path} COMMIT" in capsys.readouterr().err


def test_results_stay_out_of_the_tree(earlier, tmp_path):
    options = command.parse(["dispatch", "--against", str(earlier)])
    assert options.against == str(earlier)
    assert not options.results.is_relative_to(timing.HERE)
    arguments = ["--against", str(earlier), "--results", str(tmp_path)]
    assert command.parse(arguments).results == tmp_path


def test_a_relative_folder_is_found_from_anywhere(earlier, monkeypatch):
    monkeypatch.chdir(earlier.parent)
    assert command.parse(["--against", "v1"]).against == str(earlier)


def test_the_same_system_is_run_from_there(earlier):
    assert against(OURS, None) == []
    (old,) = against(OURS, str(earlier))
    assert (old.system, old.size) == (OURS.system, OURS.size)
    assert old.name == "graphlr, tiny (plain) of v1"
    skipped: dict[str, str] = {}
    taken = sample([old], command.parse([]), skipped, 2, 3)
    assert taken == {old: [0.5] * 6}
    assert not skipped


def test_medians_are_compared(earlier):
    (old,) = against(OURS, str(earlier))
    taken = {OURS: [0.2, 0.3, 9.0], old: [0.2, 0.25, 0.2], Variant("other"): [1.0]}
    (line,) = before_and_after("call", taken)
    assert line["value"] == pytest.approx(1.5)
    assert line["what"] == "call, graphlr, tiny (plain), vs v1"
    assert before_and_after("call", {OURS: [0.2]}) == []
    assert before_and_after("call", {old: [0.2]}) == []  # ours was skipped
