"""Every row is rendered once before the first step: found, named, dropped, and remembered."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_tokenizers import byte_level_tokenizer

from rlkit.tasks import BadRows, Example, Message, Overlong, Split, SplitName
from rlkit.tasks.render import prompt_text
from rlkit.tasks.survey import Survey, survey, usable

TOKENIZER = byte_level_tokenizer()
TURNS = (Message("user", "hi"), Message("assistant", "hello"))
PROMPTS: list[str | tuple[Message, ...]] = ["zz", "zzzz", " ", "zzz", "a\ud800b", TURNS, "zzzzzz"]


def split_of(prompts: list[str | tuple[Message, ...]]) -> Split:
    examples = [Example(prompt=p, where=f"row {i} of f") for i, p in enumerate(prompts)]
    return Split(SplitName.train, examples.__getitem__, len(examples))


def found(prompts: list[str | tuple[Message, ...]], cache: Path) -> Survey:
    return survey(split_of(prompts), TOKENIZER, cache=cache, say=print, keep_after_s=0.0)


def test_lengths_and_problems_of_every_row(tmp_path: Path) -> None:
    lengths, problems = found(PROMPTS, tmp_path)
    assert lengths == [2, 4, 0, 3, 0, 0, 6]
    assert problems == {
        2: "row 2 of f must hold text, got only white space",
        4: "row 4 of f must be valid Unicode, got surrogates not allowed",
        5: "row 5 of f must end with the user, got assistant",
    }


def test_what_was_found_is_kept_by_content(tmp_path: Path) -> None:
    first = found(PROMPTS, tmp_path)
    (file,) = (tmp_path / "prompts").iterdir()
    assert found(PROMPTS, tmp_path) == first
    file.write_text(file.read_text().replace("[2, 4", "[9, 4"))
    assert found(PROMPTS, tmp_path).lengths[0] == 9  # it was read, not computed again
    file.write_text("broken")
    assert found(PROMPTS, tmp_path) == first
    found([*PROMPTS[:-1], "other"], tmp_path)
    other = byte_level_tokenizer(chat_template="{{ messages[0]['content'] }}")
    survey(split_of(PROMPTS), other, cache=tmp_path, say=print, keep_after_s=0.0)
    assert len(list((tmp_path / "prompts").iterdir())) == 3


def test_bad_rows_are_named_together(tmp_path: Path) -> None:
    here = found(PROMPTS, tmp_path)
    with pytest.raises(ValueError, match=r"3 of 7 train rows cannot .*row 2 .*row 4 .*row 5 "):
        usable(
            split_of(PROMPTS),
            here,
            max_length=9,
            overlong=Overlong.drop,
            bad_rows=BadRows.error,
        )
    with pytest.raises(ValueError, match=r"must be >= 6 for 2 of 7 .*got 3: row 1 of f has 4; row"):
        usable(
            split_of(PROMPTS),
            here,
            max_length=3,
            overlong=Overlong.error,
            bad_rows=BadRows.drop,
        )


def test_what_is_dropped_leaves_the_rest_in_order(tmp_path: Path) -> None:
    split, here = split_of(PROMPTS), found(PROMPTS, tmp_path)
    kept = usable(split, here, max_length=3, overlong=Overlong.drop, bad_rows=BadRows.drop)
    assert kept.split.size == 2
    assert [kept.split.get(i).prompt for i in range(2)] == ["zz", "zzz"]
    assert [note.split(":")[0] for note in kept.notes] == [
        "3 of 7 train rows left out",
        "2 of 7 train prompts over 3 tokens left out",
    ]
    cut = usable(split, here, max_length=3, overlong=Overlong.truncate_left, bad_rows=BadRows.drop)
    assert cut.split.size == 4
    with pytest.raises(ValueError, match=r"must leave train prompts, got 1: all 7 are longer"):
        usable(split, here, max_length=1, overlong=Overlong.drop, bad_rows=BadRows.drop)


def test_ten_thousand_rows_are_quick_and_equal_to_one_by_one(tmp_path: Path) -> None:
    prompts = [(Message("user", "z" * (i % 7 + 1)),) for i in range(10_000)]
    lengths, problems = found(list(prompts), tmp_path)
    assert not problems
    one = [len(TOKENIZER(_text(p), add_special_tokens=False)["input_ids"]) for p in prompts[:7]]
    assert lengths == (one * 1429)[:10_000]


def _text(prompt: tuple[Message, ...]) -> str:
    return prompt_text(Example(prompt=prompt), TOKENIZER, index=0)
