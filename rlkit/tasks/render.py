"""This module renders examples: the template once, special tokens once, the length checked."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from rlkit.tasks.base import Example, Message, Split
from rlkit.tasks.config import Overlong
from rlkit.tasks.conversation import Conversation, render_conversation
from rlkit.types import Prompt

_MOST_CHARACTERS = 20_000_000


class Rendered(NamedTuple):
    """These are prompts ready for the model, with the numbers of those that were too long."""

    prompts: list[Prompt]
    num_dropped: int
    num_truncated: int


def render(example: Example, tokenizer: PreTrainedTokenizerBase, *, index: int) -> Prompt:
    """Return the prompt as the model sees it: `text` is what was tokenised, `ids` what came out.

    Messages go through the chat template, which writes all special tokens itself, so that none are
    added to its text (no second BOS). Raw text gets what the tokenizer adds by default. Raises
    ValueError naming the row for an empty prompt, or a conversation that does not end with the
    user. A template that fails or loses a part is refused too, and so is invalid Unicode.
    """
    text = prompt_text(example, tokenizer, index=index)
    ids = tokenizer(text, add_special_tokens=isinstance(example.prompt, str))["input_ids"]
    _check(len(ids) > 0, place(example, index), "must have tokens, got none")
    turns = () if isinstance(example.prompt, str) else example.prompt
    return Prompt(
        index=index,
        ids=tuple(ids),
        text=text,
        columns=example.columns,
        key=example.key,
        messages=tuple({"role": turn.role, "content": turn.content} for turn in turns),
    )


def prompt_text(example: Example, tokenizer: PreTrainedTokenizerBase, *, index: int) -> str:
    """Return the text of a prompt, which `render` tokenises; raises ValueError as it does."""
    where = place(example, index)
    if isinstance(example.prompt, str):
        text = example.prompt
        _check(bool(text.strip()), where, "must hold text, got only white space")
    else:
        text = _apply_template(example.prompt, tokenizer, where)
    try:
        text.encode()  # tokenizers answer half a surrogate pair with a misleading TypeError
    except UnicodeEncodeError as error:
        raise ValueError(f"{where} must be valid Unicode, got {error.reason}") from error
    return text


def place(example: Example, index: int) -> str:
    """Return what messages call an example: its row, or its number in the split."""
    return example.where or f"prompt {index}"


def fit(
    prompt: Prompt, tokenizer: PreTrainedTokenizerBase, *, max_length: int, overlong: Overlong
) -> Prompt | None:
    """Return `prompt` if it is short enough, else what `overlong` makes of it.

    A truncated prompt keeps its last tokens, and its first one if that is BOS; its text is decoded
    anew.

    Args:
        prompt: The whole prompt.
        tokenizer: The model's tokenizer.
        max_length: Most tokens, >= 1.
        overlong: What becomes of a longer prompt.

    Returns:
        The prompt; None when it is dropped.

    Raises:
        ValueError: The prompt is longer and `overlong` is `error`; its index is named.
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
    """Return the prompts `indices` of `split`, in order, without the dropped ones.

    Args:
        split: The examples.
        indices: Which of them, each >= 0.
        tokenizer: The model's tokenizer, with its chat template.
        max_length: Most tokens of a prompt, >= 1.
        overlong: What becomes of longer prompts.

    Returns:
        The prompts, and the indices of those that were too long.

    Raises:
        ValueError: An example cannot be rendered, or is too long under `error`.
    """
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


def _apply_template(
    messages: tuple[Message, ...], tokenizer: PreTrainedTokenizerBase, where: str
) -> str:
    _check(len(messages) > 0, where, "must hold a message, got none")
    last = messages[-1]
    _check(last.role in ("user", "tool"), where, f"must end with the user, got {last.role}")
    _check(bool(last.content.strip()), where, "must end with text, got only white space")
    if not tokenizer.chat_template:
        raise ValueError(
            f"model.chat_template must be given for {where}: the task is a chat, and the tokenizer "
            "has no chat template"
        )

    def apply(conversation: Conversation) -> str:
        text = str(
            tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)
        )
        # Tokenizing what a template has blown up would seem to have no end.
        rule = f"must be at most {_MOST_CHARACTERS} characters as the chat template renders it"
        _check(len(text) <= _MOST_CHARACTERS, where, f"{rule}, got {len(text)}")
        return text

    template = str(tokenizer.chat_template)
    return render_conversation(messages, template, apply, where=where)


def _check(holds: bool, where: str, rule: str) -> None:
    if not holds:
        raise ValueError(f"{where} {rule}")
