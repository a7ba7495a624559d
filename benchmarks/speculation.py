"""Completions with and without guesses of the next tokens: acceptance, tokens a second, sameness.

    python -m benchmarks.speculation --model M --data QUESTIONS.jsonl [--tiny] [--out FILE]

The completions are of real lengths: answers of a trained model to questions in its chat template,
ended by its stop tokens. All sides have one engine and the same seeds. `none` is without guesses; a
side such as `group 3` guesses up to 3 tokens from the completions of the same prompt. `history` has
a call with other seeds before the one that is measured, as a run has an epoch before. On CUDA it is
vLLM in bfloat16, with an adapter of rank 16; elsewhere transformers in float32.

With `--shape` the weights are random, next to no guess is right, and the speed says what a pass
over several tokens costs.

`same` is the share of completions that are those of `none`, token for token. In 16 bits a pass over
several tokens rounds otherwise than a pass over one. So the row `none, other batch` samples half of
the prompts alone, in batches of another size: what two batches of vLLM differ by without guesses.
`same width` compares with the first side that guesses as many tokens.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.random_model import SHAPES
from benchmarks.side import Result, memory_folder, write_report, write_shape
from benchmarks.speculation_engine import VLLMSides
from rlkit.generation import HFGeneratorConfig, sample_seed
from rlkit.generation.hf import HFGenerator
from rlkit.generation.speculation import DraftSource, SpeculationKind, SpeculationOptions
from rlkit.models.config import ModelConfig
from rlkit.models.source import locate
from rlkit.types import Generator, Prompt, Rollout, SamplingConfig

_MODULE = "benchmarks.speculation"
_MOST_PROMPT = 320


class Sides(Protocol):
    """One engine that samples with any options."""

    def generator(self, speculation: SpeculationOptions) -> Generator:
        """Return a generator that knows nothing of earlier ones."""

    def renew(self, generator: Generator) -> None:
        """Load the adapter as a step does before each call, so that no prompt is remembered."""


class HFSides:
    """transformers in float32."""

    def __init__(self, folder: Path, stops: frozenset[int]) -> None:
        self._model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        self._tokenizer, self._stops = AutoTokenizer.from_pretrained(folder), stops

    def generator(self, speculation: SpeculationOptions) -> Generator:
        """Return a generator on the one model."""
        return HFGenerator(
            self._model,
            self._tokenizer,
            activate=lambda _: nullcontext(),
            stop_token_ids=self._stops,
            config=HFGeneratorConfig(speculation=speculation),
        )

    def renew(self, generator: Generator) -> None:
        """Do nothing: this generator keeps no prompt from one call to the next."""


class Work(NamedTuple):
    """The same completions for every side."""

    prompts: list[Prompt]
    num_samples: int
    sampling: SamplingConfig
    repeats: int

    def sample(self, generator: Generator, *, epoch: int, part: int = 1) -> list[Rollout]:
        """Sample the first 1 / `part` of the prompts; seeds differ from epoch to epoch."""
        prompts = self.prompts[: max(1, len(self.prompts) // part)]
        seeds = [
            [sample_seed(0, epoch, p.index, i) for i in range(self.num_samples)] for p in prompts
        ]
        groups = generator.generate(
            prompts, num_samples=self.num_samples, sampling=self.sampling, seeds=seeds
        )
        return [rollout for group in groups for rollout in group]


def main() -> None:
    """Run all sides and print a table."""
    options = _arguments()
    with memory_folder() as root:
        folder, prompts, stops = _model(options, Path(root))
        work = Work(
            prompts,
            options.samples,
            SamplingConfig(max_completion_length=options.tokens, temperature=options.temperature),
            options.repeats,
        )
        wanted = [_side(name, options) for name in options.sides.split(",")]
        sides: Sides = HFSides(folder, stops)
        if torch.cuda.is_available():
            longest = max(len(prompt.ids) for prompt in prompts)
            rows = len(prompts) * options.samples
            sides = VLLMSides(
                folder, stops, prompt=longest, completion=options.tokens, rows=rows, wanted=wanted
            )
        results = _measure(sides, wanted, work, batches=torch.cuda.is_available())
    print(table(results))
    if options.out:
        shown = {key: value for key, value in vars(options).items() if key != "out"}
        write_report(options.out, _MODULE, shown, results)


def _measure(
    sides: Sides, wanted: Sequence[SpeculationOptions], work: Work, *, batches: bool
) -> dict[str, Result]:
    plain = sides.generator(SpeculationOptions())
    results: dict[str, Result] = {}
    first: dict[int, list[Rollout]] = {}
    results["none"], truth = _timed(sides, plain, work)
    if batches:
        sides.renew(plain)
        halves = work.sample(plain, epoch=1, part=2)
        results["none, other batch"] = _compared(halves, truth[: len(halves)])
    for side in wanted:
        generator = sides.generator(side)
        if side.source is DraftSource.history:
            sides.renew(generator)
            work.sample(generator, epoch=0)
        result, found = _timed(sides, generator, work)
        name = f"{side.source.value} {side.tokens}"
        results[name] = result | _compared(found, truth)
        if side.tokens in first:
            # Passes of one width round alike, whatever was guessed in them.
            results[name]["same_width"] = _compared(found, first[side.tokens])["same"]
        first.setdefault(side.tokens, found)
        print(f"{name}: {result['tokens_per_second']:.0f} tokens/s", flush=True)
    return results


def _timed(sides: Sides, generator: Generator, work: Work) -> tuple[Result, list[Rollout]]:
    """Time calls with different seeds, so that no history holds what is sampled next.

    The first one is a warm-up; what it samples is what sides are compared by.
    """
    seconds: list[float] = []
    counts: list[int] = []
    found: list[Rollout] = []
    everything: list[Rollout] = []
    for number in range(1 + work.repeats):
        sides.renew(generator)
        start = time.perf_counter()
        rollouts = work.sample(generator, epoch=1 + number)
        seconds.append(time.perf_counter() - start)
        counts.append(sum(len(rollout.completion_ids) for rollout in rollouts))
        found = found or rollouts
        everything += rollouts
    tokens = sum(counts)
    drafted = sum(rollout.drafted for rollout in everything)
    accepted = sum(rollout.accepted for rollout in everything)
    lengths = [len(rollout.completion_ids) for rollout in everything]
    speeds = [count / each for count, each in zip(counts[1:], seconds[1:], strict=True)]
    return {
        "seconds": seconds,
        "tokens": counts,
        "tokens_per_second": statistics.median(speeds),
        "mean_length": statistics.mean(lengths),
        "longest": max(lengths),
        "acceptance": accepted / drafted if drafted else None,
        "tokens_per_pass": tokens / (tokens - accepted),
    }, found


def _compared(found: Sequence[Rollout], truth: Sequence[Rollout]) -> Result:
    """Share of equal completions, and the logps of tokens up to the first that differs."""
    same, off, common = 0, [0.0], 0
    for a, b in zip(found, truth, strict=True):
        same += a.completion_ids == b.completion_ids
        for x, y, p, q in zip(
            *(a.completion_ids, b.completion_ids, a.sampling_logps, b.sampling_logps), strict=False
        ):
            if x != y:
                break
            common += 1
            off.append(abs(p - q))
    tokens = sum(len(b.completion_ids) for b in truth)
    return {
        "same": same / len(truth),
        "common_tokens": common / tokens,
        "logp_difference_mean": statistics.mean(off),
        "logp_difference_max": max(off),
    }


def table(results: dict[str, Result]) -> str:
    """Return one line a side, in Markdown."""
    lines = [
        "| guesses | tokens/s | against none | acceptance | tokens a pass | same | same width "
        "| logps differ |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    base = results["none"]["tokens_per_second"]
    for name, result in results.items():
        speed = result.get("tokens_per_second")
        accepted, same = result.get("acceptance"), result.get("same")
        cells = (
            "" if speed is None else f"{speed:.0f}",
            "" if speed is None else f"{speed / base:.2f}",
            "" if accepted is None else f"{accepted:.3f}",
            "" if speed is None else f"{result['tokens_per_pass']:.2f}",
            "" if same is None else f"{same:.3f}",
            "" if "same_width" not in result else f"{result['same_width']:.3f}",
            "" if same is None else f"{result['logp_difference_mean']:.1e}",
        )
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    none = results["none"]
    lines.append(f"completions of {none['mean_length']:.0f} tokens, the longest {none['longest']}")
    return "\n".join(lines)


def _side(name: str, options: argparse.Namespace) -> SpeculationOptions:
    source, tokens = name.split()
    return SpeculationOptions(
        kind=SpeculationKind.ngram,
        source=DraftSource(source),
        tokens=int(tokens),
        shortest=options.shortest,
        longest=options.longest,
        rows=options.rows,
    )


def _model(options: argparse.Namespace, root: Path) -> tuple[Path, list[Prompt], frozenset[int]]:
    if options.tiny or options.shape:
        shape = options.shape or "tiny"
        write_shape(root / shape, shape)
        prompts = [
            Prompt(index=n, ids=tuple((7 * n + i) % 40 for i in range(20 + n)), text="")
            for n in range(options.prompts)
        ]
        return root / shape, prompts, frozenset(range(250, 256) if options.tiny else ())
    folder = locate(ModelConfig(source=str(options.model)), say=print)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompts = []
    for line in options.data.read_text().splitlines():
        chat = [{"role": "user", "content": json.loads(line)["question"]}]
        text = str(tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True))
        ids = tuple(tokenizer(text, add_special_tokens=False)["input_ids"])
        if len(ids) <= _MOST_PROMPT:
            prompts.append(Prompt(index=len(prompts), ids=ids, text=text))
        if len(prompts) == options.prompts:
            break
    return Path(folder), prompts, frozenset({tokenizer.eos_token_id})


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=f"python -m {_MODULE}")
    parser.add_argument("--model", help="a GGUF file, a folder or a name")
    parser.add_argument("--data", type=Path, help="lines of JSON with a question")
    parser.add_argument("--tiny", action="store_true", help="a random model; the program itself")
    parser.add_argument("--shape", choices=sorted(SHAPES), help="random weights: what a pass costs")
    parser.add_argument("--sides", default="own 3,group 1,group 2,group 3,group 7,history 3")
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=512, help="most of a completion")
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--shortest", type=int, default=2)
    parser.add_argument("--longest", type=int, default=4)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if not (options.tiny or options.shape or (options.model and options.data)):
        parser.error("--model and --data, or --shape, or --tiny")
    return options


if __name__ == "__main__":
    main()
