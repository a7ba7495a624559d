"""`rlkit serve` hands vLLM a folder of links and a command; the server itself is vLLM's own."""

from __future__ import annotations

from pathlib import Path

import pytest
from exported_run import random_adapter, random_model, run_folder
from transformers import AutoConfig, AutoTokenizer, GenerationConfig

from rlkit.exports.serve import Served, ServeRequest, prepare_server
from rlkit.models import ModelConfig, TuningKind
from rlkit.models.save import MODEL_FOLDER
from rlkit.policy.lora import LoRAConfig
from rlkit.policy.lora_files import ADAPTER_FOLDER


def serve(folder: Path, *further: str) -> Served:
    request = ServeRequest(run=folder, host="127.0.0.1", port=8123, name="", further=further)
    return prepare_server(request, say=print)


def _value(command: list[str], flag: str) -> str:
    return command[command.index(flag) + 1]


def test_the_server_gets_the_adapter_the_stops_and_the_template(tmp_path: Path) -> None:
    source = random_model(tmp_path / "base", "llama")
    folder = run_folder(tmp_path / "run", source)
    random_adapter(source, folder, LoRAConfig(rank=3))
    served = serve(folder, "--max-model-len", "64")
    assert served.name == "run" and served.stop == ("\n",)
    command = served.command
    assert command[1:3] == ["-m", "vllm.entrypoints.openai.api_server"]
    assert _value(command, "--lora-modules") == f"run={folder / ADAPTER_FOLDER}"
    assert _value(command, "--max-lora-rank") == "8", "vLLM has no room of exactly 3"
    assert _value(command, "--served-model-name") == "run-base"
    assert (_value(command, "--dtype"), _value(command, "--port")) == ("float32", "8123")
    assert command[-2:] == ["--max-model-len", "64"]
    links = Path(_value(command, "--model"))
    assert (links / "model.safetensors").resolve() == (source / "model.safetensors").resolve()
    generation = GenerationConfig.from_pretrained(links)
    assert generation.eos_token_id == [3] and generation.temperature == 0.9
    assert generation.max_new_tokens == 8
    template = AutoTokenizer.from_pretrained(source).chat_template
    assert AutoTokenizer.from_pretrained(links).chat_template == template
    serve(folder)  # a second time replaces the folder


def test_a_run_that_trained_all_weights_keeps_its_rotary_factors(tmp_path: Path) -> None:
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    source = random_model(
        tmp_path / "base", "llama", rope_parameters=rope, max_position_embeddings=32
    )
    model = ModelConfig(source="gone", tuning=TuningKind.full, rope_length=64)
    folder = run_folder(tmp_path / "run", source, model=model)
    source.rename(folder / MODEL_FOLDER)
    served = serve(folder)
    assert _value(served.command, "--served-model-name") == "run"
    assert "--enable-lora" not in served.command
    written = AutoConfig.from_pretrained(_value(served.command, "--model")).rope_parameters
    assert written["rope_type"] == "default"
    # 10000 (2 * 64 / 32 - 1)^(8 / 6), heads of 8
    assert written["rope_theta"] == pytest.approx(10000.0 * 3.0 ** (8 / 6))


def test_a_rank_that_vllm_has_no_room_for(tmp_path: Path) -> None:
    source = random_model(tmp_path / "base", "llama")
    folder = run_folder(tmp_path / "run", source)
    random_adapter(source, folder, LoRAConfig(rank=600, targets=["q_proj"]))
    with pytest.raises(ValueError, match="of rank <= 512 for vLLM, got 600"):
        serve(folder)
