"""The house: which room may import which, how long a room is, what import costs."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import graphlr

ROOT = Path(graphlr.__file__).parent
ROOMS = sorted(path.relative_to(ROOT) for path in ROOT.rglob("*.py"))

# From the bottom up: a room may import those before it.
ORDER = [
    "runtime",
    "platforms",
    "selectors",
    "groups",
    "modules",
    "signature",
    "optim.lr_scheduler.settings",
    "optim.lr_scheduler.base",
    "optim.lr_scheduler.decays",
    "optim.lr_scheduler.cycles",
    "optim.lr_scheduler.composed",
    "optim.lr_scheduler.plateau",
    "optim.lr_scheduler",
    "optim.transforms.leaves",
    "optim.transforms.gradients",
    "optim.transforms.momentum",
    "optim.transforms.sign",
    "optim.transforms.adam",
    "optim.transforms.adaptive",
    "optim.transforms",
    "optim.values",
    "optim.compiled",
    "optim.as_optax",
    "optim.slots",
    "optim.optimizer",
    "optim.rules.sgd",
    "optim.rules.adam",
    "optim.rules.adaptive",
    "optim.rules.sign",
    "optim.rules",
    "optim",
    "calls",
    "precision",
    "config",
    "average",
    "memory",
    "plan",
    "update",
    "step",
    "program",
    "scan",
    "skips",
    "state",
    "runner",
    "summary",
    "archive",
    "binaries",
    "structure",
    "specs",
    "onnx",
    "exported",
    "export",
    "graph",
]
ISLANDS = {
    "data": set(),
    "report": set(),
    "layers.conv": {"platforms"},
    "layers.batch_norm": {"platforms"},
    "layers": {"layers.conv", "layers.batch_norm"},
    "models.mobilenet_v2": {"layers"},
    "models": {"models.mobilenet_v2"},
}
HEAVY = {"orbax", "grain", "matplotlib", "sklearn", "tensorboardX", "torch"}
HEAVY |= {"jax2onnx", "onnx", "onnxruntime", "safetensors"}


def name_of(path):
    return ".".join(path.with_suffix("").parts).removesuffix("__init__").strip(".")


def imports(path):
    """Rooms that the file imports, and other packages it imports at the top."""
    rooms, packages = set(), set()
    tree = ast.parse((ROOT / path).read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            assert node.level == 0, f"{path}: relative import"
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            if not name.startswith("graphlr."):
                packages |= {name.split(".")[0]} if node in tree.body else set()
                continue
            room = name.removeprefix("graphlr.")
            while room not in {name_of(p) for p in ROOMS}:
                room = room.rpartition(".")[0]
            rooms.add(room)
    return rooms, packages


@pytest.mark.parametrize("path", ROOMS, ids=str)
def test_arrows_point_up(path):
    room = name_of(path)
    if not room:  # the public surface
        return
    found, packages = imports(path)
    assert not packages & HEAVY
    if room in ISLANDS:
        assert found <= ISLANDS[room]
    else:
        assert found <= set(ORDER[: ORDER.index(room)])


@pytest.mark.parametrize("path", ROOMS, ids=str)
def test_rooms_are_small(path):
    lines = (ROOT / path).read_text().count("\n")
    assert lines <= (60 if path == Path("__init__.py") else 500)


def test_every_room_has_its_test():
    tests = {path.stem for path in Path(__file__).parent.glob("test_*.py")}
    for path in ROOMS:
        parts = [*path.with_suffix("").parts]
        if parts[-1] == "__init__":
            continue
        for package in ("lr_scheduler", "transforms", "rules"):
            if package in parts:
                parts = [package]
        assert f"test_{parts[-1]}" in tests, path


def test_import_is_light():
    code = "import sys, graphlr; print(*{m.split('.')[0] for m in sys.modules})"
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = set(run.stdout.split())
    # flax itself imports orbax; what graphlr adds is what it imports without flax.
    flax_only = subprocess.run(
        [sys.executable, "-c", code.replace("graphlr", "flax.nnx, optax, rich")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert not loaded & HEAVY - set(flax_only.stdout.split())


def test_typed_and_versioned():
    assert (ROOT / "py.typed").exists()
    assert graphlr.__version__.count(".") == 2
