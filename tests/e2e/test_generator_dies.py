"""A generator that dies in mid-run is started once more, and the run ends as if nothing had been.

vLLM's engine in the process raises in one of its steps, once or every time.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cli_process import environment
from safetensors.torch import load_file

from benchmarks.random_model import write_random_model
from rlkit.generation.vllm.config import is_installed
from rlkit.tracking import comparable, read_metrics

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not is_installed(), reason="vLLM is not installed"),
]
STEPS = 4
# The engine's looks at its core are counted. First none raises, then one in the third step does,
# then all from there on. All runs are of one process, which has imported vLLM once.
SCRIPT = """
import json, sys
from pathlib import Path
from vllm.v1.engine.core_client import InprocClient
from rlkit.launch.job import run_job
import rlkit

looks, bad, look = 0, range(0), InprocClient.get_output

def get_output(self):
    global looks
    looks += 1
    if looks in bad:
        raise RuntimeError("the engine core is gone")
    return look(self)

def run(name):
    global looks
    looks = 0
    print("=== run", name, flush=True)
    config = rlkit.compose(*sys.argv[1:], f"run_dir={name}")
    return run_job(config, run_dir=Path(config.run_dir))

InprocClient.get_output = get_output
codes = [run("whole")]
third = looks * 2 // 3
bad = range(third, third + 1)
codes.append(run("parts"))
bad = range(third, 10**9)
codes.append(run("again"))
print("codes", codes)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("dies")
    write_random_model(path / "tiny", "tiny", dtype=torch.float32)
    return path


def test_it_is_started_once_more_and_the_numbers_stay(folder: Path) -> None:
    options = [
        *("model.source=tiny", "generator=vllm", "task=max_of_n", f"steps={STEPS}"),
        *("prompts_per_step=2", "algorithm.group_size=4", "checkpoint.every=100"),
        *("evaluation.every=0", "evaluation.num_prompts=2", "evaluation.samples_per_prompt=1"),
        *("memory.torch_threads=1", "reward.workers=1", "tracker.plot=false"),
        "task.max_completion_length=8",
    ]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *options],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.stdout.rstrip().endswith("codes [0, 0, 1]"), done.stderr[-2000:]
    said = "vLLM died while sampling (RuntimeError: the engine core is gone)"
    whole, parts, again = done.stdout.split("=== run ")[1:]
    assert "died" not in whole and f"{said}; it is started once more" in parts
    assert [text.count("starting vLLM") for text in (whole, parts, again)] == [1, 2, 2]
    one, other = (
        [comparable(line) for line in read_metrics(folder / name)] for name in ("whole", "parts")
    )
    assert one == other and len(one) == STEPS
    a, b = (
        load_file(folder / name / "adapter/adapter_model.safetensors")
        for name in ("whole", "parts")
    )
    assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
    ends = [json.loads((folder / name / "status.json").read_text()) for name in ("parts", "again")]
    assert [end["status"] for end in ends] == ["completed", "failed"]
    assert said in ends[1]["message"]
