"""The policies of a sweep, sampled in 16 bits whatever sampled them while they learnt.

`python experiments/rollout_precision/in_16_bits.py OUT.json MODEL SWEEP... [key=value...]` in the
root of the checkout, where the sweeps ran: a run's own evaluation samples with the run's own
sampler, so that a 4-bit arm shows what the 4-bit policy earns. Here one vLLM in bf16 samples the
held-out prompts with the seeds of those evaluations, without an adapter and then with each finished
run's.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from rlkit.launch.composing import register
from rlkit.launch.preflight import preflight
from rlkit.launch.prepare import Prepared, prepare
from rlkit.tracking.quiet import QuietTracker
from rlkit.training.stopping import StopRequest

ADAPTER = Path("adapter", "adapter_model.safetensors")
NAMES = ("generator.quantization", "generator.kv_cache_dtype", "correction", "seed")
OPTIONS = [
    "experiment=rollout_precision", "generator=vllm", "generator.kv_cache_dtype=auto",
    "correction=none", "seed=0", "memory.torch_threads=1", "memory.dry_run=off",
    "reward.workers=1", "tracker.plot=false",
]  # fmt: skip


def finished(sweeps: list[str]) -> Iterator[tuple[dict[str, str], Path]]:
    """Return what tells every finished job apart, and its adapter."""
    for sweep in map(Path, sweeps):
        for job in json.loads((sweep / "sweep.json").read_text())["jobs"]:
            folder = sweep / job["folder"]
            if (folder / "DONE").exists():
                overrides = dict(text.split("=", 1) for text in job["overrides"])
                about = {key: overrides[key] for key in NAMES if key in overrides}
                yield {"sweep": sweep.name, **about}, folder / ADAPTER


def measure(run: Prepared, sweeps: list[str]) -> Iterator[dict[str, Any]]:
    """One row for the base model, then one a finished job."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = run.trainer(QuietTracker(), StopRequest(), run_dir=Path(folder))
        adapter: Mapping[str, Tensor] = run.initial_state().learner.adapter
        trainer.generator.load_adapter(adapter, 0)
        yield {"sweep": "", **values(trainer.evaluate("base", 0))}
        for version, (about, file) in enumerate(finished(sweeps), start=1):
            learnt = load_file(file)
            assert learnt.keys() == adapter.keys(), file
            for key, tensor in adapter.items():
                tensor.data.copy_(learnt[key])
            trainer.generator.load_adapter(adapter, version)
            yield {**about, **values(trainer.evaluate(file.parent.parent.name, version))}


def values(record: EvalRecord) -> dict[str, float]:
    """Reward and KL(policy || base), in nats a completion, of the samples of `record`."""
    return {key: record.metrics[key] for key in ("reward", "kl", "length")}


def main(out: str, model: str, *sweeps_and_options: str) -> None:
    """Print a line a run and write `out`."""
    sweeps = [text for text in sweeps_and_options if "=" not in text]
    options = [text for text in sweeps_and_options if "=" in text]
    register()
    (config,) = preflight(["-m", *OPTIONS, f"model.source={model}", *options])
    run, rows, start = prepare(config, say=print), [], time.monotonic()
    try:
        for row in measure(run, sweeps):
            rows.append(row)
            print(f"{time.monotonic() - start:5.1f} s", row, flush=True)
            Path(out).write_text(json.dumps(rows, indent=1) + "\n")
    finally:
        run.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
