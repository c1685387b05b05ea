"""docs/schedules.md lists and shows every schedule; its script draws the pictures."""

import importlib.util
import re

import pytest

from graphlr.optim import lr_scheduler
from tests import ROOT

DOCS = ROOT / "docs"
PAGE = (DOCS / "schedules.md").read_text()
CLASSES = {
    name
    for name, value in vars(lr_scheduler).items()
    if isinstance(value, type) and issubclass(value, lr_scheduler.Schedule)
}
SCHEDULES = (CLASSES | {*lr_scheduler.__all__}) - {"Schedule", "as_schedule"}


@pytest.fixture(scope="module")
def draw():
    """The script's command line."""
    spec = importlib.util.spec_from_file_location("drawing", DOCS / "draw_schedules.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


def pictures(folder):
    return {path.stem: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def drawn(draw, tmp_path_factory):
    """What the script draws."""
    folder = tmp_path_factory.mktemp("drawn")
    draw(["--out", str(folder)])
    return pictures(folder)


def texts(svg):
    return re.findall(r">([^<>]*)</text>", svg.decode())


def test_every_schedule_has_a_row_that_leads_to_its_picture():
    rows = re.findall(r"^\| \[`(\w+)`\]\(schedules/(\w+)\.svg\)", PAGE, re.M)
    assert sorted(rows) == [(name, name) for name in sorted(SCHEDULES)]


def test_every_picture_is_shown_once():
    shown = re.findall(r"!\[(\w+)\]\(schedules/(\w+)\.svg\)", PAGE)
    assert sorted(shown) == [(name, name) for name in sorted(SCHEDULES)]


def test_the_script_draws_them_all_alike_each_time(draw, drawn, tmp_path, capsys):
    draw(["--out", str(tmp_path / "again")])
    assert drawn.keys() == SCHEDULES
    assert drawn == pictures(tmp_path / "again")
    assert max(map(len, drawn.values())) < 30_000
    assert f"{len(drawn)} pictures" in capsys.readouterr().out


def test_the_pictures_of_the_page_are_the_scripts(drawn):
    """By the texts in them: another matplotlib writes other bytes."""
    shown = {name: texts(svg) for name, svg in pictures(DOCS / "schedules").items()}
    assert shown == {name: texts(svg) for name, svg in drawn.items()}
    assert "StepLR(50, gamma=0.5)" in shown["StepLR"]


def test_the_script_has_help(draw, capsys):
    with pytest.raises(SystemExit) as stop:
        draw(["--help"])
    assert stop.value.code == 0
    assert "--out FOLDER" in capsys.readouterr().out
