"""Tokens per second of `generator=hf` against plain `model.generate` on the same batch.

    python -m benchmarks.generation_hf --model FOLDER_OR_HUB_ID [--new-tokens 16] [--out FILE]

Two batches: `few-shot`, groups of samples of prompts that share their examples, as in a GRPO step;
and `distinct`, as many prompts without a common prefix, where only the decoding loop differs.
Nothing stops early, so that both sides sample the same number of tokens.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from rlkit.generation import HFGeneratorConfig, sample_seed
from rlkit.generation.hf import HFGenerator
from rlkit.types import Prompt, SamplingConfig

_WORDS = (
    "red",
    "blue",
    "cat",
    "sun",
    "moon",
    "star",
    "tea",
    "ice",
    "milk",
    "dog",
    "hat",
    "box",
    "sea",
)


class Workload(NamedTuple):
    """Prompts and how often each is sampled."""

    name: str
    prompts: list[Prompt]
    num_samples: int


class Side(NamedTuple):
    """One side's seconds for the batch: medians over the repetitions, which alternate sides."""

    wall: float
    cpu: float
    """CPU seconds of the whole process, all threads: the steadier number on a CPU shared with
    others."""


class Measurement(NamedTuple):
    """Both sides on one workload."""

    workload: str
    rows: int
    prompt_tokens: int
    """Longest prompt."""
    new_tokens: int
    transformers: Side
    rlkit: Side

    def result(self) -> dict[str, object]:
        """For the table and the JSON file; speed-ups are transformers' time over rlkit's."""
        tokens = self.rows * self.new_tokens
        return {
            "workload": self.workload,
            "rows": self.rows,
            "prompt_tokens": self.prompt_tokens,
            "new_tokens": self.new_tokens,
            "generate_tokens_per_s": round(tokens / self.transformers.wall, 1),
            "rlkit_tokens_per_s": round(tokens / self.rlkit.wall, 1),
            "speedup": round(self.transformers.wall / self.rlkit.wall, 2),
            "speedup_cpu_time": round(self.transformers.cpu / self.rlkit.cpu, 2),
        }


def few_shot_workload(
    encode: Callable[[str], list[int]], *, num_prompts: int, num_samples: int
) -> Workload:
    """Prompts of about 130 tokens that differ in their last line."""
    draw = random.Random(0)
    shots = "".join(_line(draw.sample(_WORDS, 3), answered=True) for _ in range(8))
    texts = [shots + _line(draw.sample(_WORDS, 3), answered=False) for _ in range(num_prompts)]
    prompts = [Prompt(index=n, ids=tuple(encode(text)), text=text) for n, text in enumerate(texts)]
    return Workload("few-shot", prompts, num_samples)


def distinct_workload(like: Workload) -> Workload:
    """Return as many rows as `like` has, of the same lengths, that differ from the first token
    on."""
    sources = [prompt for prompt in like.prompts for _ in range(like.num_samples)]
    prompts = [
        Prompt(index=n, ids=(100 + n, *source.ids[1:]), text="") for n, source in enumerate(sources)
    ]
    return Workload("distinct", prompts, 1)


def measure(
    model: PreTrainedModel,
    generator: HFGenerator,
    workload: Workload,
    *,
    new_tokens: int,
    repeats: int,
) -> Measurement:
    """Time both sides `repeats` times, after a warm-up on one prompt each."""
    sides = (_run_transformers, _run_rlkit)
    times: dict[str, list[tuple[float, float]]] = {run.__name__: [] for run in sides}
    for run in sides:
        run(model, generator, workload._replace(prompts=workload.prompts[:1]), 2)
    for _ in range(repeats):
        for run in sides:
            wall, cpu = time.perf_counter(), time.process_time()
            run(model, generator, workload, new_tokens)
            if model.device.type == "cuda":
                torch.cuda.synchronize()
            times[run.__name__].append((time.perf_counter() - wall, time.process_time() - cpu))
    theirs, ours = (
        Side(*(statistics.median(clock) for clock in zip(*times[run.__name__], strict=True)))
        for run in sides
    )
    rows = len(workload.prompts) * workload.num_samples
    longest = max(len(prompt.ids) for prompt in workload.prompts)
    return Measurement(workload.name, rows, longest, new_tokens, theirs, ours)


def _line(words: Sequence[str], *, answered: bool) -> str:
    answer = f" {' '.join(reversed(words))}\n" if answered else ""
    return f"Reverse the words: {' '.join(words)}\nAnswer:{answer}"


def _run_transformers(
    model: PreTrainedModel, _: HFGenerator, workload: Workload, new_tokens: int
) -> None:
    rows = [p.ids for p in workload.prompts for _ in range(workload.num_samples)]
    longest = max(len(ids) for ids in rows)
    padded = torch.tensor([(0,) * (longest - len(ids)) + ids for ids in rows])
    lengths = torch.tensor([len(ids) for ids in rows])
    mask = torch.arange(longest) >= longest - lengths[:, None]
    model.generate(  # type: ignore[operator]  # transformers types it as a union with modules
        input_ids=padded.to(model.device),
        attention_mask=mask.to(model.device),
        do_sample=True,
        top_k=0,
        max_new_tokens=new_tokens,
        min_new_tokens=new_tokens,
        pad_token_id=0,
    )


def _run_rlkit(
    _: PreTrainedModel, generator: HFGenerator, workload: Workload, new_tokens: int
) -> None:
    seeds = [
        [sample_seed(0, 0, prompt.index, sample) for sample in range(workload.num_samples)]
        for prompt in workload.prompts
    ]
    generator.generate(
        workload.prompts,
        num_samples=workload.num_samples,
        sampling=SamplingConfig(max_completion_length=new_tokens),
        seeds=seeds,
    )


def _report(measurements: Sequence[Measurement], options: argparse.Namespace, device: str) -> None:
    results = [measurement.result() for measurement in measurements]
    print("  ".join(results[0]))
    for row in results:
        print("  ".join(f"{value!s:>{len(key)}}" for key, value in row.items()))
    result = {
        "model": options.model,
        "dtype": options.dtype,
        "device": device,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "torch_threads": torch.get_num_threads(),
        "repeats": options.repeats,
        "measurements": results,
    }
    if options.out is not None:
        options.out.write_text(json.dumps(result, indent=2) + "\n")
        print(f"wrote {options.out}")


def main() -> None:
    """Parse the command line, measure both workloads, report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", required=True, help="folder or hub id")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--prompts", type=int, default=6)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--new-tokens", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=None, help="JSON file to write")
    options = parser.parse_args()
    cuda = torch.cuda.is_available()
    device = torch.cuda.get_device_name() if cuda else platform.processor() or platform.machine()
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        options.model, dtype=options.dtype
    )
    model.train(False).to("cuda" if cuda else "cpu")
    generator = HFGenerator(
        model,
        tokenizer,
        activate=lambda _: nullcontext(),
        stop_token_ids=frozenset(),
        config=HFGeneratorConfig(),
    )
    few_shot = few_shot_workload(
        tokenizer.encode, num_prompts=options.prompts, num_samples=options.samples
    )
    measurements = [
        measure(model, generator, workload, new_tokens=options.new_tokens, repeats=options.repeats)
        for workload in (few_shot, distinct_workload(few_shot))
    ]
    _report(measurements, options, device)


if __name__ == "__main__":
    main()
