"""README and docs say nothing that doesn't run."""

import re

import pytest

from tests import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCKS = [
    pytest.param(block, id=f"{page.name}:{i}")
    for page in PAGES
    for i, block in enumerate(
        re.findall(r"^```python\n(.*?)^```", page.read_text(), re.M | re.S)
    )
]


@pytest.mark.parametrize("block", BLOCKS)
def test_python_blocks_run(block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "block", "exec"), {"__name__": "block"})


def test_first_shell_block_holds_the_two_commands():
    text = (ROOT / "README.md").read_text()
    train, test = re.search(r"^```sh\n(.*?)^```", text, re.M | re.S)[1].splitlines()
    assert train.endswith("examples/mobilenetv2.py")
    assert test.endswith("-m pytest")
    for command in (train, test):
        assert command.startswith("python3 -m venv .venv && ")


def test_files_that_are_linked_exist():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
