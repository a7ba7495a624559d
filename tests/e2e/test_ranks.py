"""`rlkit gpus=2` on two CPU processes: what one rank learns, how it ends, and what it refuses."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from cli_process import RunCLI
from pyarrow import parquet
from safetensors.torch import load_file

from benchmarks.random_model import write_random_model
from rlkit.generation.vllm.config import is_installed

FLOAT32 = ["device=cpu", "model.dtype=fp32", "generator=hf", "prompts_per_step=4"]


def adapter(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter" / "adapter_model.safetensors")


@pytest.mark.slow
def test_two_ranks_learn_what_one_learns_and_one_goes_on_where_two_were(
    rlkit: RunCLI, small: list[str], tmp_path: Path
) -> None:
    alone = rlkit(*small, *FLOAT32, "steps=4", "run_dir=one")
    first = rlkit(*small, *FLOAT32, "steps=2", "run_dir=two", "gpus=2")
    then = rlkit(*small, *FLOAT32, "steps=4", "run_dir=two", "resume=auto")
    assert [alone.returncode, first.returncode, then.returncode] == [0, 0, 0], first.stderr
    one, two = adapter(tmp_path / "one"), adapter(tmp_path / "two")
    assert max(float(t.abs().max()) for t in one.values()) > 1e-2
    for name, tensor in one.items():
        assert torch.allclose(tensor, two[name], atol=1e-5, rtol=0)
    rewards = [
        [json.loads(line)["reward"] for line in (tmp_path / run / "metrics.jsonl").open()]
        for run in ("one", "two")
    ]
    assert rewards[0] == pytest.approx(rewards[1], abs=1e-9)


def test_what_cannot_be_split_is_refused_before_a_rank_starts(
    rlkit: RunCLI, small: list[str], tmp_path: Path
) -> None:
    for extra, line in (
        (["gpus=5"], "gpus must be in [1, prompts_per_step (4)]: a group is never split, got 5"),
        (["gpus=0"], "gpus must be"),
        (
            ["gpus=2", "algorithm.entropy_fraction=0.5", "algorithm.entropy_coef=0.1"],
            "algorithm.entropy_fraction must be 1",
        ),
    ):
        done = rlkit(*small, *FLOAT32, "run_dir=none", *extra)
        assert done.returncode == 2
        assert line in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "none").exists()


@pytest.mark.slow
def test_a_job_of_a_sweep_has_several_ranks(
    rlkit: RunCLI, small: list[str], tmp_path: Path
) -> None:
    grid = ["-m", *small, *FLOAT32, "steps=2", "gpus=1,2", "hydra.sweep.dir=sweep"]
    done = rlkit(*grid, "hydra.launcher.jobs=1", "hydra.launcher.board=plain")
    assert done.returncode == 0, done.stdout + done.stderr
    jobs = {
        job["overrides"][-1]: job
        for job in json.loads((tmp_path / "sweep/sweep.json").read_text())["jobs"]
    }
    one, two = (adapter(tmp_path / "sweep" / jobs[f"gpus={n}"]["folder"]) for n in (1, 2))
    assert max(float((one[name] - two[name]).abs().max()) for name in one) < 1e-5
    assert (tmp_path / "sweep" / jobs["gpus=2"]["folder"] / "log.rank1.txt").exists()


def test_a_sweep_refuses_a_job_that_needs_more_cards_than_it_has(
    rlkit: RunCLI, small: list[str], tmp_path: Path
) -> None:
    # The cards exist by name only.
    options = ["hydra.sweep.dir=sweep", "hydra.launcher.gpus=[sim-0,sim-1]", "seed=0,1"]
    done = rlkit("-m", *small, *FLOAT32, "device=auto", "gpus=3", *options)
    assert done.returncode == 2
    assert "gpus must be <= 2, the CUDA devices of this sweep" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not list((tmp_path / "sweep").glob("jobs/*"))


@pytest.mark.slow
def test_a_killed_rank_ends_the_run_with_its_last_checkpoint_whole(
    small: list[str], tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "rlkit", *small, *FLOAT32, "steps=500", "gpus=2"]
    process = subprocess.Popen(
        [*command, "run_dir=killed"], cwd=tmp_path, stdout=subprocess.DEVNULL, text=True
    )
    folder = tmp_path / "killed"
    try:
        while not list((folder / "checkpoints").glob("step-*/state.json")):
            assert process.poll() is None
            time.sleep(0.05)
        children = psutil.Process(process.pid).children(recursive=True)
        ranks = [c for c in children if "rank_process" in " ".join(c.cmdline())]
        assert len(ranks) == 2
        os.kill(ranks[1].pid, signal.SIGKILL)
        assert process.wait(timeout=60) == 1
    finally:
        process.kill()
    status = json.loads((folder / "status.json").read_text())
    assert status["status"] == "failed"
    assert "rank 1 ended without a word" in status["message"]
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not [c for c in alive if c.status() != psutil.STATUS_ZOMBIE]
    again = subprocess.run(
        [*command, "run_dir=killed", "resume=must", "steps=1"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert again.returncode == 0, again.stderr


@pytest.mark.nightly
@pytest.mark.skipif(not is_installed(), reason="vLLM is not installed")
def test_two_engines_that_hold_less_than_their_shares_sample_what_one_samples(
    rlkit: RunCLI, small: list[str], tmp_path: Path
) -> None:
    """Eight prompts of four samples, where an engine decodes three completions at once."""
    folder = tmp_path / "random"
    write_random_model(folder, "tiny", dtype=torch.float32)
    options = [*small, f"model.source={folder}", "generator=vllm", "generator.max_num_seqs=3"]
    options += ["prompts_per_step=8", "steps=2", "device=cpu", "tracker.plot=false"]
    found = []
    for gpus in (1, 2):
        done = rlkit(*options, f"gpus={gpus}", f"run_dir=run{gpus}")
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        files = sorted((tmp_path / f"run{gpus}/completions").glob("step-*.parquet"))
        rows = [row for file in files for row in parquet.read_table(file).to_pylist()]
        found.append([(r["step"], r["prompt"], r["completion"], r["reward"]) for r in rows])
    assert len(found[0]) == 64 and len(set(found[0])) > 32
    assert found[0] == found[1]


@pytest.mark.nightly
@pytest.mark.skipif(not is_installed(), reason="vLLM is not installed")
@pytest.mark.parametrize(
    "options",
    [[], ["memory.weights=sharded"], ["model.tuning=full", "optim.learning_rate=1e-4"]],
    ids=["adapter", "sharded", "full"],
)
def test_two_ranks_that_are_one_engine_sample_what_one_rank_samples(
    options: list[str], rlkit: RunCLI, small: list[str], tmp_path: Path
) -> None:
    """The evaluation has one prompt, so that the second rank samples for the first alone."""
    folder = tmp_path / "random"
    write_random_model(folder, "tiny", dtype=torch.float32)
    common = [*small, f"model.source={folder}", "generator=vllm", "prompts_per_step=4"]
    common += ["steps=3", "device=cpu", "evaluation.num_prompts=1", *options]
    sharded = "memory.weights=sharded" in options
    sides = {
        "one": [] if not sharded else ["memory.weights=whole"],
        "two": ["gpus=2", "generator.tensor_parallel=2"],
    }
    found = {}
    for name, side in sides.items():
        done = rlkit(*common, *side, f"run_dir={name}", timeout=240)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        files = sorted((tmp_path / name / "completions").glob("step-*.parquet"))
        rows = [row for file in files for row in parquet.read_table(file).to_pylist()]
        found[name] = [(r["step"], r["prompt"], r["completion"], r["reward"]) for r in rows]
    assert len(found["one"]) == 48 and len(set(found["one"])) > 24
    assert found["one"] == found["two"]


@pytest.mark.nightly
def test_two_ranks_that_share_the_layers_learn_what_two_with_all_layers_learn(
    rlkit: RunCLI, small: list[str], tmp_path: Path
) -> None:
    for name, weights in (("whole", "whole"), ("sharded", "sharded")):
        options = ["gpus=2", f"memory.weights={weights}", f"run_dir={name}", "steps=3"]
        done = rlkit(*small, *FLOAT32, *options)
        assert done.returncode == 0, done.stderr
    whole, sharded = adapter(tmp_path / "whole"), adapter(tmp_path / "sharded")
    assert max(float(t.abs().max()) for t in whole.values()) > 1e-2
    assert all(torch.equal(tensor, sharded[name]) for name, tensor in whole.items())
    assert "whole would fit as well" in done.stdout + done.stderr
