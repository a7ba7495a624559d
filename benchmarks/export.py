"""Seconds and host memory of writing exports of large shapes, with random weights.

Each format is written in a process of its own, so that its peak is its own. Pages of the base's
files that are mapped into memory can be taken back by the system at any time; the table shows them
apart from what the process holds itself. Nothing is proven here: random weights say nothing.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict
from pathlib import Path

import torch
import yaml

from benchmarks.ending import exit_on_sigterm
from benchmarks.random_model import SHAPES, write_random_model
from rlkit.launch.environment import hardware, versions

_FORMATS = ("merged16", "gguf:q4_k_m")


class PeakMemory:
    """Samples what this process holds, while a block runs."""

    def __init__(self) -> None:
        self.own = self.mapped = 0
        """Most bytes that are the process's own, and most that are pages of files."""
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._done.wait(0.02):
            lines = Path("/proc/self/status").read_text().splitlines()
            values = dict(line.split(":", 1) for line in lines)
            self.own = max(self.own, 1024 * int(values["RssAnon"].split()[0]))
            self.mapped = max(self.mapped, 1024 * int(values["RssFile"].split()[0]))


def make_run(folder: Path, shape: str, layers: int | None) -> None:
    """Write a run's folder with a random base and a random adapter of rank 16."""
    from rlkit.models import ModelConfig
    from rlkit.models.quantize import meta_model
    from rlkit.policy.lora import LoRAConfig, attach, init_adapter
    from rlkit.policy.lora_files import ADAPTER_FOLDER, save_adapter
    from rlkit.training.memory_config import MemoryConfig

    if layers is not None:
        SHAPES[shape]["num_hidden_layers"] = layers
    config = write_random_model(folder / "base", shape, dtype=torch.bfloat16)
    lora = attach(meta_model(config), LoRAConfig(), dtype=torch.bfloat16)
    adapter = init_adapter(lora, seed=0, device=torch.device("cpu"))
    run = folder / "run"
    save_adapter(run / ADAPTER_FOLDER, lora, adapter, base_model=str(folder / "base"))
    values = {
        "seed": 0,
        "device": "cpu",
        "model": asdict(ModelConfig(source=str(folder / "base"))) | {"dtype": "bf16"},
        "memory": asdict(MemoryConfig()),
    }
    (run / "config.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(values))))


def write(folder: Path, name: str) -> dict[str, float]:
    """Write one format and return its figures."""
    from rlkit.assembly.saved_run import read_finished_run
    from rlkit.exports.gguf.write import write_gguf
    from rlkit.exports.hf_folder import write_merged16
    from rlkit.exports.trained import open_trained

    device = torch.device("cpu")
    run = read_finished_run(folder / "run", key="--run")
    out = folder / "out"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    start = time.perf_counter()
    with PeakMemory() as peak:
        trained = open_trained(run, device=device, say=print)
        if name == "merged16":
            write_merged16(out, trained, dtype=torch.bfloat16)
        else:
            write_gguf(out / "model.gguf", trained, wanted=name.partition(":")[2], name="random")
    seconds = time.perf_counter() - start
    size = sum(path.stat().st_size for path in out.iterdir())
    shutil.rmtree(out)
    return {"seconds": seconds, "own": peak.own, "mapped": peak.mapped, "size": size}


def main() -> None:
    """Measure every shape and format, print a table and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shapes", default="qwen2.5-1.5b,llama3.1-8b", help=", ".join(SHAPES))
    parser.add_argument("--layers", type=int, help="of each model, in place of its own number")
    parser.add_argument("--formats", default=",".join(_FORMATS))
    parser.add_argument("--folder", type=Path, help="for models, 40 GB; default: a temporary one")
    parser.add_argument("--out", type=Path, default=Path("."))
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        what, value = options.child
        if what == "make":
            make_run(options.folder, value, options.layers)
        else:
            print(json.dumps(write(options.folder, value)))
        return
    rows = []
    for shape in options.shapes.split(","):
        with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
            start = time.perf_counter()
            _child(scratch, "make", shape, options.layers)
            print(f"{shape}: made in {time.perf_counter() - start:.0f} s", flush=True)
            for name in options.formats.split(","):
                figures = json.loads(_child(scratch, "write", name, None).splitlines()[-1])
                rows.append({"shape": shape, "layers": options.layers, "format": name, **figures})
                print(
                    f"{shape:<14} {name:<12} {figures['seconds']:7.1f} s  "
                    f"{figures['size'] / 1e9:6.2f} GB written  {figures['own'] / 1e9:5.2f} GB own  "
                    f"{figures['mapped'] / 1e9:5.2f} GB of mapped files",
                    flush=True,
                )
    record = {"rows": rows, "versions": versions(), "hardware": hardware(), "command": sys.argv}
    (options.out / "export.json").write_text(json.dumps(record, indent=1) + "\n")


def _child(folder: str, what: str, value: str, layers: int | None) -> str:
    command = [sys.executable, "-m", "benchmarks.export", "--folder", folder]
    command += ["--child", what, value] + ([] if layers is None else ["--layers", str(layers)])
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


if __name__ == "__main__":
    exit_on_sigterm()
    main()
