"""The tables of vLLM's private names: how they are read, and what the installed vLLM has."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest

from rlkit.generation.vllm import accel
from rlkit.generation.vllm.compat import v0_24, v0_29
from rlkit.generation.vllm.compat.check import look_up
from rlkit.generation.vllm.compat.features import TABLES, Feature, gaps, line_of
from rlkit.generation.vllm.compat.line import VLLMLine
from rlkit.generation.vllm.compat.lines import LINES
from rlkit.generation.vllm.compat.source import missing, read_table
from rlkit.generation.vllm.config import is_installed

_SOURCE = """
from typing import Any
TOP = 1
class A:
    field: int
    def __init__(self):
        self.on_self, (self.in_pair, _) = 1, (2, 3)
        other.not_mine = 1
    def method(self, a, b=1, *, c, d=2): ...
def function(x): ...
"""


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ("m.py A: field on_self in_pair method", []),
        ("m.py: TOP function A", []),
        ("m.py A: not_mine", ["m.A.not_mine"]),
        ("m.py B: x", ["m.B"]),
        ("gone.py A: x", ["gone.py"]),
        ("m.py function(x)", []),
        ("m.py function(x, y)", ["m.function(y)"]),
        ("m.py A.method(a, c)", []),
        ("m.py A.method(a,\n    c, d)", []),
        ("m.py A.method(a)", ["m.A.method(..., c)"]),  # a call without c would fail
        ("m.py A.gone(a)", ["m.A.gone"]),
        ("m.py A(a)", ["m.A"]),
    ],
)
def test_what_is_missing(tmp_path: Path, table: str, expected: list[str]) -> None:
    (tmp_path / "m.py").write_text(_SOURCE)
    assert missing(tmp_path, table) == expected


def test_a_line_of_another_form_is_refused() -> None:
    with pytest.raises(ValueError, match="a line of a table must be"):
        read_table("m.py A field")


@pytest.mark.skipif(not is_installed(), reason="vLLM is not installed")
def test_the_installed_vllm_has_every_name() -> None:
    spec = importlib.util.find_spec("vllm")
    assert spec is not None and spec.origin is not None
    root = Path(spec.origin).parent
    assert {feature: gaps(root, feature) for feature in Feature} == {f: [] for f in Feature}
    line = line_of(root)
    assert line is not None
    fitting = [other for other in LINES if not missing(root, other.names)]
    assert fitting == [line], "the names of a line must tell it from every other"


@pytest.mark.parametrize("line", LINES, ids=lambda line: line.name)
def test_each_line_is_told_from_the_others(line: VLLMLine, tmp_path: Path) -> None:
    """A source with just the names of one line fits to no other line."""
    for entry in read_table(line.names):
        file = tmp_path / entry.file
        file.parent.mkdir(parents=True, exist_ok=True)
        *owner, name = entry.path
        if entry.is_call:
            body = f"def {name}({', '.join(entry.names)}): ..."
        else:
            owner, body = [name], "; ".join(f"{attribute} = None" for attribute in entry.names)
        text = f"class {owner[0]}:\n    {body}\n" if owner else f"{body}\n"
        file.write_text((file.read_text() if file.exists() else "") + text)
    assert [other.name for other in LINES if not missing(tmp_path, other.names)] == [line.name]
    assert line_of(tmp_path) is line


def test_measured_versions_are_known_without_reading_them(tmp_path: Path) -> None:
    assert look_up("0.24.0").line is v0_24.LINE
    assert look_up("0.30.0+cpu").line is v0_29.LINE
    empty = look_up("0.24.0", root=tmp_path)
    assert empty.line is None and not empty.is_measured
    assert set(empty.missing) == set(Feature)
    assert "more names in vLLM" in empty.why_not(Feature.bursts)
    assert look_up("0.30.0").why_not(Feature.bursts) == ""


ROOTS = {
    # Names of variables in accel/ that hold an object of vLLM, and its class in the tables.
    **{"runner": "GPUModelRunner", "self._runner": "GPUModelRunner"},
    **{"scheduler": "Scheduler", "self._scheduler": "Scheduler"},
    **{"core": "EngineCore", "self._core": "EngineCore"},
    **{"batch": "InputBatch", "request": "Request", "manager": "LoRAModelManager"},
    **{"module": "BaseLinearLayerWithLoRA", "states": "RequestState|SamplingStates"},
}
KNOWN_ELSEWHERE = {
    # Of torch's modules, and of objects that rlkit puts in vLLM's place.
    "GPUModelRunner": {"load_model", "postprocess_sampled"},
    "BaseLinearLayerWithLoRA": {"weight"},
    "LoRAModelManager": {"get_submodule"},
    "InputBatch": {"request_id", "append"},
}


def _uses(path: Path) -> Iterator[tuple[str, str]]:
    """Give (class of vLLM, attribute) of each access through one of ROOTS."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and (owner := ROOTS.get(ast.unparse(node.value))):
            yield owner, node.attr


def test_the_tables_name_what_the_fast_paths_use() -> None:
    held: dict[str, set[str]] = {}
    for table in [*TABLES.values(), *(line.names for line in LINES)]:
        for line in read_table(table):
            if line.path:
                names = {line.path[-1]} if line.is_call else set(line.names)
                held.setdefault(line.path[0], set()).update(names)
    absent = set()
    for path in Path(accel.__path__[0]).glob("*.py"):
        for owner, name in _uses(path):
            known = set().union(*(held.get(part, set()) for part in owner.split("|")))
            if name not in known | KNOWN_ELSEWHERE.get(owner, set()):
                absent.add(f"{path.name}: {owner}.{name}")
    assert not absent, "each must be in a table of compat/features.py"
