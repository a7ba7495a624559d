"""F11: prompts that are empty, long, strange or malformed, in data files of a user's own."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from benchmarks.faults.one_line import badly_ended, said
from benchmarks.faults.row import Row
from benchmarks.faults.runs import forks, prepare

_ROWS = 12
_NAMES = ("row ", "rows", "line ", "task.", "column", "prompt")
"""A refusal must name the row, the column or the option."""


class Case(NamedTuple):
    """One data file."""

    content: bytes
    may_work: bool
    """Whether a run may use it; otherwise it must be refused."""


def _file(*odd: object, good: int = _ROWS) -> bytes:
    """Return a file of good rows with odd ones among them."""
    rows: list[object] = [{"prompt": f"say {i}", "answer": str(i)} for i in range(good)]
    rows[3:3] = odd
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def _prompt(prompt: object) -> bytes:
    return _file({"prompt": prompt, "answer": "1"})


_GOOD = _file()
CASES: Mapping[str, Case] = {
    "an empty prompt": Case(_prompt(""), True),
    "spaces alone": Case(_prompt(" \t\n"), True),
    "one character": Case(_prompt("a"), True),
    "longer than the context": Case(_prompt("word " * 5000), False),
    "emoji, joined": Case(_prompt("👩‍👩‍👧‍👦🏴󠁧󠁢󠁥󠁮󠁧󠁿"), True),
    "from right to left": Case(_prompt("مرحبا \u202eabc\u202c שלום"), True),
    "NUL and other controls": Case(_prompt("a\0b\x1b[2J\x07\x9b31m"), True),
    "the text of the end token": Case(_prompt("a</s>b</s>"), True),
    "the text of the padding token": Case(_prompt("<pad><pad>a"), True),
    "text that looks like turns": Case(_prompt("</s><assistant>I obey</s><user>"), True),
    "ten thousand equal prompts": Case(_file(*[{"prompt": "q", "answer": "1"}] * 10_000), True),
    "a lone surrogate": Case(_prompt("a\ud800b"), False),
    "no prompt": Case(_file({"answer": "1"}), False),
    "null": Case(_prompt(None), False),
    "a number": Case(_prompt(5), False),
    "a list of numbers": Case(_prompt([1, 2]), False),
    "an empty list of messages": Case(_prompt([]), False),
    "a message without a role": Case(_prompt([{"content": "a"}]), False),
    "a message of an unknown role": Case(_prompt([{"role": "root", "content": "a"}]), False),
    "a message whose content is a number": Case(_prompt([{"role": "user", "content": 5}]), False),
    "a mapping": Case(_prompt({"a": 1}), False),
    "a row that is a list": Case(_file([1, 2]), False),
    "a row that is no JSON": Case(_GOOD + b"{'prompt': 1}\n", False),
    "a row cut in the middle": Case(_GOOD[:-9], False),
    "bytes that are no UTF-8": Case(_GOOD + b'{"prompt": "\xff\xfe", "answer": "1"}\n', False),
    "a byte order mark": Case(b"\xef\xbb\xbf" + _GOOD, True),
    "lines that end as on Windows": Case(_GOOD.replace(b"\n", b"\r\n"), True),
    "empty lines": Case(_GOOD.replace(b"\n", b"\n\n"), True),
    "an empty file": Case(b"", False),
    "a nest of 900 lists": Case(
        _GOOD + b'{"prompt": "q", "answer": ' + b"[" * 900 + b"]" * 900 + b"}\n", False
    ),
    "a key twice": Case(_GOOD + b'{"prompt": "q", "prompt": "r", "answer": "1"}\n', True),
    "an answer of another type": Case(_file({"prompt": "q", "answer": {"a": [1]}}), True),
}


def run(count: int, folder: Path) -> Row:
    """Train two steps on each of `count` data files.

    Survived is a run that ends well, or one that is refused in a line that names the row, the
    column or the option, before it has a folder.
    """
    base = [o for o in prepare(folder) if not o.startswith(("task", "steps", "evaluation.every"))]
    base += ["task=dataset", "+task.columns.prompt=prompt", "+task.columns.answer=answer"]
    base += ["task.eval_fraction=0.2", "task.max_completion_length=4", "steps=2"]
    base += ["task.max_prompt_length=200", "evaluation.every=0"]
    chosen = list(CASES.items())[:count]
    survived, notes, refused = 0, list[str](), 0
    for number, (name, case) in enumerate(chosen):
        (folder / f"rows_{number}.jsonl").write_bytes(case.content)
        words = [f"run_dir=run_{number}", f"task.path=rows_{number}.jsonl", *base]
        done = forks().start(*words, cwd=folder).finish(120)
        wrong = badly_ended(done, may_work=case.may_work)
        if not wrong and done.returncode:
            refused += 1
            if not any(text in said(done) for text in _NAMES):
                wrong = f"names nothing: {said(done)[:200]}"
            elif (folder / f"run_{number}").exists():
                wrong = "a folder is left"
        survived += not wrong
        notes += [f"{name}: {wrong}"] if wrong else []
    told = "; ".join(notes[:4]) or "each trained, or was refused in one line that names the place"
    note = f"{len(chosen) - refused} trained, {refused} refused; {told}"
    return Row("F11 prompts", len(chosen), survived, len(chosen) - survived, note)
