"""Every command of README and docs/ is typed in an empty folder, page by page, at a small size."""

from __future__ import annotations

from pathlib import Path

import pytest
from byte_model import write_byte_model
from code_blocks import ROOT, blocks, pages
from page_reader import Reader
from warm_cli import Forks

PAGES = [p for p in pages() if any(b.language == "bash" for b in blocks(p))]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_byte_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.mark.nightly
@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_works_as_the_page_has_it(
    page: Path, forks: Forks, model: Path, tmp_path: Path
) -> None:
    with Reader(forks, page, tmp_path, model) as reader:
        done = reader.read()
    for words, reason in reader.skipped.items():
        print(f"not run, it needs {reason}: {words}")
    for each in done:
        print(f"rc {each.code}, {each.seconds:.1f} s: {each.words}")
    failed = [f"{each.words}\n{each.end}" for each in done if each.code != 0]
    assert not failed, "\n\n".join(failed)
