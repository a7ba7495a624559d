"""Quantise the folder of a model with llmcompressor: GPTQ or AWQ, with rows of tokens.

This file is run by its path, with the Python that has llmcompressor, which need not have rlkit:
`python -P calibrate_child.py IN OUT`. So it imports nothing of rlkit.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def quantise(question: dict[str, Any]) -> dict[str, Any]:
    """Write the quantised model to `out` and return its `quantization_config` and the versions.

    The question has `model` and `out` (folders), `method` (gptq or awq), `group_size` and `rows`.
    """
    from importlib.metadata import version

    import torch
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from datasets import Dataset
    from llmcompressor import oneshot
    from llmcompressor.modifiers.quantization import GPTQModifier, QuantizationModifier
    from llmcompressor.modifiers.transform import AWQModifier
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(0)
    source, rows = question["model"], question["rows"]
    remote: dict[str, Any] = {"trust_remote_code": question["allow_remote_code"]}
    model = AutoModelForCausalLM.from_pretrained(source, dtype="auto", **remote)
    tokenizer = AutoTokenizer.from_pretrained(source, **remote)
    weights = QuantizationArgs(
        num_bits=4, type="int", symmetric=True, strategy="group", group_size=question["group_size"]
    )
    scheme = QuantizationScheme(targets=["Linear"], weights=weights)
    groups: dict[str, Any] = {"config_groups": {"group_0": scheme}, "ignore": ["lm_head"]}
    if question["method"] == "gptq":
        recipe: list[Any] = [GPTQModifier(**groups)]
    else:
        recipe = [AWQModifier(duo_scaling="both"), QuantizationModifier(**groups)]
    masks = [[1] * len(row) for row in rows]
    oneshot(
        model=model,
        processor=tokenizer,
        dataset=Dataset.from_dict({"input_ids": rows, "attention_mask": masks}),
        recipe=recipe,
        num_calibration_samples=len(rows),
        max_seq_length=max(map(len, rows)),
        shuffle_calibration_samples=False,
        pipeline="sequential",
    )
    model.save_pretrained(question["out"], save_compressed=True)
    config = json.loads((Path(question["out"]) / "config.json").read_text())
    return {
        "quantization_config": config["quantization_config"],
        "made_by": f"llmcompressor {version('llmcompressor')}",
    }


if __name__ == "__main__":
    answer = quantise(json.loads(Path(sys.argv[1]).read_text()))
    Path(sys.argv[2]).write_text(json.dumps(answer))
