"""This module looks at every row before the first step: does it become a prompt, how long is it?

A row that cannot be rendered would otherwise end the run in the step that meets it. What was found
is kept in the cache by content: the rows, the chat template and the tokenizer. Prompts are kept as
lengths only and are rendered again in their step, so that a large data set takes no memory.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.progress import Progress
from transformers import PreTrainedTokenizerBase

from rlkit.runtime.files import published
from rlkit.tasks.base import Example, Split
from rlkit.tasks.config import BadRows, Overlong
from rlkit.tasks.data import DROP_HINT, several
from rlkit.tasks.render import place, prompt_text

_BATCH = 512
"""Rows tokenised by one call, which spreads them over the processor's cores."""
_SHOW_AFTER_S = 2.0
_SAY_EVERY_S = 10.0
_KEEP_AFTER_S = 1.0
_VERSION = 1
"""Changes when the rules of rendering do, so that old findings are not trusted."""


class Survey(NamedTuple):
    """A survey holds what was found about the rows of a split."""

    lengths: list[int]
    """Tokens of each prompt; 0 where the row cannot become one."""
    problems: dict[int, str]
    """Why, by index: one line that names the row."""


class Usable(NamedTuple):
    """This is a split of which every row can be used."""

    split: Split
    notes: list[str]
    """Rows that were left out or shortened, one line each."""


def survey(
    split: Split,
    tokenizer: PreTrainedTokenizerBase,
    *,
    cache: Path,
    say: Callable[[str], None],
    keep_after_s: float = _KEEP_AFTER_S,
) -> Survey:
    """Render and tokenise every row of a finite split.

    Args:
        split: The split; its `size` is a number.
        tokenizer: The model's tokenizer, with its chat template.
        cache: Folder for what was found.
        say: Gets a line of progress from 2 s on where there is no terminal for a bar.
        keep_after_s: Seconds from which the findings are worth a file; >= 0.

    Returns:
        Lengths and problems, of this call or of an earlier one on the same content.
    """
    examples = [split.get(i) for i in range(split.size or 0)]
    file = cache / "prompts" / f"{_content_hash(examples, tokenizer)}.json"
    if (known := _read(file, len(examples))) is not None:
        return known
    start = time.monotonic()
    found = Survey([], {})
    with _Bar(len(examples), f"checking {split.name.value} prompts", say) as bar:
        for first in range(0, len(examples), _BATCH):
            _add(found, list(enumerate(examples[first : first + _BATCH], first)), tokenizer)
            bar.show(len(found.lengths))
    if time.monotonic() - start >= keep_after_s:
        _write(file, found)
    return found


def usable(
    split: Split, found: Survey, *, max_length: int, overlong: Overlong, bad_rows: BadRows
) -> Usable:
    """Return the rows of `split` that a run can use.

    Args:
        split: The split that `found` is about.
        found: Its survey.
        max_length: Most tokens of a prompt, >= 1.
        overlong: What becomes of longer prompts.
        bad_rows: What becomes of rows that cannot become prompts.

    Returns:
        The split without the rows that are dropped.

    Raises:
        ValueError: There are bad rows or long prompts and they may not be dropped, or nothing is
            left. Each row is named, the first few in full.
    """
    name, size = split.name.value, len(found.lengths)
    if found.problems and bad_rows is BadRows.error:
        bad = several(list(found.problems.values()))
        raise ValueError(
            f"{len(found.problems)} of {size} {name} rows cannot become prompts: {bad}{DROP_HINT}"
        )
    long = [i for i, length in enumerate(found.lengths) if length > max_length]
    if long and overlong is Overlong.error:
        raise ValueError(
            f"task.max_prompt_length must be >= {max(found.lengths)} for {len(long)} of {size} "
            f"{name} prompts, got {max_length}: {_lengths(split, found, long)} "
            "(or set task.overlong_prompts=drop or truncate_left)"
        )
    dropped = set(found.problems) | (set(long) if overlong is Overlong.drop else set())
    notes = []
    if found.problems:
        bad = several(list(found.problems.values()))
        notes.append(f"{len(found.problems)} of {size} {name} rows left out: {bad}")
    if long:
        done = "left out" if overlong is Overlong.drop else "cut on the left"
        shown = _lengths(split, found, long)
        notes.append(
            f"{len(long)} of {size} {name} prompts over {max_length} tokens {done}: {shown}"
        )
    if not dropped:
        return Usable(split, notes)
    kept = [i for i in range(size) if i not in dropped]
    if not kept:
        reason = "longer" if not found.problems else "longer, or cannot become prompts"
        raise ValueError(
            f"task.max_prompt_length must leave {name} prompts, got {max_length}: all {size} are "
            f"{reason}"
        )
    return Usable(split._replace(get=lambda i: split.get(kept[i]), size=len(kept)), notes)


def _add(
    found: Survey,
    batch: Sequence[tuple[int, Example]],
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    """Enter what one batch of rows gives."""
    texts: dict[int, str] = {}
    for index, example in batch:
        try:
            texts[index] = prompt_text(example, tokenizer, index=index)
        except ValueError as error:
            found.problems[index] = str(error)
    lengths = dict.fromkeys((index for index, _ in batch), 0)
    for raw in (True, False):  # only plain text gets the tokenizer's own special tokens
        chosen = [i for i, e in batch if i in texts and isinstance(e.prompt, str) is raw]
        if chosen:
            rows = tokenizer([texts[i] for i in chosen], add_special_tokens=raw)["input_ids"]
            lengths.update(zip(chosen, map(len, rows), strict=True))
    for index, example in batch:
        found.lengths.append(lengths[index])
        if not lengths[index] and index in texts:
            found.problems[index] = f"{place(example, index)} must have tokens, got none"


def _lengths(split: Split, found: Survey, indices: Sequence[int]) -> str:
    return several([f"{place(split.get(i), i)} has {found.lengths[i]}" for i in indices])


def _content_hash(examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a hash of everything that the lengths and the problems depend on."""
    digest = hashlib.sha256(f"{_VERSION} {tokenizer.chat_template}".encode(errors="replace"))
    backend = getattr(tokenizer, "backend_tokenizer", None)
    words = backend.to_str() if backend is not None else json.dumps(tokenizer.get_vocab())
    digest.update(words.encode(errors="replace"))
    digest.update(repr(tokenizer.special_tokens_map).encode(errors="replace"))
    for example in examples:
        # `ascii` keeps half a surrogate pair apart from a question mark.
        digest.update(ascii((example.where, example.prompt)).encode())
    return digest.hexdigest()[:32]


def _read(file: Path, size: int) -> Survey | None:
    """Return what an earlier run found; None when there is nothing of use."""
    try:
        record = json.loads(file.read_text())
        found = Survey(
            [int(length) for length in record["lengths"]],
            {int(index): str(problem) for index, problem in record["problems"].items()},
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return found if len(found.lengths) == size else None


def _write(file: Path, found: Survey) -> None:
    """Keep what was found; a cache that cannot be written costs the next run some seconds."""
    record = {"lengths": found.lengths, "problems": found.problems}
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        with published(file) as scratch:
            scratch.write_text(json.dumps(record))


class _Bar:
    """A bar shows progress on a terminal, lines elsewhere, and nothing in the first two seconds."""

    def __init__(self, total: int, label: str, say: Callable[[str], None]) -> None:
        self._total, self._label, self._say = total, label, say
        self._due = time.monotonic() + _SHOW_AFTER_S
        self._bar: Progress | None = None

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show(self, done: int) -> None:
        """Show that `done` rows are done."""
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=done)
        elif time.monotonic() >= self._due and done < self._total:
            if sys.stderr.isatty():
                self._bar = Progress(console=Console(stderr=True), transient=True)
                self._bar.add_task(self._label, total=self._total, completed=done)
                self._bar.start()
            else:
                self._say(f"{self._label}: {done} of {self._total}")
                self._due += _SAY_EVERY_S
