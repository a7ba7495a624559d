"""Stop tokens of the template, stop strings that are tokens, tags that decoding leaves out."""

from __future__ import annotations

import pytest
from tiny_tokenizers import CHATML, byte_level_tokenizer
from transformers import PreTrainedTokenizerFast

from rlkit.models import ChatTemplate, ModelConfig
from rlkit.models.special import completion_decoder, end_of_turn_ids, stops_of, tags_among
from rlkit.models.templates import choose_template

PLAIN = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
KNOWS = "{% if enable_thinking is defined and enable_thinking is false %}<no>{% endif %}{{ tools }}"


def id_of(tokenizer: PreTrainedTokenizerFast, token: str) -> int:
    found = tokenizer.convert_tokens_to_ids(token)
    assert isinstance(found, int)
    return found


def test_the_end_of_a_turn_is_found_by_id() -> None:
    base = byte_level_tokenizer()
    base.eos_token = "<|pad|>"  # as of a base model, which ends at another token
    im_end = id_of(base, "<|im_end|>")
    assert end_of_turn_ids(base) == {im_end}
    base.chat_template = PLAIN
    assert end_of_turn_ids(base) == frozenset()
    base.chat_template = None
    assert end_of_turn_ids(base) == frozenset()
    base.chat_template = "{{ raise_exception('no assistant') }}"
    assert end_of_turn_ids(base) == frozenset()


def test_stop_strings_that_are_special_tokens_become_ids() -> None:
    tokenizer = byte_level_tokenizer()
    im_end = id_of(tokenizer, "<|im_end|>")
    stops = stops_of(tokenizer, {7}, ("<|im_end|>", "\n"))
    assert (set(stops.ids), list(stops.strings)) == ({7, im_end}, ["\n"])
    with pytest.raises(ValueError, match=r"task.stop must hold .*, got 'x<\|im_end\|>', which has"):
        stops_of(tokenizer, (), ("x<|im_end|>",))


def test_special_tokens_can_stay_in_the_text() -> None:
    tokenizer = byte_level_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<answer>", "</answer>"]})
    ids = tokenizer("<answer>9</answer><|im_end|>", add_special_tokens=False)["input_ids"]
    end = id_of(tokenizer, "<|im_end|>")
    assert completion_decoder(tokenizer, keep=False, ends={end})(ids) == "9"
    assert completion_decoder(tokenizer, keep=True, ends={end})(ids) == "<answer>9</answer>"
    assert tags_among(tokenizer) == ["</answer>", "<answer>"]


def test_one_of_several_templates() -> None:
    tokenizer = byte_level_tokenizer()
    tokenizer.chat_template = {"default": CHATML, "tool_use": KNOWS}
    chosen = choose_template(tokenizer, ModelConfig())
    assert chosen.template == CHATML
    assert chosen.reason == "chat template: the tokenizer's default (of default, tool_use)"
    assert choose_template(tokenizer, ModelConfig(chat_template_name="tool_use")).template == KNOWS
    with pytest.raises(ValueError, match=r"must be one of default, tool_use, got rag"):
        choose_template(tokenizer, ModelConfig(chat_template_name="rag"))
    tokenizer.chat_template = {"tool_use": KNOWS}
    with pytest.raises(ValueError, match=r"must be one of tool_use, got nothing"):
        choose_template(tokenizer, ModelConfig())
    plain = ModelConfig(chat_template=ChatTemplate.rlkit_plain, chat_template_name="tool_use")
    with pytest.raises(ValueError, match=r"chat_template_name must be empty unless"):
        choose_template(tokenizer, plain)


def test_template_variables_are_part_of_the_template() -> None:
    tokenizer = byte_level_tokenizer(chat_template=KNOWS)
    tools = [{"name": "é\"'\n", "strict": None, "n": 1.5}]
    config = ModelConfig(chat_template_kwargs={"enable_thinking": False, "tools": tools})
    chosen = choose_template(tokenizer, config)
    assert "enable_thinking=False" in chosen.reason
    tokenizer.chat_template = chosen.template
    assert tokenizer.apply_chat_template([{"role": "user"}], tokenize=False) == f"<no>{tools}"
    with pytest.raises(ValueError, match=r"must hold variables of the template, got date, which"):
        choose_template(tokenizer, ModelConfig(chat_template_kwargs={"date": "x"}))
    with pytest.raises(
        ValueError, match=r"names of variables other than messages, .* got messages"
    ):
        ModelConfig(chat_template_kwargs={"messages": []})
