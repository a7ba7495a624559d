"""Built-in chat templates, for base models that bring none."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from rlkit.models.config import ChatTemplate

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_RLKIT_PLAIN = (
    "{% for message in messages %}"
    "### {{ message['role'] }}\n{{ message['content'] }}"
    # In an expression: transformers' templates drop a newline that follows a block.
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\n\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}### assistant\n{% endif %}"
)
_CHATML = (
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class ChosenTemplate(NamedTuple):
    """A chat template and one line on where it comes from."""

    template: str
    reason: str


def choose_template(tokenizer: PreTrainedTokenizerBase, wanted: ChatTemplate) -> ChosenTemplate:
    """The template that `wanted` names; `auto` prefers the tokenizer's own.

    A built-in template begins with the beginning-of-sequence token where the tokenizer puts one in
    front of plain text. Raises ValueError when `chatml` is wanted without its tokens.
    """
    own = tokenizer.chat_template
    if wanted is ChatTemplate.auto and isinstance(own, str):
        return ChosenTemplate(own, "chat template: the tokenizer's own")
    if wanted is ChatTemplate.chatml:
        missing = {"<|im_start|>", "<|im_end|>"} - set(tokenizer.get_vocab())
        if missing:
            raise ValueError(
                "model.chat_template=chatml needs the tokens <|im_start|> and <|im_end|> in the "
                f"vocabulary, got none for {', '.join(sorted(missing))}"
            )
        return ChosenTemplate(_bos(tokenizer) + _CHATML, "chat template: built-in chatml")
    why = "" if wanted is ChatTemplate.rlkit_plain else " (the tokenizer has none)"
    return ChosenTemplate(_bos(tokenizer) + _RLKIT_PLAIN, f"chat template: rlkit_plain{why}")


def _bos(tokenizer: PreTrainedTokenizerBase) -> str:
    ids = tokenizer.encode("a")
    starts_with_bos = bool(ids) and ids[0] == tokenizer.bos_token_id
    return "{{ bos_token }}" if starts_with_bos else ""
