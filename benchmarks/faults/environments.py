"""F7: environments that raise, hang, crash, leak or lie, in rounds and in a stream."""

from __future__ import annotations

from pathlib import Path

from environment_faults import DEADLINE_S, FAULTS, LEFTOVERS, Faulty
from episode_stage import talking_model
from tiny_tokenizers import byte_level_tokenizer

from benchmarks.faults.row import Row
from rlkit.environments import Admission


def run(count: int, folder: Path) -> Row:
    """Hit the second turn of one of three prompts with `count` faults in turn.

    Survived is a fault that costs these episodes alone: they have no reward and are said to have
    failed, with its kind. Other prompts and the next episodes are as ever, and no process is left.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = byte_level_tokenizer()
    model = talking_model(tokenizer)
    stages = [Faulty(folder, model, tokenizer, admission) for admission in Admission]
    names = [*FAULTS, *LEFTOVERS]
    survived, notes = 0, list[str]()
    for number in range(count):
        name = names[number // len(stages) % len(names)]
        problem = stages[number % len(stages)].problem(name)
        survived += not problem
        notes += [f"{name}: {problem}"] if problem else []
    kinds = len({names[number // len(stages) % len(names)] for number in range(count)})
    said = "; ".join(notes[:3]) or "other episodes are as ever, each is counted by its kind"
    note = f"{kinds} kinds, rounds and stream, a deadline of {DEADLINE_S} s a step; {said}"
    return Row("F7 environments that misbehave", count, survived, count - survived, note)
