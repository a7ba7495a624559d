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

# Every room or module of rlkit -> the rooms it may import from. What is not listed is refused, so
# a new room needs a line here. The order is the order of the floors: nothing imports from below it.
ALLOWED = {
    "conf": set(),
    "convert": set(),
    "types": set(),
    "schema": set(),
    "runtime": set(),
    "ranks": {"runtime"},
    "functional": set(),
    "kernels": {"runtime"},
    "stats": set(),
    "rewards": {"types", "schema", "runtime"},
    "tracking": {"schema", "runtime"},
    "models": {"types", "schema", "runtime", "kernels"},
    "generation": {"types", "schema", "runtime", "models"},
    "algorithms": {"types", "schema", "functional"},
    "environments": {"types", "schema", "runtime", "rewards", "generation"},
    "tasks": {"types", "schema", "runtime", "rewards", "environments"},
    "policy": {"types", "runtime", "kernels", "models"},
    "reward_models": {"types", "runtime", "models", "policy", "rewards", "tasks"},
    "report": {"schema", "stats", "tracking"},
    "training": {"types", "schema", "functional", "models", "ranks", "runtime", "tracking"},
    "oracle": {"types", "schema", "algorithms", "training"},
    "tabular": {"types", "schema", "generation", "models", "oracle", "tasks", "tracking"},
    "checks": {"schema", "generation", "runtime"},
    "config": {
        *("schema", "checks", "algorithms", "environments", "generation", "models", "rewards"),
        *("tabular", "tasks", "tracking", "training", "types"),
    },
    "plan": {
        *("types", "config", "generation", "kernels", "models", "policy", "ranks"),
        *("reward_models", "runtime", "tracking", "training"),
    },
    "assembly": {
        *("types", "schema", "config", "algorithms", "environments", "generation", "models"),
        *("plan", "policy", "ranks", "reward_models", "rewards", "runtime", "tabular", "tasks"),
        *("tracking", "training"),
    },
    "launch": {
        *("types", "schema", "checks", "config", "algorithms", "assembly", "ranks", "report"),
        *("runtime", "tabular", "tracking", "training"),
    },
    "exports": {
        *("types", "assembly", "generation", "launch", "models", "policy", "rewards", "runtime"),
        *("tasks", "tracking"),
    },
    "cli": {
        *("types", "schema", "config", "convert", "algorithms", "assembly", "exports"),
        *("generation", "launch", "models", "plan", "policy", "report", "reward_models", "rewards"),
        *("runtime", "tasks", "tracking", "training"),
    },
    "reference": {
        *("schema", "config", "algorithms", "generation", "launch", "oracle", "rewards", "tasks"),
        *("tracking", "cli"),
    },
    "__init__": {"config", "launch", "types"},
    "__main__": {"cli", "runtime"},
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
    room = name.split(".")[0] or "__init__"
    assert room in ALLOWED, f"{room} is a new room: say in ALLOWED what it may import"
    for target in imports(path):
        other = target.split(".")[0]
        allowed = {room, *ALLOWED[room]}
        assert other in allowed, f"{name} may not import rlkit.{target}"


def test_no_room_may_import_from_a_room_above_it() -> None:
    floor = {room: height for height, room in enumerate(ALLOWED)}
    for room, others in ALLOWED.items():
        assert all(floor[other] < floor[room] for other in others), room


def test_every_rule_is_needed() -> None:
    used: dict[str, set[str]] = {room: set() for room in ALLOWED}
    for name, path in sources():
        room = name.split(".")[0] or "__init__"
        used[room] |= {target.split(".")[0] for target in imports(path)} - {room}
    assert used == ALLOWED


def test_no_module_imports_itself_through_others() -> None:
    modules = dict(sources())
    arrows = {
        name: {_module(target, modules) for target in imports(path)} - {name}
        for name, path in modules.items()
    }
    done: set[str] = set()

    def walk(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, f"a circle of imports: {' -> '.join((*trail, name))}"
        if name not in done:
            for other in sorted(arrows.get(name, ())):
                walk(other, (*trail, name))
            done.add(name)

    for name in modules:
        walk(name, ())


def _module(target: str, modules: dict[str, Path]) -> str:
    """The module of a dotted name that may go on into the module's own names."""
    while target and target not in modules:
        target = target.rpartition(".")[0]
    return target


@pytest.mark.parametrize(
    "path", sorted((ROOT / "rlkit" / "training").glob("*.py")), ids=lambda path: path.name
)
def test_the_training_loop_names_no_algorithm(path: Path) -> None:
    named = {p.stem for p in (ROOT / "conf" / "algorithm").glob("*.yaml")}
    for node in ast.walk(ast.parse(path.read_text())):
        word = node.id if isinstance(node, ast.Name) else getattr(node, "attr", None)
        if isinstance(node, ast.Constant) and node.value in named:
            raise AssertionError(f"{path.name} names the algorithm {node.value}")
        assert not (isinstance(word, str) and word.lower().removesuffix("config") in named), word


def test_no_other_file_knows_the_options_of_ppo() -> None:
    """An `Algorithm` says what its critic and its warm-up need; nobody asks whether it is PPO."""
    knowing = {name for name, path in sources() if "PPOConfig" in path.read_text()}
    assert knowing == {"algorithms.ppo"}


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


def test_no_two_classes_have_one_name() -> None:
    places: dict[str, list[str]] = {}
    for module, path in sources():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                places.setdefault(node.name, []).append(module)
    shared = {name: modules for name, modules in places.items() if len(modules) > 1}
    assert not shared
