"""Users' data, templates and adapters are tried in a run, on the command line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from cli_process import RunCLI

REWARD = """
def score(prompts, completions, answer, **columns):
    print("scored", len(completions))
    return [float(text[0]["content"].count("a")) for text in completions]
"""


def write(path: Path, rows: Sequence[Mapping[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def own(small: list[str], tmp_path: Path) -> list[str]:
    """Overrides of a run on rows and a reward of the user's."""
    write(tmp_path / "held.jsonl", [{"q": f"held {i}?", "a": f"{i}/4"} for i in range(4)])
    (tmp_path / "mine.py").write_text(REWARD)
    options = [o for o in small if not o.startswith(("task=", "+reward"))]
    return [
        *options,
        "task=dataset",
        "task.path=rows.jsonl",
        "task.eval_path=held.jsonl",
        "task.max_completion_length=8",
        "task.max_prompt_length=64",
        "+task.columns.prompt=q",
        "+task.columns.answer=a",
        "+reward.functions.mine.fn=mine.py:score",
    ]


GOOD: list[dict[str, object]] = [{"q": f"row {i}?", "a": f"{i}/4"} for i in range(6)]


def test_bad_rows_are_named_before_training_and_dropped_on_resume(
    rlkit: RunCLI, own: list[str], tmp_path: Path
) -> None:
    write(tmp_path / "rows.jsonl", GOOD)
    assert rlkit("run_dir=run", *own, "steps=2").returncode == 0
    # The user adds rows that no step can use.
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
    write(tmp_path / "rows.jsonl", [*GOOD, {"q": turns, "a": "1"}, {"q": "long " * 50, "a": "1"}])
    own = [*own, "accept_changed_files=true"]
    refused = rlkit("run_dir=run", *own, "steps=4", "resume=auto")
    assert refused.returncode == 2
    assert "1 of 8 train rows cannot become prompts: row 6 of rows.jsonl must end" in refused.stderr
    refused = rlkit("run_dir=run", *own, "steps=4", "resume=auto", "task.bad_rows=drop")
    assert "for 1 of 8 train prompts, got 64: row 7 of rows.jsonl has" in refused.stderr
    cured = rlkit(
        "run_dir=run",
        *own,
        *("steps=4", "resume=auto", "task.bad_rows=drop", "task.overlong_prompts=drop"),
    )
    assert cured.returncode == 0, cured.stderr
    cut = ("task.bad_rows=drop", "task.overlong_prompts=truncate_left")
    other = rlkit("run_dir=run", *own, "resume=auto", *cut)
    assert "task.overlong_prompts must be drop as in the run being resumed" in other.stderr


def test_a_trl_reward_its_prints_its_seconds_and_the_gold_answers(
    rlkit: RunCLI, own: list[str], tmp_path: Path
) -> None:
    write(tmp_path / "rows.jsonl", GOOD)
    result = rlkit("run_dir=run", *own, "steps=1")
    assert result.returncode == 0, result.stderr
    assert "reward mine printed: scored 4" in (tmp_path / "run/log.txt").read_text()
    (line,) = [
        json.loads(text)
        for text in (tmp_path / "run/metrics.jsonl").read_text().split("\n")
        if text
    ]
    assert 0 < line["time/reward/mine"] < 10
    rows = pq.read_table(tmp_path / "run/completions/step-000000.parquet").to_pylist()
    assert all(row["task/answer"] == f"{row['prompt'].split('row ')[1][0]}/4" for row in rows)


def test_template_variables_are_recorded_and_used_by_generate(
    rlkit: RunCLI, own: list[str], tmp_path: Path, model_folder: Path
) -> None:
    write(tmp_path / "rows.jsonl", GOOD)
    folder = shutil.copytree(model_folder, tmp_path / "model")
    (folder / "chat_template.jinja").write_text(
        "{% if quiet %}Q:{% endif %}{% for m in messages %}{{ m.content }}{% endfor %}"
    )
    source = f"model.source={folder}"
    rest = [o for o in own if not o.startswith("model.source")]
    result = rlkit(
        "run_dir=run", source, *rest, "steps=1", "+model.chat_template_kwargs.quiet=true"
    )
    assert result.returncode == 0, result.stderr
    assert "with quiet=True" in result.stdout and "'Q:held" in result.stdout
    assert "stop tokens: </s>" in result.stdout
    saved = yaml.safe_load((tmp_path / "run/config.yaml").read_text())
    assert saved["model"]["chat_template_kwargs"] == {"quiet": True}
    wrong = rlkit("run_dir=other", source, *rest, "+model.chat_template_kwargs.date=x")
    assert "must hold variables of the template, got date" in wrong.stderr
    changed = rlkit("run_dir=run", source, *rest, "resume=auto")
    assert changed.returncode == 2 and "model.chat_template_kwargs" in changed.stderr
