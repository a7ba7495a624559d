"""A start reads each file of the model once: what it found out is handed on, not asked again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

import rlkit
from rlkit.cli.check_run import plan_lines

READERS = (AutoConfig, AutoTokenizer, AutoModelForCausalLM)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each reader of transformers is called, by whomever, itself included."""
    found: Counter[str] = Counter()

    def counted(name: str, read: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            found[name] += 1
            return read(*arguments, **options)

        return call

    for reader in READERS:
        read = counted(reader.__name__, reader.from_pretrained)
        monkeypatch.setattr(reader, "from_pretrained", read)
    return found


def test_a_run_reads_config_tokenizer_and_weights_once(
    small: list[str], tmp_path: Path, calls: Counter[str]
) -> None:
    result = rlkit.train(*small, f"run_dir={tmp_path / 'run'}")
    assert result.run_dir.is_dir()
    assert calls == {reader.__name__: 1 for reader in READERS}


def test_a_check_reads_config_and_tokenizer_once_and_no_weights(
    small: list[str], tmp_path: Path, calls: Counter[str]
) -> None:
    assert list(plan_lines([*small, "device=cpu", f"run_dir={tmp_path / 'run'}"]))
    assert calls == {"AutoConfig": 1, "AutoTokenizer": 1}
