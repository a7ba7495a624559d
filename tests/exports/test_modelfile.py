"""The Modelfile's Go template renders what the chat template renders."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from exported_run import random_adapter, random_model, run_folder
from tiny_tokenizers import CHATML, LLAMA_LIKE, byte_level_tokenizer

from rlkit.assembly.saved_run import read_finished_run
from rlkit.exports.modelfile import go_template, modelfile, turns_of
from rlkit.exports.trained import open_trained
from rlkit.policy.lora import LoRAConfig

GO_CHATML = (
    '{{ range .Messages }}{{ if eq .Role "system" }}<|im_start|>system\n{{ .Content }}<|im_end|>\n'
    '{{ else if eq .Role "user" }}<|im_start|>user\n{{ .Content }}<|im_end|>\n'
    '{{ else if eq .Role "assistant" }}<|im_start|>assistant\n{{ .Content }}<|im_end|>\n'
    "{{ end }}{{ end }}<|im_start|>assistant\n"
)
OPENING = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nBe good.<|im_end|>\n{% endif %}"
)


def template(text: str, *, adds_bos: bool = False) -> str | None:
    turns = turns_of(byte_level_tokenizer(adds_bos=adds_bos, chat_template=text))
    return None if turns is None else go_template(turns)


def test_turns_and_a_default_system_message() -> None:
    assert template(CHATML) == GO_CHATML
    opening = "{{ if not .System }}<|im_start|>system\nBe good.<|im_end|>\n{{ end }}"
    assert template(OPENING + CHATML) == opening + GO_CHATML


def test_ollama_writes_the_first_token_itself() -> None:
    """A second one would be another prompt than the run's."""
    assert template(LLAMA_LIKE, adds_bos=True) == GO_CHATML
    assert template(LLAMA_LIKE) == (
        "{{ if not .System }}<|bos|>{{ end }}"
        + GO_CHATML.replace('"system" }}<|im_start|>', '"system" }}<|bos|><|im_start|>')
    )


@pytest.mark.parametrize(
    "text",
    [
        # Only the last turn is shown; a number depends on the place; the braces are Go's own.
        "{{ messages[-1]['content'] }}",
        "{% for m in messages %}[{{ loop.index }}]{{ m['content'] }}{% endfor %}",
        "{% for m in messages %}{{ '{{x}}' }}{{ m['content'] }}{% endfor %}",
    ],
)
def test_a_template_that_is_more_than_turns_has_no_go_template(text: str) -> None:
    assert template(text) is None


def test_sampling_and_stops_are_those_of_the_run(tmp_path: Path) -> None:
    source = random_model(tmp_path / "base", "llama")
    folder = run_folder(tmp_path / "run", source)
    random_adapter(source, folder, LoRAConfig(rank=3))
    run = read_finished_run(folder, key="--run")
    trained = open_trained(run, device=torch.device("cpu"), say=print)
    text = modelfile(trained, gguf="model.gguf")
    assert text == (
        f'FROM ./model.gguf\nTEMPLATE """{GO_CHATML}"""\n'
        "PARAMETER temperature 0.9\nPARAMETER top_p 0.95\nPARAMETER top_k 0\nPARAMETER min_p 0\n"
        "PARAMETER repeat_penalty 1\nPARAMETER num_predict 8\n"
        'PARAMETER stop "<|im_end|>"\nPARAMETER stop "\\n"\n'
    )
