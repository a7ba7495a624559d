"""README is one page that a newcomer can read: short, narrow, and all of its links lead somewhere.

What it tells people to type is tested with all other pages (tests/test_code_blocks.py).
"""

from __future__ import annotations

import re
from pathlib import Path

import yaml

import rlkit

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text()


def test_it_is_short_and_narrow() -> None:
    lines = TEXT.splitlines()
    assert len(lines) <= 120
    assert [line for line in lines if len(line) > 100] == []


def test_links_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)#]+)\)|^\[\w+\]: (\S+)$", TEXT, flags=re.MULTILINE)
    assert len(links) > 20
    for link in ("".join(pair) for pair in links):
        assert (ROOT / link).exists(), link
    defined = set(re.findall(r"^\[(\w+)\]: ", TEXT, flags=re.MULTILINE))
    assert set(re.findall(r"\]\[(\w+)\]", TEXT)) == defined


def test_its_two_commands_are_those_of_ci() -> None:
    targets = re.findall(r"^make (\w+) ", TEXT, flags=re.MULTILINE)
    assert targets == ["run", "test"]
    in_ci = (ROOT / ".ci/newcomer").read_text() + (ROOT / ".ci/run").read_text()
    assert all(f"make {target}" in in_ci for target in targets)


def test_one_version_is_named_everywhere() -> None:
    version = rlkit.__version__
    assert f'\nversion = "{version}"\n' in (ROOT / "pyproject.toml").read_text()
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert (citation["version"], citation["license"]) == (version, "Apache-2.0")
    changes = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    assert changes[0] == version


def test_issue_forms_ask_for_the_environment() -> None:
    folder = ROOT / ".github/ISSUE_TEMPLATE"
    for name in ("bug.yml", "idea.yml"):
        form = yaml.safe_load((folder / name).read_text())
        assert any("`rlkit env`" in part["attributes"]["label"] for part in form["body"]), name
    bug = yaml.safe_load((folder / "bug.yml").read_text())
    env = next(part for part in bug["body"] if part["id"] == "env")
    assert env["validations"] == {"required": True}


def test_a_release_is_tested_and_needs_no_stored_secret() -> None:
    text = (ROOT / ".github/workflows/release.yml").read_text()
    jobs = yaml.safe_load(text)["jobs"]
    assert jobs["publish"]["needs"] == "build"
    assert jobs["publish"]["permissions"] == {"id-token": "write"}
    assert any(step.get("run") == ".ci/run" for step in jobs["build"]["steps"])
    assert "secrets." not in text
