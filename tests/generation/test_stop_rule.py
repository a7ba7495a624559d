"""Where a completion ends, against decoding everything at every token."""

from __future__ import annotations

import random

import pytest
from tiny_tokenizers import byte_tokenizer
from transformers import PreTrainedTokenizerFast

from rlkit.generation.stopping import StopRule


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return byte_tokenizer(eos_token="<end>")


def ids_of(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    ids: list[int] = tokenizer(text).input_ids
    return ids


def test_stop_token_is_kept_and_only_new_tokens_are_looked_at(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    rule = StopRule(tokenizer, token_ids=frozenset({7, 9}), strings=())
    assert rule.tokens_kept([1, 2, 9, 7, 3], 0) == 3
    assert rule.tokens_kept([1, 2, 9, 7, 3], 3) == 4
    assert rule.tokens_kept([1, 2, 9, 7, 3], 4) is None


def test_stop_string_ends_at_the_token_that_completes_it(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    rule = StopRule(tokenizer, token_ids=frozenset(), strings=("</a>", "é"))
    ids = ids_of(tokenizer, "x</a>y")
    assert rule.tokens_kept(ids[:4], 0) is None
    assert rule.tokens_kept(ids[:5], 4) == 5
    assert rule.tokens_kept(ids, 0) == 5
    # The second byte of a two-byte character completes it.
    assert rule.tokens_kept(ids_of(tokenizer, "caféx"), 3) == 5


def test_special_tokens_are_not_text(tokenizer: PreTrainedTokenizerFast) -> None:
    rule = StopRule(tokenizer, token_ids=frozenset(), strings=("ab", "<end>"))
    a, b = ids_of(tokenizer, "ab")
    end = tokenizer.eos_token_id
    assert rule.tokens_kept([a, *[end] * 50, b], 51) == 52
    assert rule.tokens_kept([end, end], 0) is None


def test_the_earlier_of_stop_token_and_stop_string_wins(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    end = tokenizer.eos_token_id
    rule = StopRule(tokenizer, token_ids=frozenset({end}), strings=("b",))
    a, b = ids_of(tokenizer, "ab")
    assert rule.tokens_kept([a, end, b], 0) == 2
    assert rule.tokens_kept([a, b, end], 0) == 2


def test_tail_decoding_agrees_with_decoding_everything(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    draw = random.Random(0)
    strings = ("aba", "bbb\n", "ééa")
    rule = StopRule(tokenizer, token_ids=frozenset(), strings=strings)
    alphabet = [*ids_of(tokenizer, "ab\né"), tokenizer.eos_token_id]
    for _ in range(300):
        ids = [draw.choice(alphabet) for _ in range(60)]
        texts = [tokenizer.decode(ids[:n], skip_special_tokens=True) for n in range(61)]
        expected = next((n for n in range(61) if any(s in texts[n] for s in strings)), None)
        num_old, found = 0, None
        while num_old < 60 and found is None:
            num_new = min(60, num_old + draw.randint(1, 9))
            found = rule.tokens_kept(ids[:num_new], num_old)
            num_old = num_new
        assert found == expected
