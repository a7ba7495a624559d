"""Every text leads to the address that pyproject.toml has, and `make address` moves them all."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = "docs/address.py"
ON_GITHUB = re.compile(r"github(?:\.com)?/([\w-]+/rlkit)\b")


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """Return a folder with the texts of the repository that name its address."""
    for name in ("pyproject.toml", "CITATION.cff", "README.md", "docs", "notebooks"):
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, tmp_path / name)
        else:
            shutil.copy(source, tmp_path / name)
    return tmp_path


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(folder / SCRIPT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def named(folder: Path) -> dict[str, set[str]]:
    """Return the repositories called rlkit that each text names."""
    files = [p for p in folder.rglob("*") if p.suffix in (".md", ".ipynb", ".toml", ".cff")]
    found = {str(p.relative_to(folder)): set(ON_GITHUB.findall(p.read_text())) for p in files}
    return {name: places for name, places in found.items() if places}


def test_all_texts_name_the_address_of_the_package(copy: Path) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    address = project["urls"]["Repository"].removeprefix("https://github.com/")
    places = named(copy)
    assert {name: {address} for name in places} == places
    notebooks = {f"notebooks/{path.name}" for path in (ROOT / "notebooks").glob("*.ipynb")}
    assert {*notebooks, "pyproject.toml", "CITATION.cff", "docs/start/install.md"} <= set(places)


def test_one_command_moves_them_all_and_nothing_else(copy: Path) -> None:
    before = {p: p.read_text() for p in copy.rglob("*.md")}
    places = named(copy)
    done = run(copy, "some-one/rlkit")
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()) == set(places)
    assert named(copy) == {name: {"some-one/rlkit"} for name in places}
    other = {p for p, text in before.items() if p.read_text() != text}
    assert {str(p.relative_to(copy)) for p in other} == {p for p in places if p.endswith(".md")}
    assert run(copy, "some-one/rlkit").stdout == ""  # a second time there is nothing to do


@pytest.mark.parametrize("name", ["", "rlkit", "https://github.com/a/b", "a b/c"])
def test_what_is_no_repository_is_refused_and_nothing_is_written(copy: Path, name: str) -> None:
    places = named(copy)
    done = run(copy, name)
    assert done.returncode == 2
    assert done.stderr == f"address: REPOSITORY must be OWNER/NAME, got {name!r}\n"
    assert named(copy) == places
