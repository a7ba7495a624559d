"""Examples to prompts, with real tokenizers; fault list F11."""

from __future__ import annotations

import pytest
from tiny_tokenizers import CHATML, LLAMA_LIKE, byte_level_tokenizer

from rlkit.tasks import Example, Message, Overlong, Split, SplitName
from rlkit.tasks.render import fit, render, render_all
from rlkit.types import Prompt

PLAIN = byte_level_tokenizer()
LLAMA = byte_level_tokenizer(adds_bos=True, chat_template=LLAMA_LIKE)
BOS = LLAMA.bos_token_id
CHAT = (
    Message("system", "Be brief."),
    Message("user", "one"),
    Message("assistant", "1"),
    Message("user", "two"),
)
CHAT_TEXT = (
    "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\none<|im_end|>\n"
    "<|im_start|>assistant\n1<|im_end|>\n<|im_start|>user\ntwo<|im_end|>\n<|im_start|>assistant\n"
)


def test_the_template_is_applied_once() -> None:
    prompt = render(Example(prompt=CHAT, columns={"answer": "2"}), PLAIN, index=7)
    assert prompt.text == CHAT_TEXT
    assert (prompt.index, prompt.columns) == (7, {"answer": "2"})
    assert PLAIN.decode(list(prompt.ids)) == CHAT_TEXT
    assert prompt.ids.count(PLAIN.convert_tokens_to_ids("<|im_start|>")) == 5


def test_one_bos_however_it_comes_about() -> None:
    # The template writes BOS, and the tokenizer would add another one.
    chat = render(Example(prompt=CHAT), LLAMA, index=0)
    assert chat.text == "<|bos|>" + CHAT_TEXT
    assert chat.ids[0] == BOS and chat.ids.count(BOS) == 1
    assert LLAMA(chat.text)["input_ids"][:2] == [BOS, BOS], "the trap is real"
    # Raw text has none: the tokenizer adds it.
    raw = render(Example(prompt="Q: x\nA:"), LLAMA, index=0)
    assert raw.text == "Q: x\nA:"
    assert raw.ids[0] == BOS and raw.ids.count(BOS) == 1
    assert LLAMA.decode(list(raw.ids[1:])) == raw.text
    # A tokenizer that adds none gets none.
    assert PLAIN.bos_token_id not in render(Example(prompt="Q: x\nA:"), PLAIN, index=0).ids
    # A template without BOS stays without, as its model was trained.
    tokenizer = byte_level_tokenizer(adds_bos=True, chat_template=CHATML)
    assert tokenizer.bos_token_id not in render(Example(prompt=CHAT), tokenizer, index=0).ids


def test_few_shot_prompts_share_their_first_tokens() -> None:
    one, two = (
        render(Example(prompt=(*CHAT[:-1], Message("user", word))), PLAIN, index=0).ids
        for word in ("apple", "zebra")
    )
    shared = len(PLAIN(CHAT_TEXT.partition("two")[0], add_special_tokens=False)["input_ids"])
    assert one[:shared] == two[:shared]


@pytest.mark.parametrize(
    "text",
    ["a", "\U0001f600 שלום", "a\x00b", "x" * 3000, "<|im_end|> and <|bos|>", "\n.", "e\u0301"],
)
def test_odd_texts_survive(text: str) -> None:
    raw = render(Example(prompt=text), PLAIN, index=0)
    assert PLAIN.decode(list(raw.ids)) == raw.text == text
    chat = render(Example(prompt=(Message("user", text),)), PLAIN, index=0)
    assert PLAIN.decode(list(chat.ids)) == chat.text
    assert text in chat.text


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("", "prompt 3 must hold text, got only white space"),
        (" \n", "prompt 3 must hold text, got only white space"),
        ((), "prompt 3 must hold a message, got none"),
        ((Message("user", " "),), "prompt 3 must end with text, got only white space"),
        (CHAT[:3], "prompt 3 must end with the user, got assistant"),
        ("\ud800", "prompt 3 must be valid Unicode, got"),
        ((Message("user", "\ud800"),), "prompt 3 must be valid Unicode, got"),
    ],
)
def test_what_cannot_be_a_prompt(prompt: str | tuple[Message, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        render(Example(prompt=prompt), PLAIN, index=3)
    assert "\n" not in str(caught.value)


def test_a_chat_needs_a_template() -> None:
    bare = byte_level_tokenizer(chat_template=None)
    with pytest.raises(ValueError, match=r"model.chat_template must be given for prompt 0"):
        render(Example(prompt=CHAT), bare, index=0)
    assert render(Example(prompt="raw"), bare, index=0).text == "raw"


def prompt_of(text: str, tokenizer: object = PLAIN) -> Prompt:
    return render(Example(prompt=text), LLAMA if tokenizer is LLAMA else PLAIN, index=5)


def test_a_prompt_that_fits_is_left_alone() -> None:
    prompt = prompt_of("zzzzzzzz")
    assert len(prompt.ids) == 8
    for policy in Overlong:
        assert fit(prompt, PLAIN, max_length=8, overlong=policy) is prompt


def test_overlong_policies() -> None:
    prompt = prompt_of("zyxwvuts")
    with pytest.raises(ValueError, match=r"must be >= 8 for prompt 5, got 7 .*drop"):
        fit(prompt, PLAIN, max_length=7, overlong=Overlong.error)
    assert fit(prompt, PLAIN, max_length=7, overlong=Overlong.drop) is None
    cut = fit(prompt, PLAIN, max_length=3, overlong=Overlong.truncate_left)
    assert cut is not None
    assert (cut.text, cut.ids, cut.index) == ("uts", prompt.ids[-3:], 5)


def test_truncation_keeps_bos() -> None:
    prompt = prompt_of("zyxwvuts", LLAMA)
    cut = fit(prompt, LLAMA, max_length=4, overlong=Overlong.truncate_left)
    assert cut is not None
    assert cut.ids == (BOS, *prompt.ids[-3:])
    assert cut.text == "<|bos|>uts"
    single = fit(prompt, LLAMA, max_length=1, overlong=Overlong.truncate_left)
    assert single is not None and single.ids == prompt.ids[-1:]


def split_of(texts: list[str]) -> Split:
    return Split(SplitName.train, lambda i: Example(prompt=texts[i]), len(texts))


def test_counts_of_dropped_and_truncated_prompts() -> None:
    split = split_of(["zz", "zzzz", "zzz", "zzzzzz"])
    dropped = render_all(split, [3, 0, 1, 2], PLAIN, max_length=3, overlong=Overlong.drop)
    assert [p.index for p in dropped.prompts] == [0, 2]
    assert (dropped.num_dropped, dropped.num_truncated) == (2, 0)
    cut = render_all(split, [3, 0, 1, 2], PLAIN, max_length=3, overlong=Overlong.truncate_left)
    assert [len(p.ids) for p in cut.prompts] == [3, 2, 3, 3]
    assert (cut.num_dropped, cut.num_truncated) == (0, 2)
    with pytest.raises(ValueError, match="for prompt 3, got 3"):
        render_all(split, [3], PLAIN, max_length=3, overlong=Overlong.error)


def test_ten_thousand_equal_prompts() -> None:
    split = split_of(["z"] * 10_000)
    rendered = render_all(split, range(10_000), PLAIN, max_length=4, overlong=Overlong.error)
    assert len(rendered.prompts) == 10_000
    assert len({p.ids for p in rendered.prompts}) == 1
    assert len({p.index for p in rendered.prompts}) == 10_000
