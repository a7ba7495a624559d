"""What vLLM does to its process: engines in succession, and an end that does not hang."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch
from engine_process import run_script

from benchmarks.random_model import write_random_model
from rlkit.generation.vllm.config import is_installed

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not is_installed(), reason="vLLM is not installed"),
]
_SCRIPT = """
import sys, time
from pathlib import Path
import torch
from transformers import AutoConfig
from rlkit.generation import VLLMGeneratorConfig
from rlkit.generation.vllm.engine import start_engine
from rlkit.generation.vllm.spec import EngineSpec
from rlkit.generation.vllm.generator import VLLMGenerator
from rlkit.types import Prompt, SamplingConfig

folder, mode = sys.argv[1:]

class NoAdapter:
    request = None

def sample(seed, close):
    spec = EngineSpec(
        location=folder, revision=None, hf_config=AutoConfig.from_pretrained(folder),
        dtype=torch.float32, device=torch.device("cpu"), max_prompt_length=64,
        max_completion_length=16, rows=4, lora_rank=8, lora_modules=("q_proj",),
    )
    config = VLLMGeneratorConfig()
    engine = start_engine(config, spec, say=lambda _: None)
    def progress(_):
        if mode == "raise":
            raise KeyboardInterrupt
    generator = VLLMGenerator(
        engine, NoAdapter(), stop_token_ids=frozenset(), config=config, progress=progress
    )
    prompt = Prompt(index=0, ids=tuple(range(40)), text="")
    (group,) = generator.generate(
        [prompt], num_samples=2, sampling=SamplingConfig(max_completion_length=8),
        seeds=[[seed, seed + 1]],
    )
    if close:
        generator.close()
        generator.close()
    return [rollout.completion_ids for rollout in group]

torch.manual_seed(11)
before = torch.get_rng_state()
results = [sample(5, True), sample(5, True), sample(9, False)]
assert results[0] == results[1], "the same seeds must sample the same in a new engine"
assert not set(results[0]) & set(results[2]), "other seeds must sample something else"
assert torch.equal(torch.get_rng_state(), before), "the trainer's random state must stay"
print("done", time.time(), flush=True)
"""

_PACKED = """
import sys
import torch
from vllm.model_executor.layers import utils
from rlkit.algorithms import Objective, build
from rlkit.launch.composing import register
from rlkit.assembly.load import plan_and_load
from rlkit.generation.vllm.compat import cpu
from rlkit.generation.vllm.config import Weights
from rlkit.launch.preflight import preflight
from rlkit.policy.policy import new_policy
from rlkit.assembly.generators import bind_adapter
from rlkit.assembly.from_config import setting_of
from rlkit.models.resolved import resolve_model

packing = utils.dispatch_cpu_unquantized_gemm

def prepare():
    prepare_cpu()
    utils.dispatch_cpu_unquantized_gemm = packing

# vLLM as it is on a CPU: oneDNN packs the weights and leaves nothing of them.
prepare_cpu, cpu.prepare_cpu = cpu.prepare_cpu, prepare
register()
(config,) = preflight([f"model.source={sys.argv[1]}", f"generator.weights={sys.argv[2]}"] + [
    "generator=vllm", "device=cpu", "run_dir=/nowhere/new", "task.max_prompt_length=64",
    "task.max_completion_length=32",
])
algorithm = build(
    Objective(config.algorithm, config.kl, config.ratio, config.correction), setting_of(config)
)
made, loaded = plan_and_load(
    config,
    algorithm,
    model=resolve_model(config.model, device=torch.device("cpu"), say=print),
    longest=(64, 32),
    say=print,
)
assert loaded.engine.weights is Weights.separate
(own,) = [part for part in made.plan.parts if part.name == "vLLM: weights of its own"]
assert own.training > 0
policy = new_policy(loaded.base, config.model, seed=0)
bind_adapter(made.config.generator, loaded.engine, loaded.base, policy, say=print)
loaded.engine.close()
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("process") / "tiny"
    write_random_model(path, "tiny", dtype=torch.float32)
    return path


def test_three_engines_in_succession_and_exit(folder: Path) -> None:
    """Two closed one after the other, the third left to the end of the process."""
    done, ended = run_script(_SCRIPT, folder, "sample")
    assert done.returncode == 0, done.stderr[-3000:]
    assert ended - float(done.stdout.split("done ")[1]) < 30


def test_an_exception_while_sampling_ends_the_process(folder: Path) -> None:
    begin = time.time()
    done, ended = run_script(_SCRIPT, folder, "raise")
    assert done.returncode in (130, -2), done.stderr[-3000:]
    assert "KeyboardInterrupt" in done.stderr
    assert ended - begin < 200


@pytest.mark.nightly
def test_weights_that_cannot_be_shared_are_loaded_twice_and_said(folder: Path) -> None:
    """And the engine samples from the trainer's policy, by its self-test."""
    done, _ = run_script(_PACKED, folder, "auto")
    assert done.returncode == 0, done.stderr[-3000:]
    lines = done.stdout.splitlines()
    (line,) = [line for line in lines if line.startswith("generator.weights: separate (auto: ")]
    assert "vLLM has packed the weights of " in line
    assert "layers for this CPU (model.layers.0.self_attn.qkv_proj first)" in line
    assert "weights separate" in done.stdout
    assert lines[-1].startswith("LoRA to vLLM: in_place, 14 layers")
    done, _ = run_script(_PACKED, folder, "shared")
    assert done.stderr.rstrip().endswith("replaced; set generator.weights=separate")
