"""Write made-up posts with one-sentence summaries, in the manner of TL;DR: train.jsonl, eval.jsonl.

python experiments/judge/posts.py FOLDER
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

NAMES = (
    *("Anna", "Boris", "Clara", "David", "Elena", "Felix", "Greta", "Henry", "Irene", "Jakob"),
    *("Karla", "Louis", "Marta", "Nadia", "Oscar", "Petra", "Quinn", "Rosa", "Simon", "Tilda"),
)
RELATIONS = ("sister", "brother", "boss", "neighbour", "roommate", "cousin", "uncle", "teacher")
ACTIONS = {
    "sell": "sell the old car",
    "move": "move to another city",
    "adopt": "adopt a second dog",
    "quit": "quit the job at the bakery",
    "study": "study law in the evenings",
    "travel": "travel alone for a year",
    "marry": "marry before the summer",
    "lend": "lend money to a friend",
}
REASONS = {
    "rent": "the rent has gone up again",
    "health": "the doctor is worried about my health",
    "trust": "we do not trust each other any more",
    "noise": "the noise at night keeps me awake",
    "debt": "a debt has to be paid by March",
    "lonely": "I have felt lonely since the winter",
}
FILLER = (
    "I have thought about this for weeks.",
    "It all began last autumn, when nothing seemed to work.",
    "Sorry for the long text, I write this on my phone.",
    "My friends all say something else.",
    "I do not want to hurt anybody.",
    "We have talked about it twice, and both times it ended badly.",
)


def words_of(number: int, *, seed: int) -> dict[str, str]:
    """Return the facts of post `number` by one word each, and its age and filler."""
    draw = random.Random(f"{seed}:{number}")
    name, other = draw.sample(NAMES, 2)
    first, second = draw.sample(FILLER, 2)
    return {
        **{"name": name, "other": other, "relation": draw.choice(RELATIONS)},
        **{"action": draw.choice(list(ACTIONS)), "reason": draw.choice(list(REASONS))},
        **{"age": str(draw.randint(19, 60)), "first": first, "second": second},
    }


def post(number: int, *, seed: int) -> dict[str, str]:
    """Return post `number`: the prompt, and the reference summary as `answer`."""
    fact = words_of(number, seed=seed)
    name, other, relation = fact["name"], fact["other"], fact["relation"]
    action = ACTIONS[fact["action"]]
    text = (
        f"I am {name}, {fact['age']}. {fact['first']} My {relation} {other} says that I should "
        f"{action}. The trouble is that {REASONS[fact['reason']]}. {fact['second']} "
        "What should I do?"
    )
    summary = f"{name}'s {relation} {other} wants {name} to {action}, but {fact['reason']} matters."
    return {"prompt": f"Summarise this post in one short sentence.\n\n{text}", "answer": summary}


def draft(number: int, *, seed: int) -> str:
    """Return a mediocre summary of a post: facts are missing or wrong, and filler is in it.

    A policy that imitates drafts cannot know which fact will be wrong, so its samples differ.
    """
    fact = words_of(number, seed=seed)
    draw = random.Random(f"draft:{seed}:{number}")
    pools = {"other": NAMES, "action": tuple(ACTIONS), "reason": tuple(REASONS)}
    for key, pool in pools.items():
        if draw.random() < 1 / 3:
            fact[key] = draw.choice(pool)
    who = fact["name"] if draw.random() < 2 / 3 else "Somebody"
    text = f"{who}'s {fact['relation']} {fact['other']} wants"
    text += f" {who if who != 'Somebody' else 'them'} to {ACTIONS[fact['action']]}"
    text += f", but {fact['reason']} matters." if draw.random() < 2 / 3 else "."
    return f"{text} {draw.choice(FILLER)}" if draw.random() < 1 / 2 else text


def main(folder: Path) -> None:
    """Write 400 posts to train on and 64 others."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, seed, count in (("train", 0, 400), ("eval", 1, 64)):
        rows = (
            json.dumps(post(i, seed=seed) | {"draft": draft(i, seed=seed)}) + "\n"
            for i in range(count)
        )
        (folder / f"{name}.jsonl").write_text("".join(rows))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
