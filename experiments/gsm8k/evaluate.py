"""Ask adapters all held-out questions of GSM8K: greedily, and k times at temperature 1.

    python -m experiments.gsm8k.evaluate DATA OUT.json NAME=FOLDER... [--samples 4] [OVERRIDES]

Each FOLDER is a LoRA adapter in PEFT's format, whoever trained it; an empty one is the base model.
One engine of rlkit asks for all of them, with the same prompts and seeds. OUT has how often each
question was answered rightly, how often by a right calculation, and what a guess would earn.
"""

from __future__ import annotations

import argparse
import json
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from experiments.gsm8k.chains import described
from rlkit.assembly.assemble import assemble
from rlkit.assembly.stoppable import StoppableRewards
from rlkit.launch.composing import register
from rlkit.launch.preflight import preflight
from rlkit.tracking.base import EvalRecord
from rlkit.tracking.quiet import QuietTracker
from rlkit.training.evaluate import Evaluator
from rlkit.training.stopping import StopRequest

_AT_ONCE = 512
"""Completions that the engine decodes at once, where they fit."""
_SETTLED_S = 1.0
"""A file that has not changed for so long is whole."""


def overrides(options: argparse.Namespace) -> list[str]:
    """Return the configuration of a run that would train on GSM8K, of which one part is used."""
    fn = "experiments/gsm8k/chains.py:derived"
    return [
        *("algorithm=reinforce", f"algorithm.group_size={options.samples}"),
        f"prompts_per_step={_AT_ONCE // options.samples}",
        *("task=gsm8k", f"task.path={options.data}", "task.max_prompt_length=288"),
        *("task.max_completion_length=256", f"task.eval_size={options.prompts}"),
        *(f"evaluation.num_prompts={options.prompts}", "evaluation.kl=none"),
        *(f"evaluation.samples_per_prompt={options.samples}", "run_dir=evaluation-of-nothing"),
        f"+reward.functions.derived.fn={fn}",
        *options.overrides,
    ]


def main(options: argparse.Namespace) -> None:
    """Evaluate every folder, and write what was right."""
    register()
    (config,) = preflight(overrides(options))
    torch.set_num_threads(max(1, config.memory.torch_threads))
    found: dict[str, Any] = {}
    with closing(assemble(config, say=print)) as run:
        watcher, stop = QuietTracker(), StopRequest()
        generator = run.generator(watcher, stop)
        sampled = run.evaluator(generator, StoppableRewards(run.rewards, stop), watcher)
        greedy = replace(sampled, num_samples=1, sampling=sampled.sampling._replace(top_k=1))
        for version, (name, folder) in enumerate(options.folders, start=1):
            if folder and not _there(Path(folder), options.until):
                print(f"{name}: no adapter at {folder}", flush=True)
                continue
            tensors = load_file(Path(folder) / "adapter_model.safetensors") if folder else {}
            with torch.no_grad():
                for key, leaf in run.policy.adapter.items():
                    leaf.copy_(tensors[key] if folder else torch.zeros_like(leaf))
            generator.load_adapter(run.policy.adapter, version)
            found[name] = _both({"greedy": greedy, "sampled": sampled}, name)
            options.out.write_text(json.dumps(found) + "\n")


def _both(evaluators: dict[str, Evaluator], name: str) -> dict[str, Any]:
    found = {}
    for kind, evaluator in evaluators.items():
        start = time.perf_counter()
        record = evaluator(kind, 0)
        found[kind] = summary(record)
        said = ", ".join(f"{k} {v:.4f}" for k, v in found[kind].items() if isinstance(v, float))
        print(f"{name} {kind}: {said} ({time.perf_counter() - start:.0f} s)", flush=True)
    return found


def summary(record: EvalRecord) -> dict[str, Any]:
    """Return the numbers of one evaluation; `share` has that of right samples by question."""
    rows = record.samples
    texts = [row.completion for row in rows]
    return {
        "mean": record.interval.mean,
        "low": record.interval.low,
        "high": record.interval.high,
        **described(texts, [str(row.columns["answer"]) for row in rows]),
        "length": record.metrics["length"],
        "cut": sum(row.finish_reason == "length" for row in rows) / len(rows),
        "samples": record.samples_per_prompt,
        "share": list(record.values),
        "first": texts[:4],
    }


def _there(folder: Path, until: Path | None) -> bool:
    """Wait for an adapter that a run writes at its end, while the file `until` is not there."""
    file = folder / "adapter_model.safetensors"
    while not (file.is_file() and time.time() - file.stat().st_mtime > _SETTLED_S):
        if until is None or until.exists():
            return file.is_file()
        time.sleep(0.5)
    return True


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data")
    parser.add_argument("out", type=Path)
    parser.add_argument("words", nargs="+", help="NAME=FOLDER, or an override with a dot")
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--prompts", type=int, default=1319)
    parser.add_argument("--until", type=Path, help="wait for adapters until this file is there")
    options = parser.parse_intermixed_args()
    pairs = [tuple(word.split("=", 1)) for word in options.words]
    options.overrides = [f"{k}={v}" for k, v in pairs if "." in k or k == "generator"]
    options.folders = [(k, v) for k, v in pairs if "." not in k and k != "generator"]
    return options


if __name__ == "__main__":
    main(_arguments())
