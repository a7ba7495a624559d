"""Find the special tokens that end a turn, and those that a completion's text leaves out."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MARK = "rlkit-end-of-turn"
_TAG = re.compile(r"</?[A-Za-z]\w*>")


class Stops(NamedTuple):
    """This record holds the stop tokens and the stop strings of a run."""

    ids: frozenset[int]
    strings: tuple[str, ...]
    """Those that are ordinary text."""


def special_ids(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """Return the tokens that decoding without special tokens leaves out, by their text."""
    added = {t.content: i for i, t in tokenizer.added_tokens_decoder.items() if t.special}
    named = dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=False))
    return {str(text): int(token_id) for text, token_id in {**named, **added}.items()}


def end_of_turn_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Return the id of the special token that the chat template writes after an assistant's turn.

    A base model with a ChatML template lists only `<|endoftext|>` as its end and would write on
    after `<|im_end|>`. The set is empty where the template ends a turn in ordinary text, or cannot
    render an assistant's turn.
    """
    if not tokenizer.chat_template:
        return frozenset()
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": _MARK}]
    try:
        text = str(tokenizer.apply_chat_template(turns, tokenize=False))
    except Exception:  # a template is a program of the model's author, with its own errors
        return frozenset()
    _, found, rest = text.rpartition(_MARK)
    ids = tokenizer(rest.lstrip(), add_special_tokens=False)["input_ids"] if found else []
    first = ids[:1]
    return frozenset(int(i) for i in first if i in special_ids(tokenizer).values())


def stops_of(
    tokenizer: PreTrainedTokenizerBase, ids: Iterable[int], strings: Iterable[str]
) -> Stops:
    """Turn stop strings that are special tokens into stop tokens.

    Args:
        tokenizer: The model's tokenizer.
        ids: Ids that end a completion already.
        strings: The stop strings of the task and of the generator.

    Returns:
        All stop ids, and the strings that are ordinary text.

    Raises:
        ValueError: A string has a special token and more; it could never match, because stop
            strings are looked for in text without special tokens.
    """
    special = special_ids(tokenizer)
    strings = tuple(strings)
    for string in strings:
        inside = [token for token in special if token in string and token != string]
        if string not in special and inside:
            raise ValueError(
                f"task.stop must hold ordinary text or one special token alone, got {string!r}, "
                f"which has the special token {inside[0]}"
            )
    found = {special[string] for string in strings if string in special}
    return Stops(frozenset(ids) | found, tuple(s for s in strings if s not in special))


def describe_ids(tokenizer: PreTrainedTokenizerBase, ids: Collection[int]) -> str:
    """Return `<|im_end|> (2), </s> (7)` for the ids 2 and 7."""
    texts = tokenizer.convert_ids_to_tokens(sorted(ids))
    return ", ".join(f"{t} ({i})" for t, i in zip(texts, sorted(ids), strict=True)) or "none"


def completion_decoder(
    tokenizer: PreTrainedTokenizerBase, *, keep: bool, ends: Collection[int]
) -> Callable[[Sequence[int]], str]:
    """Return the function from sampled ids to the text that rewards see.

    Args:
        tokenizer: The model's tokenizer.
        keep: Whether special tokens stay part of the text.
        ends: Ids that end a completion of this model; they are never part of the text.
    """
    edges = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, *ends}

    def decode(ids: Sequence[int]) -> str:
        # Without clean-up: it would drop spaces before punctuation, which the model did sample.
        shown = [i for i in ids if i not in edges] if keep else list(ids)
        return str(
            tokenizer.decode(
                shown, skip_special_tokens=not keep, clean_up_tokenization_spaces=False
            )
        )

    return decode


def tags_among(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Return the special tokens that look like tags: `<answer>`, `</think>`."""
    edges = (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token, tokenizer.unk_token)
    return sorted(t for t in special_ids(tokenizer) if _TAG.fullmatch(t) and t not in edges)


def stop_token_ids(
    tokenizer: PreTrainedTokenizerBase, eos: int | Sequence[int] | None
) -> frozenset[int]:
    """Return the ids that end a completion: of tokenizer, generation config and chat template.

    Chat models often list the end-of-turn token in only one of these; the others then never stop.
    """
    of_generation = [eos] if eos is None or isinstance(eos, int) else list(eos)
    listed = (tokenizer.eos_token_id, *of_generation)
    ids = frozenset(int(token_id) for token_id in listed if token_id is not None)
    return ids | end_of_turn_ids(tokenizer)
