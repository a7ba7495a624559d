"""vLLM's private side is known in a few places only; everything else asks them."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import rlkit

ROOT = Path(rlkit.__file__).parent
ROOM = ROOT / "generation" / "vllm"
KNOWN = ("compat/", "accel/")
"""Folders of the room that may use private names; a table in `compat/features.py` lists them."""
PUBLIC = {"vllm", "vllm.lora.request", "vllm.sampling_params", "vllm.config", "vllm.platforms"}
"""Names that vLLM's documentation shows users."""
EXCEPTIONS = {
    # Registers quantisation methods and loaders, as vLLM's page on plugins shows.
    "coded.py": "vllm.model_executor.",
    "nf4.py": "vllm.utils.torch_utils",
    # Looks at a model's class in this process; nothing is changed.
    "package.py": "vllm.model_executor.models.transformers",
    # Hands an adapter to vLLM's own loader, the plain path that replaces writing in place.
    "worker.py": "vllm.lora.lora_model vllm.lora.peft_helper",
    # Ends vLLM's process groups by vLLM's own functions.
    "life.py": "vllm.distributed",
}
TORCH = {"_C", "_foreach_copy_", "_foreach_mul_", "_foreach_mul", "_foreach_zero_", "_foreach_neg_"}
"""Names of torch: settings of its allocator, workspaces of cuBLAS, and operations on lists."""
NAMED_TUPLES = {"_replace", "_asdict"}
"""Methods that Python documents for named tuples; the first letter keeps fields apart."""
FILES = [path for path in sorted(ROOT.rglob("*.py")) if "__pycache__" not in path.parts]


def imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_inner_modules_of_vllm_are_imported_in_known_places(path: Path) -> None:
    inner = {name for name in imported(ast.parse(path.read_text())) if name.startswith("vllm")}
    inner = {name for name in inner if name.split(".")[0] == "vllm"} - PUBLIC
    if ROOM in path.parents:
        place = str(path.relative_to(ROOM))
        allowed = tuple(EXCEPTIONS.get(place, "nothing").split())
        if not place.startswith(KNOWN):
            assert all(name.startswith(allowed) for name in inner), (place, inner)
    else:
        assert not inner, f"{path} imports {inner}, which belongs into generation/vllm/compat"


@pytest.mark.parametrize(
    "path", [p for p in FILES if ROOM in p.parents], ids=lambda path: str(path.relative_to(ROOM))
)
def test_private_attributes_are_used_in_compat(path: Path) -> None:
    """`x._name` belongs to rlkit itself where x is self, and to somebody else otherwise."""
    place = str(path.relative_to(ROOM))
    if place.startswith("compat/"):
        return
    tree = ast.parse(path.read_text())
    own = {
        name
        for node in ast.walk(tree)
        for name in ({node.name} if isinstance(node, ast.ClassDef | ast.FunctionDef) else set())
    } | {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and _is_on_self(node)
    }
    foreign = {
        ast.unparse(node)
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and node.attr.startswith("_")
        and not node.attr.startswith(("__", "_rlkit"))
        and node.attr not in own | TORCH | NAMED_TUPLES
        and not _is_on_self(node)
        and not ast.unparse(node).startswith("torch._C.")
    }
    assert not foreign, "the name belongs into generation/vllm/compat"


def _is_on_self(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id in ("self", "cls")
    )
