"""What the README tells people to type exists and composes."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from rlkit.cli import COMMANDS
from rlkit.launch.composing import register
from rlkit.launch.preflight import preflight

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```bash\n(.*?)```", TEXT, flags=re.DOTALL)
LINES = [
    shlex.split(line, comments=True)
    for block in BLOCKS
    for line in block.replace("\\\n", " ").splitlines()
]
CALLS = [words[1:] for words in LINES if words and words[0].rsplit("/")[-1] == "rlkit"]


@pytest.mark.parametrize("arguments", CALLS, ids=" ".join)
def test_commands_exist_and_overrides_compose(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if arguments[0] in COMMANDS:
        return
    register()
    jobs = preflight(arguments)
    assert jobs


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = [words[1] for words in LINES if words and words[0] == "make"]
    assert targets == ["run", "test"]
    assert all(f"\n{target}:" in makefile for target in targets)


def test_links_lead_somewhere() -> None:
    for link in re.findall(r"\]\(([^)#]+)\)", TEXT):
        assert (ROOT / link).exists(), link


def test_every_algorithm_option_is_listed() -> None:
    for option in (ROOT / "conf/algorithm").glob("*.yaml"):
        assert re.search(rf"\b{option.stem}\b", TEXT), option.stem
