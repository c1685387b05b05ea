"""The benchmarks' own arithmetic, their command line and the results in the tree."""

import argparse
import json
import sys
from pathlib import Path

import pytest

from benchmarks import __main__ as command
from benchmarks import dispatch, peers, roofline, startup, step, timing
from benchmarks.peers import Variant
from benchmarks.systems import SYSTEMS

RESULTS = sorted(timing.RESULTS.glob("*.json"))
CHILD = """
import json, sys
print(json.dumps({"first_s": 0.5}), flush=True)
for line in sys.stdin: print(json.dumps([0.25] * int(line)), flush=True)
"""


def child(code: str) -> timing.Worker:
    """A worker that runs `code`."""
    return timing.Worker([sys.executable, "-c", code])


def options(**given: object) -> argparse.Namespace:
    """What the command line gives, and what is given here."""
    return argparse.Namespace(**{**vars(command.parse([])), **given})


def test_help_names_every_benchmark_and_option(capsys):
    with pytest.raises(SystemExit, match="0"):
        command.main(["--help"])
    text = capsys.readouterr().out
    for name in command.NAMES:
        assert f"  {name} " in text
        assert command.summary_of(name).rstrip(".") in text
    for option in ("--quick", "--results", "--oneflow", "--tcmalloc", "--platform"):
        assert option in text


def test_every_benchmark_is_there():
    for name in command.NAMES:
        assert command.summary_of(name).endswith(".")


def test_all_but_gpu_by_default():
    assert command.parse([]).names == [n for n in command.NAMES if n != "gpu"]
    assert command.parse(["gpu", "step"]).names == ["gpu", "step"]


def test_an_unknown_name_is_refused(capsys):
    with pytest.raises(SystemExit, match="2"):
        command.parse(["stap"])
    assert "'stap'" in capsys.readouterr().err


def test_quick_results_stay_out_of_the_tree(tmp_path):
    assert command.parse([]).results == timing.RESULTS
    quick = command.parse(["--quick"]).results
    assert not quick.is_relative_to(timing.HERE)
    given = command.parse(["--quick", "--results", str(tmp_path)])
    assert given.results == tmp_path


def test_summary_of_samples():
    # 1 … 11 ms: the deciles of eleven points are the points next to the ends.
    found = timing.summarise([i / 1000 for i in range(11, 0, -1)])
    expected = {"median_ms": 6, "min_ms": 1, "p10_ms": 2, "p90_ms": 10}
    assert found == pytest.approx(expected)
    assert set(timing.summarise([0.5]).values()) == {500}


def test_rows_have_ratios_to_the_base():
    rows = timing.rows_of({"ours": [0.002], "theirs": [0.004, 0.006]}, "ours")
    assert [row["name"] for row in rows] == ["ours", "theirs"]
    assert [row["ratio"] for row in rows] == pytest.approx([1, 2.5])


def test_slope():
    assert timing.slope([1, 2, 4], [5, 7, 11]) == pytest.approx((2, 3))


def test_rounded_to_four_digits():
    value = {"a": [1.23456, 123456.0, 7], "b": {"c": 0.000123456}, "d": "x"}
    expected = {"a": [1.235, 123500.0, 7], "b": {"c": 0.0001235}, "d": "x"}
    assert timing.rounded(value) == expected


def test_text_of_a_result():
    text = timing.text_of(
        {
            "machine": {"processor": "P", "cores": 2, "versions": {"jax": "1"}},
            "tables": [
                {
                    "title": "T",
                    "unit": "ms",
                    "rows": timing.rows_of({"a": [0.001], "b": [0.002]}, "a"),
                }
            ],
            "ratios": [
                timing.ratio("low", 0.5, 1.0),
                timing.ratio("high", 0.5, 1.0, "higher"),
            ],
            "skipped": {"c": "it is not here"},
        }
    )
    assert "P, 2 cores; jax 1" in text
    assert text.count("MISSED") == 1
    assert "≤ 1  met" in text
    assert "skipped c: it is not here" in text


def test_a_worker_answers():
    worker = child(CHILD)
    try:
        assert worker.ready == {"first_s": 0.5}
        assert worker.run(2) == [0.25, 0.25]
        # The first of each turn is not counted.
        taken = timing.take_turns({"a": worker}, rounds=2, each=3)
        assert taken == {"a": [0.25] * 6}
    finally:
        worker.close()


def test_a_worker_says_why_it_is_skipped():
    code = 'print(\'{"skipped": "no such thing"}\')'
    with pytest.raises(timing.UnavailableError, match="no such thing"):
        child(code)


def test_a_worker_that_dies_is_skipped():
    with pytest.raises(timing.UnavailableError, match="status 3"):
        child("raise SystemExit(3)")


def test_peers_that_are_missing_are_skipped_by_name():
    skipped: dict[str, str] = {}
    wanted = [Variant(peers.ONEFLOW), Variant("graphlr", "tcmalloc")]
    missing = options(oneflow=None, tcmalloc=None)
    assert peers.sample(wanted, missing, skipped, rounds=1, each=1) == {}
    assert skipped == {
        "OneFlow nn.Graph (plain)": "--oneflow PYTHON was not given",
        "graphlr (tcmalloc)": "no tcmalloc found: --tcmalloc LIBRARY",
    }


def test_rows_without_their_base_start_from_the_first():
    rows = peers.rows({Variant("a", "plain"): [0.002]}, Variant("b"))
    (row,) = rows
    assert (row["name"], row["system"], row["ratio"]) == ("a (plain)", "a", 1)


def test_only_known_systems_are_asked_for():
    variants = [*step.OURS.values(), *step.PEERS, *step.QUICK]
    variants += [v for _, ours, others, _ in step.TARGETS for v in (ours, *others)]
    starts = startup.ways(Path(), quick=False).values()
    asked = {variant.system for variant in variants} | {way.system for way in starts}
    assert asked <= {*SYSTEMS, peers.ONEFLOW}
    assert {variant.allocator for variant in variants} <= set(peers.ALLOCATORS)
    assert {peer for _, peer, _, _ in dispatch.TARGETS} <= set(dispatch.DISPATCH)
    measured = {*step.OURS.values(), *step.PEERS}
    assert all({ours, *others} <= measured for _, ours, others, _ in step.TARGETS)


def test_ratios_take_the_fastest_peer_and_leave_out_the_missing():
    ours = step.OURS["tcmalloc"]
    eager, compiled = (Variant(s, "tcmalloc") for s in (step.EAGER, step.COMPILED))
    (line,) = step.ratios({ours: 3.0, eager: 6.0, compiled: 4.0})
    assert (line["value"], line["target"]) == (0.75, 0.70)
    assert step.ratios({ours: 3.0, eager: 6.0}) == []


def test_bound():
    # 36.7 MFLOP · 64 = 2348.8 MFLOP; 5.5 MB · 64 + 45 MB = 397 MB.
    assert roofline.bound_ms(64, gflops=100, gbytes=1000) == pytest.approx(23.488)
    assert roofline.bound_ms(64, gflops=1000, gbytes=10) == pytest.approx(39.7)


def test_calls_grow_with_the_arrays():
    medians = {a: {"graphlr": 3.0 * a, "flat jax.jit": 2.0 * a} for a in (160, 500)}
    found = dispatch.series(medians)
    assert found["x"] == [160, 500]
    assert found["slopes"] == pytest.approx({"graphlr": 3, "flat jax.jit": 2})
    (line,) = dispatch.ratios(medians)
    assert (line["value"], line["target"]) == (1.5, 1.10)


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_committed_results_are_whole(path):
    result = json.loads(path.read_text())
    assert result["command"].startswith("python -m benchmarks")
    assert result["machine"]["device"]
    assert result["machine"]["versions"]["jax"]
    for table in result.get("tables", []):
        assert table["title"]
        assert table["unit"] == "ms"
        for row in table["rows"]:
            assert row["min_ms"] <= row["median_ms"]
            assert row["p10_ms"] <= row["median_ms"] <= row["p90_ms"]
            assert row["ratio"] > 0
    for series in result.get("series", []):
        assert all(len(line) == len(series["x"]) for line in series["lines"].values())
    for ratio in result.get("ratios", []):
        assert set(ratio) == {"what", "value", "target", "better"}
        assert ratio["better"] in ("lower", "higher")
