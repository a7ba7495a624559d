"""`python -m benchmarks.memory`: memory of GRPO with QLoRA on models of real shapes.

Folders with random NF4 weights are written to memory; everything of the card above a row's target
is taken away first by one plain allocation, so that a row that needs more fails. Measured is what
the device counts as used by the process, its CUDA context included (`memory_row`). Each row has a
process of its own; they prepare together and take turns with the device. `--tiny` runs small
shapes, on a CPU as well.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.ending import exit_on_sigterm
from benchmarks.memory_row import Row
from benchmarks.random_nf4 import write_nf4_folder
from benchmarks.side import wait_for_turn
from rlkit.generation import GeneratorConfig, HFGeneratorConfig, VLLMGeneratorConfig
from rlkit.generation.vllm.config import KVCacheDType, VLLMSamplingOptions
from rlkit.plan.headline import ROWS, Headline

_LONG = 50_000
"""Tokens of a step from which a part of its rows is trained on: more micro-batches of the same
size take more time and the same memory."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the rows asked for, print the table, write JSON."""
    options = _parser().parse_args(arguments)
    if options.one is not None:
        return _one(options)
    parts = options.rows.split(",")
    wanted = [row for part in parts for row in ROWS if part in row.name]
    command = " ".join(["python -m benchmarks.memory", *(arguments or sys.argv[1:])])
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{i}.json" for i in range(len(wanted))]
        started = [_start(row, path, options) for row, path in zip(wanted, paths, strict=True)]
        for row, path, process in zip(wanted, paths, started, strict=True):
            assert process.stdin is not None
            process.stdin.write(b"go\n")
            process.stdin.flush()  # it stays open: at its end the child exits
            process.wait()
            if process.returncode != 0:
                print(f"{row.name}: failed, see above")
                continue
            results.append(json.loads(path.read_text()))
            if options.json is not None:
                found = {"command": command, "python": platform.python_version(), "rows": results}
                options.json.write_text(json.dumps(found, indent=1) + "\n")
    print(table(results))
    return 0 if len(results) == len(wanted) and not any(r["problem"] for r in results) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__)
    on_cuda = torch.cuda.is_available()
    parser.add_argument("--rows", default="1.5B,8B,14B,70B", help="parts of names of rows")
    parser.add_argument("--json", type=Path, help="where to write the numbers")
    parser.add_argument("--tiny", action="store_true", help="small shapes: a test of this program")
    parser.add_argument("--generator", choices=("vllm", "hf"), default="vllm" if on_cuda else "hf")
    kinds = [kind.value for kind in KVCacheDType]
    parser.add_argument("--kv-cache-dtype", choices=kinds, default="auto")
    parser.add_argument("--sequences", type=int, help="update on N, at least a micro-batch")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    return parser


def _start(row: Headline, path: Path, options: argparse.Namespace) -> subprocess.Popen[bytes]:
    """A process that has imported and written its model, and waits for a line before it goes on."""
    command = [sys.executable, "-m", "benchmarks.memory", "--one", row.name, "--json", str(path)]
    command += ["--generator", options.generator, "--kv-cache-dtype", options.kv_cache_dtype]
    if options.tiny:
        command.append("--tiny")
    if options.sequences is not None:
        command += ["--sequences", str(options.sequences)]
    return subprocess.Popen(command, stdin=subprocess.PIPE)


def _one(options: argparse.Namespace) -> int:
    begin = time.monotonic()
    row = next(row for row in ROWS if row.name == options.one)
    row = tiny(row) if options.tiny else row

    def say(line: str) -> None:
        print(f"[{row.name.split(',')[0]} {time.monotonic() - begin:5.1f} s] {line}", flush=True)

    with tempfile.TemporaryDirectory(dir=_room(int(1.1 * row.work().weight_bytes))) as folder:
        size = write_nf4_folder(Path(folder), row.hf_config())
        say(f"{size / 1e9:.2f} GB of random NF4 weights in {folder}")
        generator = _generator(options)
        wait_for_turn()
        begin = time.monotonic()
        few = row.rows * row.work().row_tokens <= _LONG
        sequences = min(options.sequences or (row.rows if few else 2), row.rows)
        measured = Row(row, Path(folder), generator, sequences=sequences, say=say).measure()
    options.json.write_text(json.dumps(asdict(measured)))
    return 0


def _room(num_bytes: int) -> str:
    """A folder with room: in memory if there is some."""
    for path in ("/dev/shm", tempfile.gettempdir()):
        if Path(path).is_dir() and shutil.disk_usage(path).free > num_bytes:
            return path
    raise ValueError(f"/dev/shm or the temporary folder must have {num_bytes / 1e9:.1f} GB free")


def _generator(options: argparse.Namespace) -> GeneratorConfig:
    if options.generator == "hf":
        return HFGeneratorConfig()
    from rlkit.generation.vllm.guard import configure_environment

    configure_environment()
    from vllm import LLM  # noqa: F401  # slow to import, and not what is measured

    return VLLMGeneratorConfig(
        sampling=VLLMSamplingOptions(extra={"ignore_eos": True}),
        kv_cache_dtype=KVCacheDType(options.kv_cache_dtype),
        release_kv_cache=torch.cuda.is_available(),
    )


def tiny(row: Headline) -> Headline:
    """The same kind of model, small."""
    shape = row.shape | {
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 997,
    }
    return replace(row, shape=shape, max_prompt=24, max_completion=40, target=2.0)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    lines = [
        "| work | Unsloth's claim | to reach | planned | measured | sampling | training | "
        "planned / measured | update, ms (sequences) | reference, ms | decoding step, ms | "
        "start, s | problem |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        planned = max(row["planned"].values(), default=0.0)
        peaks, ms = row["peaks"], row["ms"]
        taken = max(peaks.values())
        sampling = max(peaks.get(k, 0.0) for k in ("sampling", "sampling again"))
        lines.append(
            f"| {row['name']} | {row['claimed']:.1f} GB | {row['target']:.1f} GB | "
            f"{planned:.2f} GB | {taken:.2f} GB | {sampling:.2f} GB | "
            f"{peaks.get('training', 0.0):.2f} GB | {planned / taken - 1:+.0%} | "
            f"{ms.get('update', 0.0):.0f} ({row['sequences']}) | {ms.get('reference', 0.0):.0f} | "
            f"{ms.get('decoding step', 0.0):.1f} | {ms.get('start', 0.0) / 1000:.1f} | "
            f"{row['problem']} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    exit_on_sigterm()
    sys.exit(main())
