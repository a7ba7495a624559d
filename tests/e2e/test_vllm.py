"""The command line with generator=vllm: a whole run on a random model that vLLM runs on a CPU."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import torch
from cli_process import from_the_start
from warm_cli import Forks

from benchmarks.random_model import write_random_model
from rlkit.generation.vllm.config import is_installed

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not is_installed(), reason="vLLM is not installed"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("e2e") / "tiny"
    write_random_model(path, "tiny", dtype=torch.float32)
    return path


def options(folder: Path) -> list[str]:
    """Those of a small run."""
    return [
        f"model.source={folder}",
        "generator=vllm",
        "task=max_of_n",
        "steps=2",
        "prompts_per_step=2",
        "algorithm.group_size=4",
        "evaluation.num_prompts=4",
        "evaluation.samples_per_prompt=1",
        "memory.torch_threads=1",
        "reward.workers=1",
        "run_dir=run",
    ]


def run(folder: Path, cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return from_the_start(*options(folder), *arguments, cwd=cwd, timeout=300)


def test_a_run_samples_from_the_policy_it_trains(folder: Path, tmp_path: Path) -> None:
    done = run(folder, tmp_path)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "weights shared" in done.stdout
    assert "LoRA to vLLM: in_place, 14 layers" in done.stdout
    records = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").open()]
    assert len(records) == 2
    for record in records:
        # float32: nothing but rounding may be between sampler and trainer.
        assert record["sampling/sampling_logp_difference/max"] < 1e-3
        assert record["sampling/ess"] > 0.999
    assert "vLLM while starting" in (tmp_path / "run/log.txt").read_text()


@pytest.mark.nightly
def test_all_weights_train_inside_the_engine(folder: Path, tmp_path: Path) -> None:
    reward = f"+reward.functions.digits.fn={Path(__file__).parent / 'digits_reward.py'}:digits"
    done = run(folder, tmp_path, "model.tuning=full", "optim.learning_rate=1e-3", reward)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "weights to vLLM: shared, nothing to copy" in done.stdout
    records = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").open()]
    assert all(r["sampling/sampling_logp_difference/max"] < 1e-3 for r in records)
    assert records[0]["kl"] == 0.0 < records[1]["kl"]
    asked = ("generate", "--run", "run", "--max-tokens", "3", "--raw", "12")
    said = from_the_start(*asked, cwd=tmp_path)
    assert said.returncode == 0, said.stderr[-2000:]


@pytest.mark.nightly
@pytest.mark.parametrize("generator", ["vllm", "hf"])
def test_a_base_in_8_bits_is_one_policy(folder: Path, tmp_path: Path, generator: str) -> None:
    """Sampler and trainer have the same numbers: float32 differs by rounding alone."""
    options = ["memory.quant.kind=fp8", f"generator={generator}"]
    done = run(folder, tmp_path, *options)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "14 linear layers in fp8 (e4m3)" in done.stdout + (tmp_path / "run/log.txt").read_text()
    if generator == "vllm":
        assert "weights shared" in done.stdout
        assert "LoRA to vLLM: in_place, 14 layers" in done.stdout
    records = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").open()]
    assert len(records) == 2
    for record in records:
        assert record["sampling/sampling_logp_difference/max"] < 1e-3
        assert record["sampling/ess"] > 0.999
    again = run(folder, tmp_path, *options, "steps=3", "resume=auto")
    assert again.returncode == 0, again.stdout[-2000:] + again.stderr[-2000:]
    assert len((tmp_path / "run/metrics.jsonl").read_text().splitlines()) == 3


@pytest.mark.nightly
def test_qlora_and_4_bit_rollouts(folder: Path, tmp_path: Path) -> None:
    """One NF4 base for both sides; and NF4 for vLLM alone, whose mismatch the metrics show."""
    cache = f"model.cache_dir={tmp_path / 'cache'}"
    off = {}
    for name, override in (
        ("shared", "memory=qlora"),
        ("separate", "generator.quantization=nf4"),
    ):
        done = run(folder, tmp_path, override, cache, f"run_dir={name}")
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        assert f"weights {name}" in done.stdout
        # With the NF4 weights that the engine has, adapters agree to rounding in both cases.
        (line,) = [line for line in done.stdout.splitlines() if "LoRA to vLLM: " in line]
        assert "in_place, 14 layers" in line
        first = json.loads((tmp_path / name / "metrics.jsonl").read_text().splitlines()[0])
        off[name] = first["sampling/sampling_logp_difference/mean"]
        adapter = json.loads((tmp_path / name / "adapter/adapter_config.json").read_text())
        assert adapter["base_model_name_or_path"] == str(folder)
    assert off["shared"] < 1e-4 < 1e-3 < off["separate"]
    # Made by the first run, found by the second.
    assert "Quantising" not in done.stdout and len(list((tmp_path / "cache/models").iterdir())) == 2


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.lora.rank=600", "model.lora.rank must be <= 512 with generator=vllm"),
        ("+generator.sampling.extra.top_kk=3", "top_kk is not a field of vLLM's SamplingParams"),
        ("generator.weights=sleep", "generator.weights must be shared or separate on a CPU"),
        ("generator.kv_cache_bytes=100", "generator.kv_cache_bytes must be at least"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(
    forks: Forks, folder: Path, tmp_path: Path, override: str, message: str
) -> None:
    done = forks.start(*options(folder), override, cwd=tmp_path).finish(120)
    assert done.returncode == 2, done.stdout[-2000:] + done.stderr[-2000:]
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("rlkit: ")]
    assert message in line
    assert not (tmp_path / "run").exists()
