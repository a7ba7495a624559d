"""The configuration of a short run of a model in a folder over rows of a test's own."""

from __future__ import annotations

import json
from pathlib import Path

from rlkit.config import Config
from rlkit.launch.composing import register
from rlkit.launch.preflight import preflight


def run_config(folder: Path, rows: list[dict[str, str]], tmp_path: Path, *overrides: str) -> Config:
    """A run over `rows` with the model in `folder`."""
    register()
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (config,) = preflight(
        [
            "task=dataset",
            f"task.path={file}",
            "+task.columns.prompt=prompt",
            "+task.columns.answer=answer",
            "task.eval_fraction=0.2",
            "reward=vowels",
            "task.max_completion_length=8",
            "task.max_prompt_length=40",
            f"model.source={folder}",
            "evaluation.num_prompts=2",
            "steps=1",
            "generator=hf",
            "memory.dry_run=off",
            f"run_dir={tmp_path / 'run'}",
            *overrides,
        ]
    )
    return config
