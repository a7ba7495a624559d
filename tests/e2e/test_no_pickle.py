"""A run writes no pickle: every file of its folder is of a kind that cannot run code."""

from __future__ import annotations

import io
import pickletools
import zipfile
from pathlib import Path

from cli_process import RunCLI
from safetensors import safe_open

KINDS = {
    *(".safetensors", ".json", ".jsonl", ".yaml", ".parquet", ".txt", ".md", ".html"),
    *(".png", ".svg", ".jinja", ".lock", ""),
}


def is_pickle(content: bytes) -> bool:
    """Whether a file is one pickle from its first byte on, or an archive, as torch.save makes."""
    if zipfile.is_zipfile(io.BytesIO(content)):
        return True
    if not content:
        return False
    try:
        names = [opcode.name for opcode, _, _ in pickletools.genops(content)]
    except Exception:  # no sequence of opcodes
        return False
    return names[-1] == "STOP"


def test_no_file_of_a_run_is_a_pickle(rlkit: RunCLI, small: list[str], tmp_path: Path) -> None:
    options = [o for o in small if not o.startswith("tracker.plot")]
    words = ["run_dir=run", *options, "algorithm=ppo", "optim.minibatches=2"]
    done = rlkit(*words)
    assert done.returncode == 0, done.stderr
    assert rlkit("eval", "--run", "run", "--samples", "1").returncode == 0
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    names = {path.relative_to(tmp_path / "run").as_posix() for path in files}
    assert {"report.html", "curves.png", "adapter/adapter_model.safetensors"} <= names
    assert any(name.startswith("checkpoints/") for name in names)
    assert any(name.startswith("rollouts/") for name in names)
    assert [name for name in names if Path(name).suffix not in KINDS] == []
    assert [path.name for path in files if is_pickle(path.read_bytes())] == []
    for path in files:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="np") as tensors:
                assert list(tensors.keys())


def test_pickles_would_be_seen(tmp_path: Path) -> None:
    import pickle

    import torch

    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        assert is_pickle(pickle.dumps({"a": [1.5, "b"]}, protocol=protocol))
    torch.save({"a": torch.zeros(2)}, tmp_path / "a.pt")
    assert is_pickle((tmp_path / "a.pt").read_bytes())
    assert not is_pickle(b'{"a": 1}') and not is_pickle(b"step: 1\n")
