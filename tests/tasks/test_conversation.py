"""Nothing of a message is lost between a row and the model, or the row is refused."""

from __future__ import annotations

import json

import pytest
from tiny_tokenizers import CHATML, byte_level_tokenizer

from rlkit.tasks import Example, Message
from rlkit.tasks.render import prompt_text

PARTS = (
    "{% for m in messages %}[{{ m.role }}]{% for part in m.content %}{{ part.text }}{% endfor %}"
    "{% endfor %}"
)
TOOLS = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}"
    "{% for call in m.tool_calls or [] %}<call>{{ call.function.name }}</call>{% endfor %}"
    "{% endfor %}"
)
CALL = json.dumps({"tool_calls": [{"type": "function", "function": {"name": "add"}}]})


def text(template: str, *messages: Message) -> str:
    tokenizer = byte_level_tokenizer(chat_template=template)
    return prompt_text(Example(prompt=messages, where="row 3 of f"), tokenizer, index=0)


def test_tool_calls_reach_a_template_that_uses_them() -> None:
    turns = (Message("user", "1+1"), Message("assistant", "", CALL), Message("tool", "2"))
    assert text(TOOLS, *turns) == "[user]1+1[assistant]<call>add</call>[tool]2"
    rule = r"row 3 of f: message 1: tool_calls does not reach the prompt.*ignore_keys=\[tool_calls"
    with pytest.raises(ValueError, match=rule):
        text(CHATML, *turns)


@pytest.mark.parametrize("key", ["name", "tool_call_id", "reasoning_content"])
def test_a_key_that_the_template_leaves_out_is_refused(key: str) -> None:
    message = Message("user", "hi", json.dumps({key: "x"}))
    with pytest.raises(ValueError, match=rf"row 3 of f: message 0: {key} does not reach"):
        text(CHATML, message)
    reads = f"{{% for m in messages %}}{{{{ m.content }}}}{{{{ m.{key} }}}}{{% endfor %}}"
    assert text(reads, message) == "hix"


def test_a_template_that_loops_over_parts_gets_parts() -> None:
    assert text(PARTS, Message("user", "What is 2?")) == "[user]What is 2?"


def test_a_template_that_leaves_the_question_out_is_refused() -> None:
    with pytest.raises(ValueError, match=r"row 3 of f: message 0: content does not reach"):
        text("{% for m in messages %}[{{ m.role }}]{% endfor %}", Message("user", "What is 2?"))


def test_a_template_that_shortens_a_turn_on_purpose_is_not() -> None:
    cut = "{% for m in messages %}{{ m.content.split('</think>')[-1] }}|{% endfor %}"
    turns = (Message("assistant", "<think>a</think>b"), Message("user", "c"))
    assert text(cut, *turns) == "b|c|"


def test_a_developer_is_a_system_turn_where_the_template_knows_none() -> None:
    turns = (Message("developer", "Be brief."), Message("user", "hi"))
    assert text(CHATML, *turns).startswith("<|im_start|>system\nBe brief.")
    knows = "{# developer #}{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    assert text(knows, *turns) == "[developer]Be brief.[user]hi"


def test_an_error_of_the_template_names_the_row() -> None:
    picky = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(ValueError, match=r"row 3 of f must render .*TemplateError: roles must alt"):
        text(picky, Message("user", "hi"))
