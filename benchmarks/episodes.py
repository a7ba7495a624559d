"""A step with an environment against a step of single turns with the same sampled tokens.

    python -m benchmarks.episodes [--shape qwen2.5-1.5b] [--out FILE]

The work is that of `benchmarks.step` for rlkit alone: GRPO with LoRA, vLLM in the process. One side
samples completions of N tokens. The other samples two turns of N/2 tokens each, with a reply of an
environment in between. Both see the same prompts and sample the same number of tokens, so what is
more is the price of an environment: a second call of the engine, the reply and its tokens. With
`--sides one_turn,two_turns,trl_tools` TRL's GRPOTrainer does two turns as well, with a tool for the
reply. `--sides rounds,stream` compares the two ways to admit turns, with four turns whose lengths
differ: each token ends its turn by chance, and a turn has a quarter of N tokens in the mean.
`--tiny` runs a small shape.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path

from benchmarks.ending import exit_on_sigterm
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
from benchmarks.step_sides import PROMPT_TOKENS, Work, medians, rlkit_side, write_prompts

_MODULE = "benchmarks.episodes"
_REPLY = 96
"""Tokens that the reply may take with the template's text around it."""
_COUNTS = {"prompts": 8, "samples": 8, "new_tokens": 512, "warmup": 2, "steps": 5}
_TINY = {"prompts": 2, "samples": 2, "new_tokens": 8, "warmup": 1, "steps": 2}
SIDES = ("one_turn", "two_turns", "trl_tools", "rounds", "stream")
_UNEVEN = ("rounds", "stream")
_TURNS = 4
"""Turns of an uneven episode; the longest turn has as many tokens as four mean ones."""
_DEFAULT = "one_turn,two_turns"


def main() -> int:
    """Run both sides, or, as their child, one of them."""
    options = _arguments()
    if options.child:
        import rlkit.assembly.assemble  # noqa: F401  # while the other side has the device

        wait_for_turn()
        work = _work(Path(options.folder), options, options.child)
        if options.child == "trl_tools":
            from benchmarks.episodes_trl import trl_tools_side

            hand_over(trl_tools_side(work, _REPLY))
        else:
            hand_over(rlkit_side(work))
        return 0
    results: dict[str, Result] = {}
    with memory_folder() as root:
        folder = Path(root) / options.shape
        write_shape(folder, options.shape)
        for name in options.sides.split(","):
            write_prompts(_work(folder, options, name))
            _write_stops(folder, options.new_tokens // _TURNS if name in _UNEVEN else None)
            results[name] = _start(name, folder, options).finish(timeout_s=options.timeout_s)
            if options.out:
                said = _work(folder, options, name)._asdict() | {"folder": options.shape}
                write_report(options.out, _MODULE, said, results)
    print(table(results))
    return 1 if any("error" in result for result in results.values()) else 0


def table(results: dict[str, Result]) -> str:
    """One column a side, medians, and how many times the first side's each of the others is."""
    good = {side: medians(r) for side, r in results.items() if "error" not in r}
    phases = ["generate", "score", "update", "sync", "reward", "other", "step"]
    first, *others = list(good) or [""]
    lines = table_head("seconds", [*good, *(f"{side} / {first}" for side in others)])
    for phase in phases:
        cells = [m.get(phase, 0.0) for m in good.values()]
        times = [f"{c / cells[0]:.2f}" if cells[0] else "–" for c in cells[1:]]
        lines.append(f"| {phase} | " + " | ".join([*(f"{c:.3f}" for c in cells), *times]) + " |")
    tokens = [statistics.mean(results[side]["mean_tokens"]) for side in good]
    rest = [f"{t / tokens[0]:.2f}" for t in tokens[1:]]
    sampled = " | ".join([*(f"{t:.1f}" for t in tokens), *rest])
    lines.append(f"| tokens of an episode, sampled | {sampled} |")
    return "\n".join([*lines, *failures(results)])


def overrides(side: str, new_tokens: int) -> tuple[str, ...]:
    """Return what differs from the options of `benchmarks.step`."""
    chat = (
        "task.style=chat",
        "model.chat_template=rlkit_plain",
        f"task.max_prompt_length={PROMPT_TOKENS + 64}",
    )
    if side in _UNEVEN:
        return (
            *chat,
            f"task.max_completion_length={_TURNS * (new_tokens + _REPLY)}",
            "environment.fn=benchmarks.episodes_reply:Replies",
            f"+environment.options.turns={_TURNS}",
            f"environment.max_turn_tokens={new_tokens}",
            "environment.cut_turns=answer",
            f"environment.admission={side}",
        )
    if side != "two_turns":
        return chat
    return (
        *chat,
        f"task.max_completion_length={new_tokens + _REPLY}",
        "environment.fn=benchmarks.episodes_reply:Replies",
        f"environment.max_turn_tokens={new_tokens // 2}",
        "environment.cut_turns=answer",
    )


def _work(folder: Path, options: argparse.Namespace, side: str) -> Work:
    return Work(
        folder=folder,
        num_prompts=options.prompts,
        num_samples=options.samples,
        new_tokens=options.new_tokens,
        warmup=options.warmup,
        steps=options.steps,
        trl_rows=1,
        overrides=(*overrides(side, options.new_tokens), *options.set),
        run_name=f"{side}-run",
        ends_itself=side in _UNEVEN,
    )


def _write_stops(folder: Path, mean: int | None) -> None:
    """Let one id in `mean` end a turn of the random model, whose ids are about equally likely."""
    path = folder / "generation_config.json"
    path.unlink(missing_ok=True)
    if mean is not None:
        size = json.loads((folder / "config.json").read_text())["vocab_size"]
        path.write_text(json.dumps({"eos_token_id": list(range(0, size, mean))}))


def _start(name: str, folder: Path, options: argparse.Namespace) -> Side:
    arguments = child_arguments(name, folder, options, _COUNTS)
    arguments += [f"--set={override}" for override in options.set]
    environment = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "HF_HUB_OFFLINE": "1"}
    return Side(name, _MODULE, arguments, log=folder / f"{name}.log", environment=environment)


def _arguments() -> argparse.Namespace:
    parser = side_parser(_MODULE, SIDES, default=_DEFAULT, counts=_COUNTS)
    parser.set_defaults(timeout_s=110.0)
    parser.add_argument("--tiny", action="store_true", help="a small shape: a test of this program")
    parser.add_argument("--set", action="append", default=[], help="an option of rlkit")
    options = parser.parse_args()
    if options.tiny:
        options.shape = "tiny"
        vars(options).update(_TINY)
    return options


if __name__ == "__main__":
    exit_on_sigterm()
    sys.exit(main())
