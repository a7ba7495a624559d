"""Put what is worth keeping of many runs into few small files.

    python experiments/gsm8k/gather.py RUNS OUT

OUT/metrics.json has some metrics of every step by run; OUT/RUN.safetensors are the adapters of the
warm starts in 16 bits.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

_KEPT = (
    *("reward", "completions", "entropy", "grad_norm", "groups", "kl", "loss", "rewards"),
    *("num_tokens", "time", "speed"),
)


def main(runs: Path, out: Path) -> None:
    """Gather."""
    out.mkdir(parents=True, exist_ok=True)
    found = {}
    for file in sorted(runs.glob("*/metrics.jsonl")):
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        found[file.parent.name] = [
            {
                k: round(v, 5)
                for k, v in row.items()
                if k.split("/")[0] in _KEPT and isinstance(v, (int, float))
            }
            for row in rows
        ]
    (out / "metrics.json").write_text(json.dumps(found))
    for file in sorted(runs.glob("sft*/adapter/adapter_model.safetensors")):
        tensors = {k: v.to(torch.bfloat16) for k, v in load_file(file).items()}
        save_file(tensors, out / f"{file.parent.parent.name}.safetensors")
    logs = [f"=== {f.name}\n" + f.read_text()[-6000:] for f in sorted(runs.glob("*.log"))]
    (out / "logs.txt").write_text("\n".join(logs))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
