"""The private names of other libraries, in the modules that check them and in no other.

Private is what begins with an underscore, in a library or on its objects, and also the names of
transformers' classes as strings: a release may change either without a word.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from types import MappingProxyType

import pytest

from rlkit.runtime.private_names import MissingName, find, require_names

ROOT = Path(__file__).parent.parent

LISTED = MappingProxyType(
    {
        "rlkit/models/compat.py": {
            *("_attn_implementation", "_commit_hash", "_gradient_checkpointing_func"),
            *("LlamaRMSNorm", "MistralRMSNorm", "Qwen2RMSNorm", "Qwen3RMSNorm"),
            *("LlamaMLP", "MistralMLP", "Qwen2MLP", "Qwen3MLP"),
            *("LlamaAttention", "Qwen2Attention", "Qwen3Attention"),
            *("CohereDecoderLayer", "GemmaDecoderLayer", "GraniteDecoderLayer"),
            *("LlamaDecoderLayer", "MistralDecoderLayer", "Phi3DecoderLayer"),
            *("Qwen2DecoderLayer", "Qwen3DecoderLayer", "SmolLM3DecoderLayer"),
        },
        "rlkit/runtime/torch_compat.py": {
            *("_C", "_accelerator_setAllocatorSettings", "_set_allocator_settings"),
            *("_foreach_copy_", "_foreach_mul", "_foreach_mul_", "_foreach_norm"),
            *("_version", "_cdata"),
            *("_flash_attention_forward", "_flash_attention_backward", "_schema"),
            *("_get_nvml_device_index", "_python_dispatch", "_pytree"),
        },
        "rlkit/runtime/torch_dynamo.py": {"_dynamo"},
        "rlkit/launch/hydra_compat.py": {"_internal", "_apply_overrides_to_config"},
        # The standard library's: what multiprocessing does at the end of its own forks.
        "rlkit/launch/fork_server.py": {"_run_exitfuncs"},
    }
)
"""Module -> every private name in it."""
FREE = (
    "rlkit/generation/vllm/",  # vLLM's, and torch's inside vLLM's processes
    "rlkit/bench/",  # the insides of the trainers that are measured
    "kernels/_bench_peers.py",
    "benchmarks/",
)
SHIPPED = ("rlkit", "algorithms", "kernels", "rewards")
DOCUMENTED = {"_asdict", "_replace", "_make", "_fields", "_exit", "_self_"}
"""Public in spite of the underscore: named tuples', os's and Hydra's."""

_LIBRARIES = r"(?:torch|transformers|hydra|omegaconf|vllm|bitsandbytes|triton|peft)"
_PLACE = re.compile(rf"^{_LIBRARIES}(?:[.:]\w+)+$")
_LAYER = re.compile(
    r"^(?:Cohere|Gemma|Granite|Llama|Mistral|Phi|Qwen|SmolLM)\d?"
    r"(?:RMSNorm|MLP|Attention|DecoderLayer|ForCausalLM|Model)$"
)


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name not in DOCUMENTED


def parts(dotted: str) -> Iterator[str]:
    yield from filter(is_private, re.split(r"[.:]", dotted))


def own_names(tree: ast.Module) -> set[str]:
    """Private names that the module itself defines: attributes of self, methods, fields."""
    own = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            own.add(node.name)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            own.add(node.target.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            own |= {node.attr} if _is_self(node.value) else set()
    return own


def _is_self(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id in ("self", "cls")


def private_names(source: str) -> Iterator[tuple[int, str]]:
    """(line, name) of every private name of another library in `source`."""
    tree = ast.parse(source)
    own = own_names(tree)
    for node in ast.walk(tree):
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            if not _is_self(node.value) and node.attr not in own:
                yield line, node.attr
        elif isinstance(node, ast.Import):
            yield from ((line, name) for alias in node.names for name in parts(alias.name))
        elif isinstance(node, ast.ImportFrom) and not (node.module or "").startswith("rlkit"):
            names = [node.module or "", *(alias.name for alias in node.names)]
            yield from ((line, name) for dotted in names for name in parts(dotted))
        elif isinstance(node, ast.Call) and _reads_attribute(node.func) and len(node.args) > 1:
            name = node.args[1]
            if isinstance(name, ast.Constant) and is_private(str(name.value)):
                yield line, str(name.value)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            if _PLACE.match(node.value):
                yield from ((line, name) for name in parts(node.value))
            elif _LAYER.match(node.value):
                yield line, node.value
        elif isinstance(node, ast.JoinedStr) and "aten." in ast.unparse(node):
            yield from ((line, name) for name in parts(re.sub(r"\W", ".", ast.unparse(node))))


def _reads_attribute(function: ast.expr) -> bool:
    return isinstance(function, ast.Name) and function.id in (
        *("getattr", "hasattr", "setattr", "delattr"),
    )


def shipped() -> Iterator[Path]:
    for folder in SHIPPED:
        # A link below rlkit/ leads to a folder that is named itself.
        for path in sorted((ROOT / folder).rglob("*.py")):
            if not any(parent.is_symlink() for parent in path.parents if parent != ROOT):
                yield path


@pytest.mark.parametrize("path", list(shipped()), ids=lambda p: str(p.relative_to(ROOT)))
def test_private_names_stand_in_their_modules_only(path: Path) -> None:
    name = str(path.relative_to(ROOT))
    if name.startswith(FREE):
        return
    found = list(private_names(path.read_text()))
    listed = LISTED.get(name, set())
    for line, private in found:
        assert private in listed, (
            f"{name}:{line}: {private} is private to another library: "
            f"take it through a compat module (rlkit/runtime/private_names.py) and list it here"
        )


def test_nothing_is_listed_that_is_not_used() -> None:
    for name, listed in LISTED.items():
        # The operators' names are put together from a table, where they are plain words.
        text = (ROOT / name).read_text()
        assert {private for private in listed if private not in text} == set()
        found = {private for _, private in private_names(text)}
        assert found <= listed


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import torch\ntorch._foreach_neg_([])", ["_foreach_neg_"]),
        ("import torch\ntorch._C._cuda_clearCublasWorkspaces()", ["_C", "_cuda_clear"]),
        ("from hydra._internal.utils import run", ["_internal"]),
        ("import vllm._custom_ops", ["_custom_ops"]),
        ("getattr(model, '_attn_implementation', None)", ["_attn_implementation"]),
        ("torch.ops.aten._flash_attention_forward(q)", ["_flash_attention_forward"]),
        ("names = ('Qwen3MLP',)", ["Qwen3MLP"]),
        ("importlib.import_module('torch._dynamo')", ["_dynamo"]),
        ("class A:\n  def f(self, other):\n    self._x = 1\n    return other._x", []),
        ("case._replace(a=1)._asdict()", []),
        ("os._exit(1)", []),
    ],
)
def test_the_search_finds_each_way_of_writing_one(source: str, found: list[str]) -> None:
    names = sorted(name for _, name in private_names(source))
    assert len(names) == len(found)
    assert all(name.startswith(start) for name, start in zip(names, sorted(found), strict=True))


def test_a_missing_name_is_one_line_that_names_library_version_and_name() -> None:
    assert find("torch:Tensor.no_such_name") is None
    assert find("no_such_library:name") is None
    require_names("torch", "torch:Tensor")
    with pytest.raises(MissingName) as caught:
        require_names("torch", "torch:Tensor", "torch:Tensor._gone")
    message = str(caught.value)
    assert "torch must have torch.Tensor._gone, got torch " in message
    assert "\n" not in message
