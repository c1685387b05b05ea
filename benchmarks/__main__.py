"""Measures graphlr beside its peers, one benchmark after another.

    python -m benchmarks                    # all of them, but gpu
    python -m benchmarks step --quick       # a smoke test of one
    python -m benchmarks dispatch --against FOLDER    # and at an earlier commit

Tables are printed and written to `benchmarks/results/<name>.json`.
"""

import argparse
import ast
import ctypes.util
import importlib
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).parent
NAMES = (
    "step",
    "dispatch",
    "groups",
    "growth",
    "startup",
    "memory",
    "optimizers",
    "options",
    "gpu",
)
TCMALLOC = "libtcmalloc_minimal.so*", "libtcmalloc.so*"


def summary_of(name: str) -> str:
    """The first line of a benchmark's docstring, without importing it."""
    path = HERE / f"{name}.py"
    if not path.exists():
        return "(missing)"
    docstring = ast.get_docstring(ast.parse(path.read_text())) or ""
    return docstring.partition("\n")[0]


def find_tcmalloc() -> str | None:
    """Where the dynamic linker, or a usual folder, has tcmalloc."""
    found = ctypes.util.find_library("tcmalloc_minimal")
    places = [Path("/usr/lib"), Path("/usr/local/lib"), *Path("/usr/lib").glob("*-*")]
    files = [
        str(path)
        for folder in places
        for pattern in TCMALLOC
        for path in folder.glob(pattern)
    ]
    return found or next(iter(files), None)


def benchmark(name: str) -> str:
    """`name`, if there is such a benchmark."""
    if name not in NAMES:
        raise argparse.ArgumentTypeError(f"no {name!r}, but {', '.join(NAMES)}")
    return name


def checkout(folder: str) -> str:
    """`folder` as an absolute path, if benchmarks can be run from there."""
    path = Path(folder).resolve()
    if not (path / "benchmarks" / "worker.py").is_file():
        raise argparse.ArgumentTypeError(
            f"{folder} is no checkout with benchmarks: git worktree add {folder} COMMIT"
        )
    return str(path)


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    listing = "\n".join(f"  {name:12}{summary_of(name)}" for name in NAMES)
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=f"{__doc__}\nbenchmarks:\n{listing}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "names",
        nargs="*",
        type=benchmark,
        metavar="name",
        help="what to measure (default: all but gpu, which needs one)",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="a smoke test: few rounds, small sizes, results to a temporary folder",
    )
    parser.add_argument(
        "--results",
        type=Path,
        metavar="FOLDER",
        help="where the JSON files go (default: benchmarks/results)",
    )
    parser.add_argument(
        "--oneflow", metavar="PYTHON", help="a Python that has OneFlow and flowvision"
    )
    parser.add_argument(
        "--tcmalloc",
        metavar="LIBRARY",
        default=find_tcmalloc(),
        help="tcmalloc to preload (default: %(default)s)",
    )
    parser.add_argument(
        "--against",
        type=checkout,
        metavar="FOLDER",
        help="of step and dispatch: a checkout of an earlier commit, whose graphlr is "
        "run as one more system; results go to a temporary folder",
    )
    parser.add_argument(
        "--platform",
        default="gpu",
        help="of gpu: where to run; cpu tries its code without one (default: gpu)",
    )
    parser.add_argument(
        "--profile", type=Path, metavar="FOLDER", help="of gpu: a trace by jax.profiler"
    )
    return parser


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options, with names and a folder for the results."""
    options = make_parser().parse_args(arguments)
    options.names = options.names or [name for name in NAMES if name != "gpu"]
    if options.results is None:
        aside = Path(tempfile.gettempdir()) / "graphlr-benchmarks"
        passing = options.quick or options.against
        options.results = aside if passing else HERE / "results"
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what was asked for."""
    options = parse(arguments)
    for name in options.names:
        print(f"\n== {name}: {summary_of(name)}", file=sys.stderr)
        importlib.import_module(f"benchmarks.{name}").measure(options)


if __name__ == "__main__":
    main()
