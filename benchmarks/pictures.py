"""Pictures of results as SVG, for light and dark pages, the same bytes each time."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

STYLE = {
    "axes.edgecolor": "0.5",
    "axes.labelcolor": "0.5",
    "axes.labelsize": 7,
    "font.sans-serif": ["DejaVu Sans", "sans-serif"],
    "font.size": 7,
    "legend.fontsize": 6,
    "legend.frameon": False,
    "legend.labelcolor": "0.5",
    "savefig.transparent": True,
    "svg.fonttype": "none",
    "svg.hashsalt": "graphlr",
    "text.color": "0.5",
    "xtick.color": "0.5",
    "ytick.color": "0.5",
}
WIDE = (
    20  # from this quotient of the largest to the smallest on, an axis is logarithmic
)


class Picture(NamedTuple):
    """What is drawn.

    Attributes:
        file: Its name.
        kind: `bars` of a table or `lines` of a series.
        data: The table or the series.
    """

    file: str
    kind: str
    data: Mapping[str, Any]

    @property
    def digest(self) -> str:
        """Of the data; the file holds it, so that a stale picture is found."""
        text = json.dumps([self.kind, self.data], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def link(self) -> str:
        """Markdown that shows it, from the folder `docs`."""
        return f"![{self.data['title']}](benchmarks/{self.file})"


def slug(title: str) -> str:
    """A title as part of a file's name."""
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")


def bars_of(name: str, table: Mapping[str, Any]) -> Picture:
    """The ratios of a table."""
    return Picture(f"{name}-{slug(table['title'])}.svg", "bars", table)


def lines_of(name: str, series: Mapping[str, Any]) -> Picture:
    """A series."""
    return Picture(f"{name}-{slug(series['title'])}.svg", "lines", series)


def is_wide(values: Sequence[float]) -> bool:
    """Whether the values need a logarithmic axis."""
    return min(values) > 0 and max(values) / min(values) >= WIDE


def draw_bars(axes: Any, table: Mapping[str, Any]) -> None:
    """One bar for each row: its ratio, written beside it."""
    rows = list(reversed(table["rows"]))
    ratios = [row["ratio"] for row in rows]
    bars = axes.barh([row["name"] for row in rows], ratios, color="C0")
    axes.bar_label(bars, [f"{ratio:.2f}" for ratio in ratios], padding=2, size=6)
    if is_wide(ratios):
        axes.set_xscale("log")
    axes.margins(x=0.12)
    (base, *_) = (row["name"] for row in table["rows"] if row["ratio"] == 1)
    axes.set(xlabel=f"median, times {base}")


def draw_lines(axes: Any, series: Mapping[str, Any]) -> None:
    """One line for each system."""
    x, lines = series["x"], series["lines"]
    for name, y in lines.items():
        axes.plot(x, y, marker="o", ms=3, lw=1.2, label=name)
    if is_wide(x):
        axes.set_xscale("log")
        axes.set_xticks(x, [f"{value:g}" for value in x])
        axes.minorticks_off()
    if is_wide([value for y in lines.values() for value in y]):
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=min(0, *(min(y) for y in lines.values())))
    axes.set(xlabel=series["x_label"], ylabel=series["y_label"])
    axes.grid(alpha=0.3, lw=0.5)
    if len(lines) > 1:
        axes.legend()


def draw(picture: Picture, folder: Path) -> None:
    """Write one picture."""
    import matplotlib.style
    from matplotlib.figure import Figure

    with matplotlib.style.context(["default", STYLE]):
        bars = picture.kind == "bars"
        height = 0.6 + 0.2 * len(picture.data["rows"]) if bars else 2.6
        figure = Figure(figsize=(5.2, height), layout="constrained")
        axes = figure.subplots()
        (draw_bars if bars else draw_lines)(axes, picture.data)
        axes.spines[["top", "right"]].set_visible(False)
        nothing = {"Date": None, "Creator": None, "Description": picture.digest}
        figure.savefig(folder / picture.file, metadata=nothing)


def is_current(picture: Picture, folder: Path) -> bool:
    """Whether the file is there and shows this data."""
    path = folder / picture.file
    return path.exists() and picture.digest in path.read_text()
