"""Work whose completions end by themselves: a trained model, and questions in its chat template."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from benchmarks.step_sides import Work

REAL_PROMPT_TOKENS = 320
"""Most tokens of a prompt; longer questions are left out."""


def write_real(work: Work, model: Path, data: Path) -> None:
    """Write the model in Hugging Face's format and its prompts to the folder of the work.

    Args:
        work: The work; it takes as many questions as its steps have prompts, and one more.
        model: A GGUF file or a folder.
        data: Lines of JSON with a `question`.

    Raises:
        ValueError: The file has too few questions that are short enough.
    """
    from transformers import AutoTokenizer

    from rlkit.models.config import ModelConfig
    from rlkit.models.source import locate

    shutil.copytree(locate(ModelConfig(source=str(model)), say=print), work.folder)
    tokenizer = AutoTokenizer.from_pretrained(work.folder)
    wanted = work.num_prompts * work.total_steps + 1
    lines: list[str] = []
    for line in data.read_text().splitlines():
        chat = [{"role": "user", "content": json.loads(line)["question"]}]
        text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        if len(tokenizer(text, add_special_tokens=False)["input_ids"]) <= REAL_PROMPT_TOKENS:
            lines.append(json.dumps({"prompt": text}))
        if len(lines) == wanted:
            break
    if len(lines) < wanted:
        raise ValueError(f"--data must have {wanted} questions that are short enough, got {data}")
    (work.folder / "held_out.jsonl").write_text(lines.pop() + "\n")
    (work.folder / "prompts.jsonl").write_text("\n".join(lines) + "\n")
