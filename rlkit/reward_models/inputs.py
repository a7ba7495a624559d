"""This module makes rows of token ids of completions, as the reward model was trained to see them.

The template is the reward model's own, never the policy's. Its text is tokenised without further
special tokens, so that there is one beginning-of-sequence token and not two.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from transformers import PreTrainedTokenizerBase

from rlkit.reward_models.options import ChatFormat, EndToken

if TYPE_CHECKING:
    from rlkit.types import Completion

Turns = Sequence[Mapping[str, object]]


@dataclass(frozen=True, kw_only=True)
class RowMaker:
    """This object makes rows for one reward model."""

    tokenizer: PreTrainedTokenizerBase
    chat: ChatFormat
    eos: EndToken
    max_length: int
    """Tokens; a longer row loses its beginning."""

    def of_completion(self, completion: Completion) -> list[int]:
        """Return the whole row of a sample, however long."""
        prompt = completion.prompt
        cut = str(completion.finish_reason) == "length"
        return self.of_texts(prompt.messages or prompt.text, completion.text, cut=cut)

    def of_texts(self, prompt: str | Turns, completion: str, *, cut: bool = False) -> list[int]:
        """Return the whole row of a prompt and a completion.

        Args:
            prompt: Its text, or the turns of a conversation.
            completion: The text of the answer.
            cut: Whether it ended at the length limit, so that it has no end token.
        """
        ends = self.eos is EndToken.always or (self.eos is EndToken.as_sampled and not cut)
        if self.chat is ChatFormat.own and self.tokenizer.chat_template:
            return self._by_template(prompt, completion, ends=ends)
        text = f"{_plain(prompt)}{completion}"
        ids = list(self.tokenizer(text)["input_ids"])
        end = self.tokenizer.eos_token_id
        if end is not None and ids and (ids[-1] == end) != ends:
            ids = [*ids, end] if ends else ids[:-1]
        return ids

    def cut(self, row: Sequence[int]) -> list[int]:
        """Return the last `max_length` tokens of a row."""
        return list(row[-self.max_length :])

    def _by_template(self, prompt: str | Turns, completion: str, *, ends: bool) -> list[int]:
        asked = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
        turns = [*asked, {"role": "assistant", "content": completion}]
        text = str(self.tokenizer.apply_chat_template(turns, tokenize=False))
        said = completion.strip()  # some templates strip it, and none changes more
        if not ends and said and said in text:
            text = text[: text.rindex(said) + len(said)]
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])


def needs_template(maker: RowMaker, *, is_chat: bool) -> bool:
    """Return whether a conversation meets a reward model that has no template for it."""
    return is_chat and maker.chat is ChatFormat.own and not maker.tokenizer.chat_template


def _plain(prompt: str | Turns) -> str:
    if isinstance(prompt, str):
        return prompt
    return "".join(f"{turn.get('content', '')}\n" for turn in prompt)
