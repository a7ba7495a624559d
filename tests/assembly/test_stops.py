"""What ends a completion, before a weight is read."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.random_model import write_random_model
from rlkit import compose
from rlkit.assembly.stops import stops_before_loading
from rlkit.models.resolved import resolve_model
from rlkit.tasks import build_task


def test_vllm_guesses_no_tokens_beside_a_stop_string(tmp_path: Path) -> None:
    """vLLM's own loop, which looks for the string, would silently go on without guesses."""
    write_random_model(tmp_path / "tiny", "tiny", dtype=torch.float32)
    words = ("run_dir=unused", f"model.source={tmp_path / 'tiny'}", "task=max_of_n")
    for generator, kind, refused in (
        ("vllm", "ngram", True),
        ("vllm", "none", False),
        ("hf", "ngram", False),
    ):
        config = compose(*words, f"generator={generator}", f"generator.speculation.kind={kind}")
        model = resolve_model(config.model, device=torch.device("cpu"), say=lambda _: None)
        task = build_task(config.task)
        assert task.stop == ("\n",)
        if not refused:
            assert stops_before_loading(config, task, model).strings == ("\n",)
            continue
        with pytest.raises(ValueError, match=r"^task\.stop must be \[\] with .*ngram and vLLM"):
            stops_before_loading(config, task, model)
