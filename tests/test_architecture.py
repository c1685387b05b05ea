"""The house: floors, the order of rooms on a floor, what a room may hold and cost."""

import ast
import importlib
import operator
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import graphlr
from tests import ROOT

HOUSE = Path(graphlr.__file__).parent
ROOMS = sorted(path.relative_to(HOUSE) for path in HOUSE.rglob("*.py"))

# A package imports only from those above it in this list, and a room of a package only
# from rooms before it in its own.
FLOORS: dict[str, list[str]] = {
    "messages": [],
    "keys": [],
    "runtime": [],
    "platforms": [],
    "average": [],
    "data": ["images", "digits", "cifar10"],
    "groups": ["paths", "selectors", "group", "labels"],
    "layers": ["geometry", "depthwise", "batch_norm", "conv"],
    "models": ["mobilenet_v2"],
    "modules": ["variables", "tree", "calls"],
    "optim": [
        "lr_scheduler.settings",
        "lr_scheduler.base",
        "lr_scheduler.decays",
        "lr_scheduler.cycles",
        "lr_scheduler.composed",
        "lr_scheduler.plateau",
        "lr_scheduler",
        "transforms.leaves",
        "transforms.gradients",
        "transforms.momentum",
        "transforms.moments",
        "transforms",
        "group_keys",
        "arguments",
        "traced",
        "slots",
        "adoption",
        "groups_state",
        "as_optax",
        "optimizer",
        "rules.sgd",
        "rules.adam",
        "rules.adam_variants",
        "rules.lamb",
        "rules.adaptive",
        "rules.sign",
        "rules",
    ],
    "precision": ["scalers", "casting"],
    "step": [
        "signature",
        "indices",
        "config",
        "carried",
        "types",
        "losses",
        "definition",
        "plan",
        "unused",
        "update",
        "loops",
        "step",
    ],
    "engine": [
        "compiles",
        "guards",
        "live",
        "optimizers",
        "program",
        "programs",
        "skips",
        "runner",
    ],
    "state": ["archive", "state_dict", "loading"],
    "export": [
        "structure",
        "batch_sizes",
        "numbers",
        "arguments",
        "manifest",
        "binaries",
        "onnx",
        "exported",
        "loading",
        "saving",
    ],
    "report": ["history", "tables", "progress", "plots", "summary"],
    "graph": [],
}
# Every room, from the top floor down; a package's face comes after its rooms.
ORDER = [
    room
    for floor, inside in FLOORS.items()
    for room in (*(f"{floor}.{name}" for name in inside), floor)
]
HEAVY = {"orbax", "grain", "matplotlib", "sklearn", "tensorboardX", "torch"}
HEAVY |= {"jax2onnx", "onnx", "onnxruntime", "safetensors"}
FACE = (ast.Import, ast.ImportFrom, ast.Assign, ast.AnnAssign, ast.If, ast.FunctionDef)


def name_of(path: Path) -> str:
    return ".".join(path.with_suffix("").parts).removesuffix("__init__").strip(".")


def floor_of(room: str) -> str:
    return room.partition(".")[0]


def tree_of(path: Path) -> ast.Module:
    return ast.parse((HOUSE / path).read_text())


def imports_of(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """Every import in a tree, also inside functions: the module, the name if one."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import"
            for alias in node.names:
                yield node.module or "", alias.name
        elif isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, ""


def rooms_of(path: Path) -> set[str]:
    """The rooms that a file imports."""
    known, found = {name_of(other) for other in ROOMS}, set()
    for module, name in imports_of(tree_of(path)):
        room = f"{module}.{name}".strip(".")
        if floor_of(room) == "graphlr":
            room = room.removeprefix("graphlr").strip(".")
            while room not in known:
                room = room.rpartition(".")[0]
            found.add(room)
    return found - {""}


def test_every_room_stands_in_the_table():
    assert sorted(ORDER) == sorted(name for name in map(name_of, ROOMS) if name)


@pytest.mark.parametrize("path", ROOMS, ids=str)
def test_arrows_point_up(path):
    room = name_of(path)
    if room:  # the public surface may name everything
        assert rooms_of(path) <= set(ORDER[: ORDER.index(room)])


@pytest.mark.parametrize("path", ROOMS, ids=str)
def test_nothing_is_imported_inside_a_function_but_what_is_heavy(path):
    """An import that waits for its call would hide a circle."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.FunctionDef):
            assert {floor_of(module) for module, _ in imports_of(node)} <= HEAVY


@pytest.mark.parametrize("path", ROOMS, ids=str)
def test_what_begins_with_an_underscore_stays_in_its_room(path):
    for module, name in imports_of(tree_of(path)):
        if floor_of(module) == "graphlr":
            parts = [*module.split("."), name]
            assert not any(part.startswith("_") for part in parts if part != "__init__")


@pytest.mark.parametrize("path", ROOMS, ids=str)
def test_a_face_has_no_code_of_its_own(path):
    if path.name == "__init__.py":
        _, *body = tree_of(path).body  # its docstring comes first
        assert all(isinstance(node, FACE) for node in body)
        functions = {node.name for node in body if isinstance(node, ast.FunctionDef)}
        assert functions <= {"__getattr__", "__dir__"}


@pytest.mark.parametrize("path", ROOMS, ids=str)
def test_rooms_are_small(path):
    lines = (HOUSE / path).read_text().count("\n")
    assert lines <= (70 if path.name == "__init__.py" else 420)


def test_every_room_has_its_test():
    tests = {
        path.relative_to(ROOT / "tests").with_suffix("")
        for path in (ROOT / "tests").rglob("test_*.py")
    }
    for path in ROOMS:
        if path.name == "__init__.py":
            continue
        room = path.with_name(f"test_{path.stem}").with_suffix("")
        for package in ("lr_scheduler", "transforms", "rules"):  # one family, one test
            if package in path.parts and room not in tests:
                room = Path("optim", package, f"test_{package}")
        if path.parts[0] == "models":  # `tests/models.py` has the folder's name
            room = Path(room.name)
        assert room in tests, room


def bare_any(tree: ast.AST) -> tuple[int, int]:
    """How many annotations are `Any` and nothing else, or a name for it; and of all."""
    aliases = {"Any"} | {
        target.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and is_named(node.value, {"Any"})
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            found.append(node.returns)
        elif isinstance(node, ast.arg | ast.AnnAssign):
            found.append(node.annotation)
    annotations = [annotation for annotation in found if annotation is not None]
    return sum(is_named(a, aliases) for a in annotations), len(annotations)


def is_named(node: ast.AST, names: set[str]) -> bool:
    return isinstance(node, ast.Name) and node.id in names


def test_any_is_the_exception():
    counts = [bare_any(tree_of(path)) for path in ROOMS]
    bare, every = map(sum, zip(*counts, strict=True))
    assert bare < 0.08 * every, f"{bare} of {every}"
    core = [
        bare_any(tree_of(path))
        for path in ROOMS
        if path.parts[0] in ("step", "engine", "optim", "state")
    ]
    bare, every = map(sum, zip(*core, strict=True))
    assert bare < 0.08 * every, f"{bare} of {every} in step, engine, optim and state"


def test_no_checker_is_told_to_look_away():
    for path in ROOMS:
        text = (HOUSE / path).read_text()
        for words in ("type: ignore", "noqa", "pyright:", "pragma: no cover"):
            assert words not in text, f"{path}: {words}"


# --- the page that shows the house ----------------------------------------------------

PAGE = (ROOT / "CONTRIBUTING.md").read_text()


def test_the_page_lists_these_packages_and_rooms():
    packages = []
    for row in re.findall(r"^\| (`.*)\|$", PAGE, re.M):
        names, _, rooms = (re.findall(r"`(\w+)/?`", cell) for cell in row.split("|"))
        packages += names
        inside = [room.partition(".")[0] for name in names for room in FLOORS[name]]
        assert rooms == list(dict.fromkeys(inside)), names
    assert packages == list(FLOORS)


def test_the_page_leads_to_what_is_there():
    walk = PAGE[PAGE.index("## One step") : PAGE.index("## What a change")]
    pairs = re.findall(r"`(\w+(?:/\w+)*)\.py`,\s`([\w.]+)`", walk)
    assert len(pairs) > 20
    for file, name in pairs:
        module = importlib.import_module(f"graphlr.{file.replace('/', '.')}")
        assert operator.attrgetter(name)(module), file
    for file in re.findall(r"`(\w+/\w+\.py)`", walk):
        assert (HOUSE / file).exists(), file


def loaded_by(code: str) -> set[str]:
    """Packages in memory after some code, in a process of its own."""
    listing = "print(*{m.split('.')[0] for m in sys.modules})"
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", f"import sys; {code}; {listing}"],
        capture_output=True,
        text=True,
        check=True,
    )
    return set(run.stdout.split())


def test_import_is_light():
    assert not loaded_by("import graphlr") & {"jax", "flax", "optax", "numpy", "rich"}
    # flax itself imports orbax; what graphlr adds is what it imports without flax.
    flax = loaded_by("import flax.nnx, optax")
    graph = loaded_by("import graphlr; graphlr.Graph; graphlr.optim.SGD")
    assert not graph & (HEAVY | {"rich"}) - flax


def test_the_public_surface():
    assert dir(graphlr) == sorted([*graphlr.__all__, "__version__"])
    for name in graphlr.__all__:
        assert getattr(graphlr, name)
    with pytest.raises(AttributeError, match="no attribute 'Grahp'"):
        print(graphlr.Grahp)
    assert (HOUSE / "py.typed").exists()
    assert graphlr.__version__.count(".") == 2
