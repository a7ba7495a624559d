"""One training step of rlkit, TRL and Unsloth on the same work, with where its time goes.

    python -m benchmarks.step [--shape qwen2.5-1.5b] [--sides rlkit,trl,unsloth] [--out FILE]

GRPO with LoRA on all linear layers of a random model of the shape, vLLM in the process, prompts of
128 tokens, completions of exactly as many tokens, the reference policy's KL in the loss, importance
weights against the sampler. Each side has a process of its own; they import together (but for
Unsloth, whose import starts CUDA) and take turns with the device. Prints medians over the measured
steps and writes JSON. `--tiny` runs a small shape, on a CPU as well (without Unsloth); `--set` adds
options to rlkit's command line. With `--model` and `--data` completions end by themselves. The side
`rlkit_fp8` is rlkit on a base in 8 bits.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.ending import exit_on_sigterm
from benchmarks.real_lengths import REAL_PROMPT_TOKENS, write_real
from benchmarks.side import (
    Result,
    Side,
    child_arguments,
    failures,
    hand_over,
    memory_folder,
    side_parser,
    table_head,
    wait_for_turn,
    write_report,
    write_shape,
)
from benchmarks.step_sides import (
    PROMPT_TOKENS,
    Work,
    medians,
    rlkit_fp8_side,
    rlkit_side,
    write_prompts,
)
from benchmarks.step_trl import trl_side, trl_whole_side, unsloth_side

_MODULE = "benchmarks.step"
SIDES: dict[str, Callable[[Work], dict[str, object]]] = {
    "rlkit": rlkit_side,
    "rlkit_fp8": rlkit_fp8_side,
    "trl": trl_side,
    "trl_whole": trl_whole_side,
    "unsloth": unsloth_side,
}
_COUNTS = {
    "prompts": 8, "samples": 8, "new_tokens": 512, "warmup": 2, "steps": 5, "trl_rows": 8,
}  # fmt: skip
_TINY = {"prompts": 2, "samples": 2, "new_tokens": 8, "warmup": 1, "steps": 2, "trl_rows": 2}


def main() -> int:
    """Run the sides, or, as their child, one of them."""
    options = _arguments()
    if options.child:
        return _child(options)
    results: dict[str, Result] = {}
    with memory_folder() as root:
        work = _work(Path(root) / options.shape, options)
        if options.model is None:
            write_shape(work.folder, options.shape)
            write_prompts(work)
        else:
            write_real(work, options.model, options.data)
        sides = options.sides.split(",")
        started = {side: _start(side, work.folder, options) for side in sides}
        for name, side in started.items():
            results[name] = side.finish(timeout_s=options.timeout_s)
            if options.out:
                said = work._asdict() | {"folder": options.shape}
                write_report(options.out, _MODULE, said, results)
    print(table(results))
    return 1 if any("error" in result for result in results.values()) else 0


def table(results: dict[str, Result]) -> str:
    """One column a side; medians, and how many times rlkit's step fits into each."""
    good = {side: medians(r) for side, r in results.items() if "error" not in r}
    phases = ["generate", "score", "update", "sync", "reward", "other", "step"]
    lines = table_head("seconds", good)
    for phase in phases:
        cells = [f"{m[phase]:.3f}" if phase in m else "–" for m in good.values()]
        lines.append(f"| {phase} | " + " | ".join(cells) + " |")
    peaks = [f"{results[side]['device_peak_bytes'] / 1e9:.1f}" for side in good]
    lines.append("| device memory, GB | " + " | ".join(peaks) + " |")
    if "rlkit" in good:
        times = [f"{m['step'] / good['rlkit']['step']:.2f}" for m in good.values()]
        lines.append("| times rlkit's step | " + " | ".join(times) + " |")
    return "\n".join([*lines, *failures(results)])


def _child(options: argparse.Namespace) -> int:
    if options.child == "unsloth":
        wait_for_turn()
        import unsloth  # noqa: F401  # before transformers and trl, and it starts CUDA
    else:
        _import_ahead(options.child)
        wait_for_turn()
    hand_over(SIDES[options.child](_work(Path(options.folder), options)))
    return 0


def _import_ahead(side: str) -> None:
    """Import what takes long and leaves the device alone, while another side has it."""
    if side.startswith("rlkit"):
        import rlkit.assembly.assemble  # noqa: F401
    else:
        import trl  # noqa: F401
    if torch.cuda.is_available() or side.startswith("rlkit"):
        import vllm  # noqa: F401


def _start(side: str, folder: Path, options: argparse.Namespace) -> Side:
    arguments = child_arguments(side, folder, options, _COUNTS)
    arguments += [f"--set={override}" for override in options.set]
    arguments += ["--four-bit"] if options.four_bit else []
    if options.model is not None:
        arguments += [f"--model={options.model}", f"--data={options.data}"]
    environment = {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "TRL_EXPERIMENTAL_SILENCE": "1",
        "HF_HUB_OFFLINE": "1",
        "UNSLOTH_COMPILE_LOCATION": str(folder / "unsloth_compiled_cache"),
        "UNSLOTH_DISABLE_STATISTICS": "1",
    }
    return Side(side, _MODULE, arguments, log=folder / f"{side}.log", environment=environment)


def _work(folder: Path, options: argparse.Namespace) -> Work:
    return Work(
        folder=folder,
        num_prompts=options.prompts,
        num_samples=options.samples,
        new_tokens=options.new_tokens,
        warmup=options.warmup,
        steps=options.steps,
        trl_rows=options.trl_rows,
        overrides=(*(["memory=qlora"] if options.four_bit else []), *options.set),
        four_bit=options.four_bit,
        prompt_tokens=PROMPT_TOKENS if options.model is None else REAL_PROMPT_TOKENS,
        ends_itself=options.model is not None,
    )


def _arguments() -> argparse.Namespace:
    parser = side_parser(_MODULE, SIDES, default="rlkit,trl,trl_whole", counts=_COUNTS)
    parser.add_argument("--tiny", action="store_true", help="a small shape: a test of this program")
    parser.add_argument("--set", action="append", default=[], help="an option of rlkit")
    parser.add_argument("--four-bit", action="store_true", help="QLoRA on a base in NF4")
    parser.add_argument("--model", type=Path, help="a trained model, whose completions may end")
    parser.add_argument("--data", type=Path, help="lines with `question`, for --model")
    options = parser.parse_args()
    if (options.model is None) != (options.data is None):
        parser.error("--model and --data must be given together")
    if options.tiny:
        options.shape = "tiny"
        vars(options).update(_TINY)
    return options


if __name__ == "__main__":
    exit_on_sigterm()
    sys.exit(main())
