"""The cost of generation beside its decoding: rlkit, plain vLLM and TRL on the same work.

    python -m benchmarks.generation [--sides rlkit,rlkit_base,vllm,trl] [--out FILE]

A random model of the shape, LoRA on all linear layers, prompts of 128 tokens. Each side runs in a
process of its own and samples exactly the same number of tokens. `rlkit_base` is rlkit without
LoRA, `vllm` vLLM's own loop without LoRA. rlkit runs twice: with empty caches of compiled kernels
(vLLM's, Triton's, Inductor's) and with what the first run left there. Prints a table and writes
JSON with versions and hardware.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path

from benchmarks.ending import exit_on_sigterm
from benchmarks.generation_peers import trl_side, vllm_side
from benchmarks.generation_sides import Work, rlkit_base_side, rlkit_side
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
from rlkit.generation.vllm.config import Compilation

_MODULE = "benchmarks.generation"
SIDES: dict[str, Callable[[Work], dict[str, object]]] = {
    "rlkit": rlkit_side,
    "rlkit_base": rlkit_base_side,
    "vllm": vllm_side,
    "trl": trl_side,
}


def main() -> None:
    """Run the sides, or, as their child, one of them."""
    options = _arguments()
    if options.child:
        wait_for_turn()
        hand_over(SIDES[options.child](_work(Path(options.folder), options)))
        return
    results: dict[str, Result] = {}
    with memory_folder() as root:
        folder = Path(root) / options.shape
        write_shape(folder, options.shape)
        for side in options.sides.split(","):
            name = f"{side} (cold)" if side == "rlkit" and options.cold else side
            results[name] = _run(side, folder, options)
            if name != side:
                results[side] = _run(side, folder, options)
    print(table(results))
    if options.out:
        work = _work(Path(options.shape), options)._asdict() | {"folder": options.shape}
        write_report(options.out, _MODULE, work, results)


def table(results: dict[str, Result]) -> str:
    """One column a side; medians."""
    rows: list[tuple[str, Callable[[Result], str]]] = [
        ("LoRA sync, ms", lambda r: _number(r.get("sync_ms"), "{:.2f}")),
        ("generation, s", lambda r: _number(_median(r.get("generation_s")), "{:.2f}")),
        ("base weights, GB", lambda r: _number(r.get("base_weight_bytes"), "{:.2f}", 1e-9)),
        ("GPU memory in use, GB", lambda r: _number(r.get("gpu_memory_bytes"), "{:.1f}", 1e-9)),
        ("start to first token, s", lambda r: _number(r.get("first_token_s"), "{:.1f}")),
    ]
    lines = table_head("", results)
    for title, cell in rows:
        lines.append(f"| {title} | " + " | ".join(cell(r) for r in results.values()) + " |")
    return "\n".join([*lines, *failures(results)])


def _run(side: str, folder: Path, options: argparse.Namespace) -> Result:
    """One side in a fresh process."""
    arguments = child_arguments(side, folder, options, [*_COUNTS, "compilation"])
    caches = ("VLLM_CACHE_ROOT", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR")
    environment = {name: str(folder.with_name(name.lower())) for name in caches}
    environment["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    log = folder.with_name(f"{side}.log")
    child = Side(side, _MODULE, arguments, log=log, environment=environment)
    return child.finish(timeout_s=options.timeout_s)


def _work(folder: Path, options: argparse.Namespace) -> Work:
    return Work(
        folder=folder,
        num_prompts=options.prompts,
        num_samples=options.samples,
        new_tokens=options.new_tokens,
        rank=options.rank,
        repeats=options.repeats,
        syncs=options.syncs,
        compilation=Compilation(options.compilation),
    )


_COUNTS = {"prompts": 8, "samples": 8, "new_tokens": 512, "rank": 16, "repeats": 3, "syncs": 20}


def _arguments() -> argparse.Namespace:
    parser = side_parser(_MODULE, SIDES, default="rlkit,rlkit_base,vllm,trl", counts=_COUNTS)
    parser.add_argument("--warm-only", dest="cold", action="store_false", help="rlkit once")
    parser.add_argument("--compilation", choices=list(Compilation), default=Compilation.auto)
    return parser.parse_args()


def _median(values: list[float] | None) -> float | None:
    return statistics.median(values) if values else None


def _number(value: float | None, form: str, factor: float = 1.0) -> str:
    return "–" if value is None else form.format(value * factor)


if __name__ == "__main__":
    exit_on_sigterm()
    main()
