"""This module chooses the chat template: the tokenizer's own, one by name, or a built-in one."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from rlkit.models.config import ChatTemplate, ModelConfig

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
_DEFAULT = "default"
_MOST_CHARACTERS = 1_000_000


class ChosenTemplate(NamedTuple):
    """This holds a chat template and one line that says where it comes from."""

    template: str
    reason: str


def choose_template(tokenizer: PreTrainedTokenizerBase, config: ModelConfig) -> ChosenTemplate:
    """Return the template that `config` asks for, with its variables written into it.

    `auto` prefers the tokenizer's own template; of several, it takes `chat_template_name`, or the
    one called `default`. A built-in template begins with the beginning-of-sequence token where the
    tokenizer puts one in front of plain text. The variables become `{% set %}` lines at the front,
    so that training, evaluation, `chat`, `generate` and an exported model all render the same.

    Raises:
        ValueError: `chatml` without its tokens in the vocabulary, a name that the tokenizer does
            not have, or a variable that the template does not read.
    """
    chosen = _choose(tokenizer, config)
    if len(chosen.template) > _MOST_CHARACTERS:
        raise ValueError(
            f"model.source must have a chat template of at most {_MOST_CHARACTERS} characters, got "
            f"{len(chosen.template)}"
        )
    variables = config.chat_template_kwargs
    for name in variables:
        if not re.search(rf"\b{re.escape(name)}\b", chosen.template):
            raise ValueError(
                f"model.chat_template_kwargs must hold variables of the template, got {name}, "
                f"which it does not read ({chosen.reason})"
            )
    reason = chosen.reason
    if variables:
        shown = ", ".join(f"{name}={value!r:.60}" for name, value in variables.items())
        reason = f"{reason}, with {shown}"
    elif "strftime_now" in chosen.template:
        reason = (
            f"{reason}; it writes today's date unless model.chat_template_kwargs names one "
            "(usually date_string)"
        )
    return ChosenTemplate(_settings(variables) + chosen.template, reason)


def _choose(tokenizer: PreTrainedTokenizerBase, config: ModelConfig) -> ChosenTemplate:
    own, wanted, name = tokenizer.chat_template, config.chat_template, config.chat_template_name
    if wanted is ChatTemplate.auto and isinstance(own, Mapping) and own:
        return _named(own, name)
    if name:
        raise ValueError(
            "model.chat_template_name must be empty unless the tokenizer has several templates "
            f"and model.chat_template is auto, got {name}"
        )
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


def _named(own: Mapping[str, str], name: str) -> ChosenTemplate:
    """Return one of several templates of a tokenizer."""
    names = ", ".join(own)
    wanted = name or _DEFAULT
    if wanted not in own:
        raise ValueError(
            f"model.chat_template_name must be one of {names}, got {name or 'nothing'}"
        )
    return ChosenTemplate(own[wanted], f"chat template: the tokenizer's {wanted} (of {names})")


def _settings(variables: Mapping[str, object]) -> str:
    return "".join(f"{{% set {name} = {_literal(v)} %}}" for name, v in variables.items())


def _literal(value: object) -> str:
    """Return `value` as Jinja writes it: JSON, but with its own word for null."""
    if isinstance(value, Mapping):
        pairs = (f"{_literal(str(key))}: {_literal(item)}" for key, item in value.items())
        return f"{{{', '.join(pairs)}}}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_literal, value))}]"
    return "none" if value is None else json.dumps(value, ensure_ascii=False)


def _bos(tokenizer: PreTrainedTokenizerBase) -> str:
    ids = tokenizer.encode("a")
    starts_with_bos = bool(ids) and ids[0] == tokenizer.bos_token_id
    return "{{ bos_token }}" if starts_with_bos else ""
