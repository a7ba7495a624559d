"""Every block of code in README and docs/ works: commands compose, programs run, files parse.

Commands of rlkit are composed and checked as before the start of a job; nothing is loaded. They are
typed for real at night (tests/test_page_commands.py). Blocks with a title are files, which the
commands and programs of their page find.
"""

from __future__ import annotations

import importlib.util
import json
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from code_blocks import (
    LANGUAGES,
    NEEDS,
    ROOT,
    Block,
    blocks,
    commands,
    experiments,
    pages,
    rlkit_arguments,
    write_files,
)
from gpu_blocks import needing_a_card
from page_reader import PROGRAMS, TYPED

from rlkit.cli import COMMANDS
from rlkit.launch.composing import register
from rlkit.launch.preflight import preflight
from rlkit.reference.commands import help_of

PAGES = pages()
OTHER_PROGRAMS = {*PROGRAMS, *TYPED, "exec"}
COMPOSED = ("check", "judge-check")
"""Commands whose overrides are those of a run."""
OWN = re.compile(r"(pairs|count|least_\w+)=|--")
FILE_AND_NAME = re.compile(r"(?<![\w/.])([\w/]+\.py):(\w+)")


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Work in an empty folder whose modules can be imported, and forget them afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    yield tmp_path
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None)).startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_block_is_of_a_kind_that_is_tested(page: Path) -> None:
    for block in blocks(page):
        assert block.language in LANGUAGES, block.text
        assert block.needs in {"", *NEEDS}, block.needs
    # Code that is only indented would be seen by nobody.
    plain = re.sub(r"^( *)```.*?^\1```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    outside_lists = re.findall(r"(?:^|\n)(?![ *\d-])[^\n]*\n\n( {4}[^\n]*)", plain)
    assert not outside_lists


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p)], ids=name_of)
def test_commands_exist_and_compose(page: Path, folder: Path) -> None:
    register()
    write_files(page, Path())
    for block in blocks(page):
        for words in commands(block) if block.language == "bash" else ():
            arguments = rlkit_arguments(words)
            if arguments is None:
                check_other_program(words)
            else:
                without = block.needs == "ray"  # its launcher is no part of the test tools
                check_rlkit([a for a in arguments if not (without and "hydra" in a)])
                check_names(words, must_exist=page.parent.name == "lessons")


@pytest.mark.parametrize("page", experiments(), ids=name_of)
def test_commands_of_the_experiments_compose(page: Path, folder: Path) -> None:
    register()
    for block in blocks(page):
        for words in commands(block):
            arguments = rlkit_arguments(words)
            # A variable of the shell stands for options of another line.
            if arguments is not None and not any("$" in word for word in words):
                check_rlkit(arguments)


def test_what_a_card_would_run_composes(folder: Path) -> None:
    register()
    found = list(needing_a_card("starter"))
    for page, (_, _, program, *arguments) in found:
        write_files(page, Path())
        assert program == "rlkit" and "steps=2" in arguments
        check_rlkit(arguments)
    wanted = {p for p in PAGES for b in blocks(p) if b.needs == "gpu" and "rlkit " in b.text}
    assert {page for page, _ in found} == wanted


def check_rlkit(arguments: list[str]) -> None:
    """Check a command line of rlkit as far as it goes without a model."""
    name = arguments[0] if arguments else ""
    if name in COMMANDS:
        text = help_of(name)
        for word in arguments[1 : arguments.index("--") if "--" in arguments else None]:
            flag = word.partition("=")[0]
            assert not flag.startswith("--") or flag in text, f"{flag} is no option of rlkit {name}"
        if name in COMPOSED:
            preflight([a for a in arguments[1:] if not OWN.match(a)])
    elif name not in ("--version", "--help"):
        # A folder that is there already is the point of resume=must; there is none here.
        fresh = [a.replace("resume=must", "resume=auto") for a in arguments]
        for job in two_jobs(fresh) if "-m" in fresh else [fresh]:
            assert preflight(job) or "--cfg" in job


def two_jobs(arguments: list[str]) -> list[list[str]]:
    """Return the first and the last job of a sweep, which may have hundreds."""
    words = [a for a in arguments if a != "-m" and not a.startswith(("hydra.", "hydra/"))]
    ends = [[re.sub(r"=range\(\d+\)$", "=0", word) for word in words] for _ in range(2)]
    for place, word in enumerate(words):
        key, _, value = word.partition("=")
        if "," in value and not re.search(r"[\[{(']", value):
            ends[0][place], ends[1][place] = (f"{key}={value.split(',')[end]}" for end in (0, -1))
    return ends if ends[0] != ends[1] else ends[:1]


def check_other_program(words: list[str]) -> None:
    """Check that a program is one that readers are told about, and what `make` and `python` run."""
    program = words[0].rsplit("/", 1)[-1]
    assert program in OTHER_PROGRAMS or "=" in words[0], words
    if program == "make" and len(words) > 1:
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), words
    if program == "pip":
        check_installed(words)
    if program == "python" and words[1] == "-m":
        assert importlib.util.find_spec(words[2]), words
    elif program == "python" and words[1].endswith(".py"):
        assert (ROOT / words[1]).is_file(), words


def check_installed(words: list[str]) -> None:
    """Check that a line of pip names the package, extras and constraints that there are."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for word in words[2:]:
        name, _, extras = word.rstrip("]").partition("[")
        if extras:
            assert name in (".", project["name"]), words
            assert set(extras.split(",")) <= set(project["optional-dependencies"]), words
        assert not word.endswith(".txt") or (ROOT / word).is_file(), words


def check_names(words: list[str], *, must_exist: bool) -> None:
    """Check that `FILE.py:NAME` names something that the page's file defines."""
    for path, name in FILE_AND_NAME.findall(" ".join(words)):
        if must_exist or Path(path).is_file():
            assert re.search(rf"^(def|class) {name}\b", Path(path).read_text(), re.MULTILINE), path


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p)], ids=name_of)
def test_programs_run_and_files_parse(
    page: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_files(page, Path())
    module = ModuleType("page")  # dataclasses look their module up by its name
    monkeypatch.setitem(sys.modules, "page", module)
    for number, block in enumerate(blocks(page)):
        if block.language == "python":
            code = compile(block.text, f"{name_of(page)}, block {number}", "exec")
            if not block.needs:
                exec(code, vars(module))  # the page's own program, as printed
        else:
            parse(block)


def parse(block: Block) -> None:
    """Parse a block of data; raises what its parser raises."""
    if block.language == "json":
        for line in block.text.splitlines() if "jsonl" in block.title else [block.text]:
            json.loads(line)
    elif block.language == "yaml":
        assert yaml.safe_load(block.text)
    elif block.language == "toml":
        assert tomllib.loads(block.text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("```bash\nrlkit optim.learning_rte=1\n```\n", "optim.learning_rte is not an option"),
        ("```bash\nrlkit eval --fun x\n```\n", "--fun is no option of rlkit eval"),
        ("```bash\nrm -rf x\n```\n", "rm"),
        ("```bash\npip install '.[gqu]'\n```\n", "gqu"),
    ],
)
def test_a_wrong_command_is_found(text: str, said: str, folder: Path) -> None:
    (folder / "page.md").write_text(text)
    (block,) = blocks(folder / "page.md")
    ((first, *rest),) = commands(block)
    register()
    with pytest.raises((AssertionError, ValueError), match=said):
        check_rlkit(rest) if first == "rlkit" else check_other_program([first, *rest])


def test_blocks_are_read_with_their_titles_and_needs(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        '<!-- needs: gpu -->\n```bash\nrlkit a \\\n  b # c\n```\n```python title="x.py"\n1\n```\n'
    )
    first, second = blocks(page)
    assert first == Block("bash", "", "gpu", "rlkit a \\\n  b # c\n")
    assert list(commands(first)) == [["rlkit", "a", "b"]]
    assert second == Block("python", "x.py", "", "1\n")
