"""The walls of the house: symlinks, import rules, light imports, file sizes, and the wheel."""

from __future__ import annotations

import ast
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LINKED = ("algorithms", "rewards", "kernels", "conf")

# Package or module -> what of rlkit it may import, besides itself. Everything else is the upper
# floor (config, assemble, trainer, cli), which may import all of these.
ALLOWED = {
    "types": set(),
    "functional": set(),
    "kernels": set(),
    "rewards": {"types"},
    "algorithms": {"types", "functional"},
    "oracle": {"types", "functional", "algorithms", "memory"},
    "generation": {"types", "garbage"},
    "buffer": {"types"},
    "collate": {"types"},
    "microbatch": {"types"},
    "memory": {"models"},
    "optim": set(),
    "lora": {"types", "models", "lora_linear", "lora_groups"},
    "lora_groups": set(),
    "lora_linear": {"models"},
    "models": {"types", "kernels", "offload"},
    "offload": set(),
    "full": {"models"},
    "policy": {"types", "kernels", "lora", "full", "models", "offload"},
    "prompts": {"types", "tasks", "models"},
    "tasks": {"types", "rewards", "prompts"},
    "tracking": {"types"},
    "stats": set(),
    "report": {"stats", "tracking"},
    "loss_scale": set(),
    "backward": set(),
    "garbage": set(),
    "update": {"types", "backward", "garbage", "microbatch", "optim", "loss_scale"},
    "replay": {"types", "update"},
}
MAX_FILE, MAX_ALGORITHM, MAX_FUNCTION = 300, 250, 50


def sources() -> Iterator[tuple[str, Path]]:
    """(dotted name below rlkit, file) of every module we ship."""
    for path in sorted(_walk(ROOT / "rlkit")):
        relative = path.relative_to(ROOT / "rlkit").with_suffix("")
        yield ".".join(p for p in relative.parts if p != "__init__"), path


def _walk(folder: Path) -> Iterator[Path]:
    for child in folder.iterdir():
        if child.is_dir() and child.name != "__pycache__":
            yield from _walk(child)
        elif child.suffix == ".py":
            yield child


def imports(path: Path) -> Iterator[str]:
    """Names below rlkit that a module imports, type-checking imports included."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        yield from (n.removeprefix("rlkit.") for n in names if n.startswith("rlkit."))


def test_links_are_relative_and_stay_inside() -> None:
    for name in LINKED:
        link = ROOT / "rlkit" / name
        assert link.is_symlink()
        assert str(link.readlink()) == f"../{name}"
        assert link.resolve() == ROOT / name


def test_kernels_is_a_namespace_and_conf_a_package() -> None:
    # A `kernels/__init__.py` would shadow Hugging Face's package `kernels`; Hydra needs conf's.
    assert not (ROOT / "kernels" / "__init__.py").exists()
    assert (ROOT / "conf" / "__init__.py").exists()


@pytest.mark.parametrize(
    ("name", "path"), list(sources()), ids=lambda x: str(x) if isinstance(x, str) else ""
)
def test_import_rules(name: str, path: Path) -> None:
    floor = name.split(".")[0]
    if floor not in ALLOWED:
        return
    for target in imports(path):
        other = target.split(".")[0]
        allowed = {floor, "schema", *ALLOWED[floor]}  # every floor may describe its options
        assert other in allowed, f"{name} may not import rlkit.{target}"


def test_importing_rlkit_and_its_types_is_light() -> None:
    heavy = ("vllm", "triton", "transformers", "wandb", "datasets", "trackio", "matplotlib")
    code = f"import sys, rlkit, rlkit.types; print([m for m in {heavy} if m in sys.modules])"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"


def test_composing_a_configuration_loads_no_model_library() -> None:
    heavy = ("vllm", "transformers", "wandb", "datasets", "matplotlib")
    code = f"import sys, rlkit.config; print([m for m in {heavy} if m in sys.modules])"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("name", "path"), list(sources()), ids=lambda x: str(x) if isinstance(x, str) else ""
)
def test_sizes(name: str, path: Path) -> None:
    text = path.read_text()
    limit = MAX_ALGORITHM if name.startswith("algorithms.") else MAX_FILE
    assert len(text.splitlines()) <= limit
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or 0) - node.lineno + 1
            # Docstrings do not count: public functions owe long ones.
            length -= len((ast.get_docstring(node, clean=False) or "").splitlines())
            assert length <= MAX_FUNCTION, f"{path}: {node.name} has {length} lines"


@pytest.mark.slow
def test_the_wheel_holds_everything_and_only_rlkit(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "-w",
        str(tmp_path),
        str(ROOT),
    ]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {t for t in tops if not t.endswith(".dist-info")} == {"rlkit"}
    shipped = {f"rlkit/{p.relative_to(ROOT / 'rlkit')}" for _, p in sources()}
    assert shipped <= set(names)
    yamls = {f"rlkit/conf/{p.relative_to(ROOT / 'conf')}" for p in (ROOT / "conf").rglob("*.yaml")}
    assert yamls <= set(names)
