"""Writes what was measured into README.md and docs: tables and pictures.

    python -m benchmarks.report            # after python -m benchmarks
    python -m benchmarks.report --check    # status 1 if anything would change

Everything is read from `benchmarks/results`; no figure is typed by hand. What has not
been measured is named, with the command that measures it.
"""

import argparse
import ast
import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import timing
from benchmarks.__main__ import HERE, NAMES, summary_of
from benchmarks.pictures import Picture, bars_of, draw, is_current, lines_of

ROOT = HERE.parent
START, END = "<!-- benchmarks -->", "<!-- /benchmarks -->"
COMMAND = "python -m benchmarks"
GROUPS = "update of MobileNetV2 by groups"  # what README shows of it

Results = Mapping[str, Mapping[str, Any]]  # by the name of the benchmark


def read(folder: Path) -> dict[str, dict[str, Any]]:
    """The results that are there, in the order of the benchmarks.

    Files of another form, without `command` and `machine`, count as not measured.
    """
    found = {}
    for name in NAMES:
        path = folder / f"{name}.json"
        result = json.loads(path.read_text()) if path.exists() else {}
        if {"command", "machine"} <= result.keys():
            found[name] = result
    return found


# --- pieces of Markdown ---------------------------------------------------------------


def number(value: float) -> str:
    """Three digits, or all before the point."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def joined(lines: Iterable[str]) -> str:
    """Text of lines, never two empty ones."""
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines))


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A table."""
    lines = [header, ["---"] * len(header), *rows]
    return [f"| {' | '.join(cells)} |" for cells in lines]


def machine_line(machine: Mapping[str, Any]) -> str:
    """What it ran on, in one line."""
    versions = ", ".join(f"{name} {v}" for name, v in machine["versions"].items())
    where = f"{machine['processor']}, {machine['cores']} cores"
    if machine["device"] != "cpu":
        where = f"{machine['device']}; {where}"
    return f"{where}; Python {machine['python']}, {versions}"


def machines(results: Results) -> list[str]:
    """Each machine, with what was measured on it."""
    found: dict[str, list[str]] = {}
    for name, result in results.items():
        found.setdefault(machine_line(result["machine"]), []).append(name)
    return [f"* {', '.join(names)}: {machine}" for machine, names in found.items()]


def missing(results: Results) -> list[str]:
    """What has not been measured."""
    return [
        f"* {name}: not measured: `{COMMAND} {name}`"
        for name in NAMES
        if name not in results
    ]


def targets(results: Results) -> list[str]:
    """The table of targets, or nothing."""
    rows = [
        [
            line["what"],
            f"{line['value']:.4g}",
            f"{'≤' if line['better'] == 'lower' else '≥'} {line['target']:g}",
            "met" if timing.met(line) else "**missed**",
            f"`{name}`",
        ]
        for name, result in results.items()
        for line in result.get("ratios", [])
    ]
    header = ["what", "measured", "target", "", f"`{COMMAND}` …"]
    return [*markdown(header, rows), ""] if rows else []


def steps(results: Results) -> list[str]:
    """The table of the training step, or nothing."""
    tables = results.get("step", {}).get("tables", [])
    if not tables:
        return []
    rows = [
        [
            row.get("system", row["name"]),
            row.get("allocator", "–"),
            number(row["median_ms"]),
            f"{row['ratio']:.2f}",
        ]
        for row in tables[0]["rows"]
    ]
    (base, *_) = (row["name"] for row in tables[0]["rows"] if row["ratio"] == 1)
    header = [tables[0]["title"], "allocator", "median, ms", f"times {base}"]
    return [*markdown(header, rows), ""]


def timed(table: Mapping[str, Any]) -> list[str]:
    """A table of durations."""
    rows = [
        [
            row["name"],
            number(row["median_ms"]),
            number(row["min_ms"]),
            f"{number(row['p10_ms'])}–{number(row['p90_ms'])}",
            f"{row['ratio']:.3g}",
        ]
        for row in table["rows"]
    ]
    unit = table["unit"]
    header = [table["title"], f"median, {unit}", "min", "p10–p90", "ratio"]
    return [*markdown(header, rows), ""]


def plotted(series: Mapping[str, Any]) -> list[str]:
    """The numbers of a series, and what its lines grow by."""
    slopes = series.get("slopes", {})
    header = [
        f"{series['y_label']}, by {series['x_label']}",
        *(f"{x:g}" for x in series["x"]),
        *([f"slope, {series['slope_unit']}"] if slopes else []),
    ]
    rows = [
        [name, *map(number, y), *([f"{slopes[name]:.3g}"] if slopes else [])]
        for name, y in series["lines"].items()
    ]
    return [*markdown(header, rows), ""]


# --- pages ----------------------------------------------------------------------------


def pictures(results: Results) -> list[Picture]:
    """Bars of the training step, and every series."""
    tables = results.get("step", {}).get("tables", [])
    return [bars_of("step", table) for table in tables[:1]] + [
        lines_of(name, series)
        for name, result in results.items()
        for series in result.get("series", [])
    ]


def shown(results: Results) -> list[str]:
    """The pictures that README has: bars of the step, cost by batch and by groups."""
    return [
        f"![{picture.data['title']}](docs/benchmarks/{picture.file})"
        for picture in pictures(results)
        if picture.file.startswith("step-") or picture.data["title"] == GROUPS
    ]


def readme_block(results: Results) -> str:
    """What stands between the marks in README.md."""
    lines = [
        START,
        "No figure is typed by hand: `python -m benchmarks.report` takes them from",
        "[`benchmarks/results`](benchmarks/results). All tables and pictures:",
        "[docs/benchmarks.md](docs/benchmarks.md).",
        "",
        *targets(results),
        *steps(results),
        *shown(results),
        "",
        *machines(results),
        "",
        *missing(results),
    ]
    return joined([*lines, END])


def docstring(name: str) -> str:
    """What a benchmark says about itself, after its first line."""
    path = HERE / f"{name}.py"
    text = ast.get_docstring(ast.parse(path.read_text())) if path.exists() else ""
    return (text or "").partition("\n")[2].strip()


def chapter(name: str, result: Mapping[str, Any]) -> list[str]:
    """Everything of one benchmark."""
    lines = ["", f"`{result['command']}` on {machine_line(result['machine'])}.", ""]
    lines += targets({name: result})
    for table in result.get("tables", []):
        lines += timed(table)
        if name == "step" and table is result["tables"][0]:
            lines += [bars_of(name, table).link, ""]
    for series in result.get("series", []):
        lines += [f"### {series['title']}", "", *plotted(series)]
        lines += [lines_of(name, series).link, ""]
    figures = result.get("figures", {})
    if figures:
        rows = [[what, number(value)] for what, value in figures.items()]
        lines += [*markdown(["figure", ""], rows), ""]
    for system, why in result.get("skipped", {}).items():
        lines.append(f"* skipped {system}: {why}")
    return lines


def page(results: Results) -> str:
    """The text of docs/benchmarks.md."""
    lines = [
        "# Benchmarks",
        "",
        "Written by `python -m benchmarks.report` from the files in",
        "[`benchmarks/results`](../benchmarks/results). Systems that are compared take",
        "turns in one run; only ratios inside one table mean something. A ratio is of",
        "medians, to the row whose ratio is 1. A slope is of the least-squares line.",
    ]
    for name in NAMES:
        lines += ["", f"## {name}", "", summary_of(name)]
        if docstring(name):
            lines += ["", docstring(name)]
        if name in results:
            lines += chapter(name, results[name])
        else:
            lines += ["", f"Not measured: `{COMMAND} {name}`."]
    return joined(lines).rstrip() + "\n"


def between_marks(text: str, block: str) -> str:
    """`text` with `block` in place of the marks and what they enclose.

    Raises:
        ValueError: The marks are missing.
    """
    before, start, rest = text.partition(START)
    _, end, after = rest.partition(END)
    if not (start and end):
        raise ValueError(f"README.md needs the marks {START} and {END}")
    return before + block + after


def outdated(results: Results, root: Path, texts: Mapping[Path, str]) -> list[Path]:
    """Files that are not what `results` say."""
    folder = root / "docs" / "benchmarks"
    drawn = pictures(results)
    wrong = [p for p, text in texts.items() if not p.exists() or p.read_text() != text]
    wrong += [folder / p.file for p in drawn if not is_current(p, folder)]
    return wrong + sorted({*folder.glob("*.svg")} - {folder / p.file for p in drawn})


def write(results: Results, root: Path, texts: Mapping[Path, str]) -> None:
    """Write the pages, draw the pictures, remove those of no result."""
    folder = root / "docs" / "benchmarks"
    folder.mkdir(parents=True, exist_ok=True)
    for path, text in texts.items():
        path.write_text(text)
    drawn = pictures(results)
    for picture in drawn:
        draw(picture, folder)
    for path in {*folder.glob("*.svg")} - {folder / p.file for p in drawn}:
        path.unlink()


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the results; write or check.

    Returns:
        The exit status.
    """
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing")
    parser.add_argument("--root", type=Path, default=ROOT, help="of the repository")
    options = parser.parse_args(arguments)
    root: Path = options.root
    results = read(root / "benchmarks" / "results")
    readme = root / "README.md"
    texts = {
        readme: between_marks(readme.read_text(), readme_block(results)),
        root / "docs" / "benchmarks.md": page(results),
    }
    wrong = outdated(results, root, texts)
    for path in wrong:
        print(path.relative_to(root), file=sys.stderr)
    if wrong and options.check:
        print("run python -m benchmarks.report", file=sys.stderr)
        return 1
    write(results, root, texts)
    return 0


if __name__ == "__main__":
    sys.exit(main())
