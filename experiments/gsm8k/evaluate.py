"""Ask runs and adapters all held-out questions of GSM8K: greedily, and k times at temperature 1.

    python experiments/gsm8k/evaluate.py MODEL DATA OUT.json NAME=FOLDER... [--samples 4]

One vLLM holds the base model, and each FOLDER is an adapter in PEFT's format, whoever trained it.
So rlkit's runs and a peer's are asked by the same program, with the same prompts and seeds. OUT has
the number of right samples of each question.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from transformers import AutoTokenizer

from rlkit.models import ModelConfig
from rlkit.models.source import locate
from rlkit.rewards.unsloth_2025 import correctness
from rlkit.tasks.config import GSM8KConfig
from rlkit.tasks.render import render
from rlkit.tasks.rows import gsm8k
from rlkit.types import Completion, FinishReason, Prompt

_NEW_TOKENS = 256
_AT_ONCE = 512
_SETTLED_S = 1.0
"""A file that has not changed for so long is whole."""


def prompts_of(data: str, location: str, most: int) -> list[Prompt]:
    """Return the held-out questions as the model reads them."""
    split = gsm8k(GSM8KConfig(path=data, eval_size=most)).eval
    tokenizer = AutoTokenizer.from_pretrained(location)
    return [render(split.get(i), tokenizer, index=i) for i in range(split.size or 0)]


def main(options: argparse.Namespace) -> None:
    """Evaluate every folder, and write what was right."""
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    location = locate(ModelConfig(source=options.model), say=print)
    prompts = prompts_of(options.data, location, options.prompts)
    llm = LLM(
        location,
        enable_lora=True,
        max_lora_rank=options.rank,
        max_model_len=768,
        max_num_seqs=_AT_ONCE,
        gpu_memory_utilization=options.share,
        seed=0,
    )
    asked = [{"prompt_token_ids": list(prompt.ids)} for prompt in prompts]
    greedy = SamplingParams(temperature=0.0, max_tokens=_NEW_TOKENS)
    found: dict[str, object] = {}
    for number, (name, folder) in enumerate(options.folders, start=1):
        if folder and not _there(Path(folder), time.monotonic() + options.wait):
            print(f"{name}: no adapter at {folder}", flush=True)
            continue
        start = time.perf_counter()
        lora = LoRARequest(name, number, str(folder)) if folder else None
        rows = {"greedy": llm.generate(asked, greedy, lora_request=lora, use_tqdm=False)}
        if options.samples:
            sampled = SamplingParams(
                temperature=1.0, max_tokens=_NEW_TOKENS, n=options.samples, seed=1
            )
            rows["sampled"] = llm.generate(asked, sampled, lora_request=lora, use_tqdm=False)
        found[name] = {kind: _judged(prompts, outputs) for kind, outputs in rows.items()}
        said = ", ".join(f"{k} {v['mean']:.4f} ({v['length']:.0f} tokens, {v['cut']:.2f} cut)"
                         for k, v in found[name].items())  # fmt: skip
        print(f"{name}: {said} in {time.perf_counter() - start:.0f} s", flush=True)
        options.out.write_text(json.dumps(found) + "\n")


def _there(folder: Path, give_up: float) -> bool:
    """Wait for an adapter that a run writes at its end."""
    file = folder / "adapter_model.safetensors"
    while not (file.is_file() and time.time() - file.stat().st_mtime > _SETTLED_S):
        if time.monotonic() > give_up:
            return False
        time.sleep(0.5)
    return True


def _judged(prompts: list[Prompt], outputs: list) -> dict:
    right, lengths, cut, shown = [], [], 0, []
    for prompt, output in zip(prompts, outputs, strict=True):
        hits = 0
        for sample in output.outputs:
            completion = Completion(
                prompt=prompt,
                text=sample.text,
                ids=tuple(sample.token_ids),
                finish_reason=FinishReason(sample.finish_reason),
            )
            hits += correctness(completion, as_numbers=True) > 0
            lengths.append(len(sample.token_ids))
            cut += sample.finish_reason == "length"
        right.append(hits)
        if len(shown) < 6:
            shown.append(output.outputs[0].text)
    return {
        "mean": sum(right) / len(lengths),
        "length": sum(lengths) / len(lengths),
        "cut": cut / len(lengths),
        "samples": len(lengths) // len(prompts),
        "right": right,
        "first": shown,
    }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("data")
    parser.add_argument("out", type=Path)
    parser.add_argument("folders", nargs="+", type=lambda text: tuple(text.split("=", 1)))
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--prompts", type=int, default=1319)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--wait", type=float, default=0.0, help="seconds to wait for an adapter")
    parser.add_argument("--share", type=float, default=0.2)
    return parser.parse_args()


if __name__ == "__main__":
    main(_arguments())
