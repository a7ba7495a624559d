"""From examples to prompts: the chat template once, special tokens once, the length checked."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from rlkit.tasks.base import Example, Message, Split
from rlkit.tasks.config import Overlong
from rlkit.types import Prompt


class Rendered(NamedTuple):
    """Prompts ready for the model, and what became of those that were too long."""

    prompts: list[Prompt]
    num_dropped: int
    num_truncated: int


def render(example: Example, tokenizer: PreTrainedTokenizerBase, *, index: int) -> Prompt:
    """The prompt as the model sees it: `text` is what was tokenised, `ids` what came out.

    Messages go through the chat template, which writes all special tokens itself, so that none are
    added to its text (no second BOS). Raw text gets what the tokenizer adds by default.
    Raises ValueError naming the index for an empty prompt, a conversation that does not end with
    the user, a tokenizer without chat template, or text that is not valid Unicode.
    """
    where = f"prompt {index}"
    is_raw = isinstance(example.prompt, str)
    if isinstance(example.prompt, str):
        text = example.prompt
        _require(bool(text.strip()), where, "must hold text, got only white space")
    else:
        text = _apply_template(example.prompt, tokenizer, where)
    try:
        text.encode()  # tokenizers answer half a surrogate pair with a misleading TypeError
    except UnicodeEncodeError as error:
        raise ValueError(f"{where} must be valid Unicode, got {error.reason}") from error
    ids = tokenizer(text, add_special_tokens=is_raw)["input_ids"]
    _require(len(ids) > 0, where, "must have tokens, got none")
    columns, key = example.columns, example.key
    return Prompt(index=index, ids=tuple(ids), text=text, columns=columns, key=key)


def fit(
    prompt: Prompt, tokenizer: PreTrainedTokenizerBase, *, max_length: int, overlong: Overlong
) -> Prompt | None:
    """`prompt` if it has at most `max_length` tokens, else what `overlong` says; None = dropped.

    A truncated prompt keeps its last tokens, and its first one if that is BOS; its text is decoded
    anew. Raises ValueError naming the index under `error`.
    """
    excess = len(prompt.ids) - max_length
    if excess <= 0:
        return prompt
    if overlong is Overlong.drop:
        return None
    if overlong is Overlong.error:
        raise ValueError(
            f"task.max_prompt_length must be >= {len(prompt.ids)} for prompt {prompt.index}, "
            f"got {max_length} (or set task.overlong_prompts=drop or truncate_left)"
        )
    has_bos = prompt.ids[0] == tokenizer.bos_token_id and max_length > 1
    ids = (prompt.ids[0], *prompt.ids[excess + 1 :]) if has_bos else prompt.ids[excess:]
    return replace(prompt, ids=ids, text=str(tokenizer.decode(list(ids))))


def render_all(
    split: Split,
    indices: Iterable[int],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    overlong: Overlong,
) -> Rendered:
    """The prompts `indices` of `split`, in order, without the dropped ones."""
    prompts = []
    num_dropped = num_truncated = 0
    for index in indices:
        whole = render(split.get(index), tokenizer, index=index)
        fitting = fit(whole, tokenizer, max_length=max_length, overlong=overlong)
        if fitting is None:
            num_dropped += 1
            continue
        num_truncated += fitting is not whole
        prompts.append(fitting)
    return Rendered(prompts, num_dropped, num_truncated)


def without_overlong(
    split: Split, tokenizer: PreTrainedTokenizerBase, *, max_length: int
) -> tuple[Split, int]:
    """A finite split without the examples of more than `max_length` tokens, and their number.

    Done once before training, so that every step of a run with `overlong_prompts=drop` has all its
    prompts. Every prompt is rendered, so an invalid one is found here. An endless split is returned
    as it is. Raises ValueError when nothing is left.
    """
    if split.size is None:
        return split, 0
    kept = [
        index
        for index in range(split.size)
        if len(render(split.get(index), tokenizer, index=index).ids) <= max_length
    ]
    if not kept:
        raise ValueError(
            f"task.max_prompt_length must leave {split.name.value} prompts, got {max_length}: "
            f"all {split.size} are longer"
        )
    return split._replace(get=lambda i: split.get(kept[i]), size=len(kept)), split.size - len(kept)


def _apply_template(
    messages: tuple[Message, ...], tokenizer: PreTrainedTokenizerBase, where: str
) -> str:
    _require(len(messages) > 0, where, "must hold a message, got none")
    last = messages[-1]
    _require(last.role in ("user", "tool"), where, f"must end with the user, got {last.role}")
    _require(bool(last.content.strip()), where, "must end with text, got only white space")
    if not tokenizer.chat_template:
        raise ValueError(
            f"model.chat_template must be given for {where}: the task is a chat, and the tokenizer "
            "has no chat template"
        )
    conversation = [{"role": message.role, "content": message.content} for message in messages]
    text = tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)
    return str(text)


def _require(holds: bool, where: str, rule: str) -> None:
    if not holds:
        raise ValueError(f"{where} {rule}")
