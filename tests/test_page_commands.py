"""Every command of README and docs/ is typed in an empty folder, page by page, at a small size.

`make test-pages` runs this file, after it has installed what some pages need. `make test-cluster`
runs the pages of sweeps again where Ray is. What is not run is printed with its reason (-s).
"""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from byte_model import write_byte_model
from cli_process import environment
from code_blocks import ROOT, blocks, pages
from page_reader import Reader
from page_sizes import is_there
from warm_cli import Forks

PAGES = [p for p in pages() if any(b.language == "bash" for b in blocks(p))]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_byte_model(tmp_path_factory.mktemp("models") / "tiny", hidden_size=128)
    template = folder / "chat_template.jinja"
    template.write_text("{% if tools %}{{ tools | tojson }}{% endif %}" + template.read_text())
    return folder


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


@pytest.mark.nightly
@pytest.mark.slow
@pytest.mark.skipif(not is_there("optuna"), reason="make test-pages installs Optuna")
def test_the_search_with_optuna_runs_as_printed(tmp_path: Path) -> None:
    (block,) = (b for b in blocks(ROOT / "docs/howto/hydra.md") if b.needs == "optuna")
    (tmp_path / "search.py").write_text(block.text)
    done = subprocess.run(
        [sys.executable, "search.py"],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.glob("runs/search-*/evals.jsonl"))) == 20
    best = ast.literal_eval(done.stdout.splitlines()[-1])
    assert 0.01 < best["learning_rate"] <= 1.0  # the smallest rates learn next to nothing
