"""Files and runs that a page assumes its reader to have, small enough for a test."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from byte_model import TEMPLATE
from code_blocks import ROOT
from tiny_classifiers import write_classifier

QUESTIONS = [f"What is {a} plus {b}?" for a in range(2, 8) for b in range(1, 5)]
ANSWERS = [str(a + b) for a in range(2, 8) for b in range(1, 5)]
TRAINER = """
from trl import GRPOConfig

config = GRPOConfig(learning_rate=1e-5, num_generations=8, max_steps=200, beta=0.04)
"""
ENVIRONMENT = """
from rlkit.environments import Turn


class Mine:
    def start(self, example, seed):
        return {"answer": example.columns["answer"]}, Turn()

    def step(self, state, action):
        return state, Turn(reward=float(state["answer"] in action.text), done=True)
"""
JUDGE = """
from rlkit.rewards import per_sample


@per_sample
def score(completion, *, api_key):
    assert api_key == "..."
    return float(len(completion.text))
"""
REWARDS = """
from rlkit.rewards import per_sample


@per_sample
def score(completion):
    return float(completion.prompt.columns["answer"] in completion.text)
"""


def prepare(page: str, folder: Path) -> None:
    """Write what the reader of a page has beforehand.

    Args:
        page: The page, as a path from the root.
        folder: The reader's folder.
    """
    for name, text in TEXTS.get(page, {}).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    if page == "docs/algorithms.md" and not (folder / "my_algorithm.py").exists():
        shutil.copy(ROOT / "examples/my_algorithm.py", folder)
    if page == "docs/coming_from/verl.md":
        pq.write_table(pa.table({"prompt": QUESTIONS, "answer": ANSWERS}), folder / "my.parquet")
    write_gsm8k(folder / "path/to/gsm8k")
    if page == "docs/judges.md":
        classifier = folder / "Skywork/Skywork-Reward-V2-Qwen3-0.6B"
        write_classifier(classifier, "own pad")
        (classifier / "chat_template.jinja").write_text(TEMPLATE)


def write_gsm8k(folder: Path) -> None:
    """Write data in GSM8K's form."""
    folder.mkdir(parents=True)
    solved = [f"It is <<{a}+0={a}>>{a}.\n#### {a}" for a in ANSWERS]
    for name, half in (("train", slice(18)), ("test", slice(18, None))):
        lines = rows(question=QUESTIONS[half], answer=solved[half])
        (folder / f"{name}.jsonl").write_text(lines)


def rows(**columns: Sequence[object]) -> str:
    """Return rows as JSON, one a line."""
    values = zip(*columns.values(), strict=True)
    return "".join(json.dumps(dict(zip(columns, row, strict=True))) + "\n" for row in values)


PAIRS = rows(prompt=QUESTIONS, chosen=ANSWERS, rejected=[f"not {a}" for a in ANSWERS])
TEXTS: dict[str, dict[str, str]] = {
    "README.md": {"train.py": TRAINER},
    "docs/coming_from/trl.md": {"train.py": TRAINER},
    "docs/data.md": {
        "my.jsonl": rows(question=QUESTIONS, solution=ANSWERS),
        "my_rewards.py": REWARDS,
    },
    "docs/environments.md": {
        "my.jsonl": rows(question=QUESTIONS, answer=ANSWERS),
        "my_environment.py": ENVIRONMENT,
        "mine.jsonl": rows(prompt=QUESTIONS, answer=ANSWERS),
        "mine.py": ENVIRONMENT,
    },
    "docs/howto/hydra.md": {"my.jsonl": rows(question=QUESTIONS, answer=ANSWERS)},
    "docs/judges.md": {"preferences.jsonl": PAIRS},
    "docs/rewards.md": {
        "code.jsonl": rows(
            question=[f"Write a function f that returns {a}." for a in ANSWERS],
            tests=[[f"assert f() == {a}"] for a in ANSWERS],
        )
    },
    "docs/security.md": {"judge.py": JUDGE},
    "docs/tasks.md": {"pairs.jsonl": PAIRS},
}


def make_runs(words: Sequence[str], folder: Path, train: Callable[..., None]) -> None:
    """Train the runs that a command reads and that no command of the page has made.

    Args:
        words: The words of the command.
        folder: The reader's folder.
        train: It trains a run with the options given.
    """
    if "model.adapter=sft/adapter" in words and not (folder / "sft").exists():
        train("run_dir=runs/sft", "task=max_of_n")
        shutil.copytree(folder / "runs/sft/adapter", folder / "sft/adapter")
    for name in re.findall(r"(?<!\S)(?:run_dir=)?(runs/\w+)", " ".join(words)):
        if name == "runs/copy":  # of the run that the page names before it
            shutil.copytree(folder / "runs/long", folder / name)
        elif not (folder / name).exists():
            train(f"run_dir={name}", "task=max_of_n")
