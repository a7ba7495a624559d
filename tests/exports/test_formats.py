"""Every format against an independent computation, and what is refused at the start."""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from exported_run import random_adapter, random_model, run_folder
from safetensors.torch import load_file, save_file
from tiny_run import tiny_tokenizer
from tiny_tokenizers import letter_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from rlkit.cli import run
from rlkit.exports.gguf import ggml
from rlkit.models import ModelConfig, QuantConfig, QuantKind, TuningKind
from rlkit.models.quantize import settle
from rlkit.models.quantize_error import through_nf4
from rlkit.models.save import MODEL_FOLDER
from rlkit.policy.lora import LoRAConfig
from rlkit.policy.lora_files import ADAPTER_FOLDER
from rlkit.training.memory_config import MemoryConfig

Export = Callable[..., int]
LORA = LoRAConfig(rank=3, alpha=6.0, rslora=True)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return random_model(tmp_path / "base", "qwen2", hidden_size=64, intermediate_size=64)


@pytest.fixture
def trained(source: Path, tmp_path: Path) -> Path:
    folder = run_folder(tmp_path / "run", source)
    random_adapter(source, folder, LORA)
    return folder


def export(folder: Path, to: str, out: Path, *more: str) -> int:
    arguments = ["export", "--run", str(folder), "--to", to, "--out", str(out)]
    return run([*arguments, "--prompts", "3", *more])


def _merged(source: Path, folder: Path) -> dict[str, torch.Tensor]:
    """W + s B A in float64, by hand."""
    weights = {k: v.double() for k, v in load_file(source / "model.safetensors").items()}
    adapter = load_file(folder / ADAPTER_FOLDER / "adapter_model.safetensors")
    for key, a in adapter.items():
        if "lora_A" in key:
            layer = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            b = adapter[key.replace("lora_A", "lora_B")]
            weights[f"{layer}.weight"] += 6.0 / 3**0.5 * (b.double() @ a.double())
    return weights


def test_four_bits_are_those_of_the_merged_weights(
    source: Path, trained: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert export(trained, "merged4", out, "--max-kl", "9", "--dtype", "fp32") == 0
    model = AutoModelForCausalLM.from_pretrained(out)
    settle(model, torch.float32)
    layer = model.model.layers[1].mlp.down_proj
    expected = through_nf4(
        _merged(source, trained)["model.layers.1.mlp.down_proj.weight"].float(), double_quant=True
    )
    x = torch.randn(5, layer.in_features, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(layer(x), x @ expected.T, atol=1e-4, rtol=1e-4)
    assert type(model.lm_head).__name__ == "Linear"


def test_what_lies_beside_the_weights(trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert export(trained, "merged16", out) == 0
    generation = GenerationConfig.from_pretrained(out)
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert generation.eos_token_id == [tokenizer.convert_tokens_to_ids("<|im_end|>")]
    assert (generation.temperature, generation.top_p) == (0.9, 0.95)
    assert generation.max_new_tokens == 8
    card = (out / "README.md").read_text()
    assert "library_name: transformers" in card and "| KL(policy, export), nats a token |" in card


def test_several_formats_and_both_kinds_of_adapter(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert export(trained, "adapter,gguf:lora", out, "--max-kl", "1e-3") == 0, capsys.readouterr()
    assert {p.name for p in out.iterdir()} == {"adapter", "gguf-lora"}
    assert {p.name for p in (out / "gguf-lora").iterdir()} == {"README.md", "adapter.gguf"}
    assert "[peft " in capsys.readouterr().out


def test_a_run_on_a_4_bit_base(source: Path, tmp_path: Path) -> None:
    """The GGUF file holds what the run's layers computed with, not the 16-bit base."""
    memory = MemoryConfig(quant=QuantConfig(kind=QuantKind.nf4))
    folder = run_folder(tmp_path / "run", source, memory=memory)
    random_adapter(source, folder, LORA)
    assert export(folder, "gguf:f16", tmp_path / "out", "--max-kl", "1e-3") == 0


def test_a_run_on_an_8_bit_base(source: Path, tmp_path: Path) -> None:
    """A merged layer is the adapter on what the run computed with, by hand from torch's format."""
    memory = MemoryConfig(quant=QuantConfig(kind=QuantKind.fp8))
    folder = run_folder(tmp_path / "run", source, memory=memory)
    random_adapter(source, folder, LORA)
    out = tmp_path / "out"
    assert export(folder, "merged16", out, "--max-kl", "1e-3", "--dtype", "fp32") == 0
    name = "model.layers.1.mlp.down_proj.weight"
    plain = AutoModelForCausalLM.from_pretrained(source).get_parameter(name).double()
    update = _merged(source, folder)[name] - plain
    largest = plain.abs().amax(1, keepdim=True)
    scale = 2.0 ** torch.ceil(torch.log2(largest / 448.0)).clamp(min=-15)
    number = (plain / scale).float().to(torch.float8_e4m3fn).double() * scale
    found = AutoModelForCausalLM.from_pretrained(out).get_parameter(name).double()
    torch.testing.assert_close(found, number + update, atol=1e-6, rtol=1e-5)
    assert bool(((number - plain).abs() > 1e-4).any())


def test_a_run_that_trained_all_weights(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = ModelConfig(source="gone", tuning=TuningKind.full)
    folder = run_folder(tmp_path / "run", source, model=model)
    source.rename(folder / MODEL_FOLDER)
    assert export(folder, "gguf:q8_0", tmp_path / "out") == 0, capsys.readouterr()
    for to in ("adapter", "gguf:lora"):
        assert export(folder, to, tmp_path / "other") == 2
        assert f"--to {to} must have a run that trained an adapter" in capsys.readouterr().err


def test_over_the_bound_nothing_is_left(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "deep" / "out"
    assert export(trained, "gguf:q4_0", out, "--max-kl", "1e-6") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "gguf:q4_0 must be the run's policy within 1e-06 nats a token (--max-kl), got" in error
    assert list((tmp_path / "deep").iterdir()) == []


def _refused(arguments: tuple[Path, str, Path], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line of a refusal that came before anything was written."""
    folder, to, out = arguments
    assert export(folder, to, out) == 2
    said = capsys.readouterr()
    assert "writing" not in said.out and not out.exists()
    return said.err.splitlines()[-1]


@pytest.mark.parametrize(
    ("to", "line"),
    [
        ("gguf:q9", "--to must be among adapter, merged16, "),
        ("", "--to must name a format"),
        ("merged16,merged16", "--to must name each format once, got merged16,merged16"),
    ],
)
def test_unknown_formats(
    to: str, line: str, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert line in _refused((trained, to, tmp_path / "out"), capsys)


def test_a_disk_that_is_too_small(
    trained: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=10_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    line = _refused((trained, "merged16,gguf:q8_0", tmp_path / "out"), capsys)
    assert "--out must lie on a disk with 0.13 GB free for merged16, gguf:q8_0, got 0.01 GB" in line


@pytest.mark.parametrize("to", ["merged16", pytest.param("gguf:f16", marks=pytest.mark.nightly)])
def test_a_disk_that_fills_up_while_it_is_written(to: str, trained: Path, tmp_path: Path) -> None:
    """The system refuses to make a file longer than 30 kB, as a full disk would."""
    out = tmp_path / "out"
    done = subprocess.run(
        [sys.executable, "-m", "rlkit", "export", "--run", trained, "--to", to, "--out", out],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000)),
    )
    assert done.returncode == 2, done.stderr
    assert "rlkit: --out must be a folder that can be written, got" in done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["base", "run"]


def test_an_adapter_of_another_base(
    trained: Path, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = random_model(tmp_path / "other", "qwen2", hidden_size=32)
    adapter = trained / ADAPTER_FOLDER
    random_adapter(other, trained, LORA)
    line = _refused((trained, "merged16", tmp_path / "out"), capsys)
    assert "must be an adapter of the run's base model, got one for" in line
    # One of the same shapes is told by the name that it carries.
    random_adapter(source, trained, LORA)
    config = json.loads((adapter / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = "somebody/another-base"
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    line = _refused((trained, "gguf:f16", tmp_path / "out"), capsys)
    assert "adapter_config.json must name the run's base model base, got somebody" in line


def test_a_broken_adapter(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = trained / ADAPTER_FOLDER / "adapter_model.safetensors"
    tensors = load_file(file)
    tensors[next(iter(tensors))][0] = torch.nan
    save_file(tensors, file)
    line = _refused((trained, "merged16", tmp_path / "out"), capsys)
    assert "tensors must be finite, got" in line
    file.unlink()
    line = _refused((trained, "merged16", tmp_path / "out"), capsys)
    assert "adapter_model.safetensors must be a safetensors file" in line


def test_a_family_without_names_in_gguf(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = random_model(tmp_path / "base", "cohere")
    folder = run_folder(tmp_path / "run", source)
    random_adapter(source, folder, LORA)
    line = _refused((folder, "gguf:q8_0", tmp_path / "out"), capsys)
    assert "--to gguf must have a model of the families llama, " in line and "got cohere" in line


def test_a_tokenizer_that_llama_cpp_does_not_have(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = random_model(tmp_path / "base", "llama", tokenizer=tiny_tokenizer())
    folder = run_folder(tmp_path / "run", source)
    random_adapter(source, folder, LORA)
    line = _refused((folder, "gguf:q8_0", tmp_path / "out"), capsys)
    assert "must have a tokenizer that llama.cpp has, got a WordLevel model" in line


def test_a_missing_library(
    trained: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ggml, "find_spec", lambda _: None)
    line = _refused((trained, "gguf:q8_0", tmp_path / "out"), capsys)
    assert "--to gguf:q8_0 must have xllamacpp" in line
    assert "(pip install 'rlkit-lm[export]'), got no xllamacpp" in line


def test_a_base_without_a_weight(
    trained: Path, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors = load_file(source / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    assert export(trained, "merged16", tmp_path / "out") == 2
    assert "must hold every weight of its config" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.nightly
def test_the_letters_of_a_tokenizer_without_a_template(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its vocabulary lacks most bytes, which llama.cpp must see alike or the export is refused."""
    source = random_model(tmp_path / "base", "llama", tokenizer=letter_tokenizer())
    folder = run_folder(tmp_path / "run", source)
    random_adapter(source, folder, LORA)
    code = export(folder, "gguf:f16", tmp_path / "out")
    assert code == 2 and not (tmp_path / "out").exists()
    assert "llama.cpp must find the tokens of the run's tokenizer" in capsys.readouterr().err


@pytest.mark.parametrize("to", [pytest.param("fp8", marks=pytest.mark.nightly), "w4a16"])
def test_compressed_layers_are_rounded_merged_weights(
    to: str, source: Path, trained: Path, tmp_path: Path
) -> None:
    """The truth is written here by hand: e4m3 by row, or 16 levels by group of 64 inputs."""
    out = tmp_path / "out"
    assert export(trained, to, out, "--max-kl", "9", "--dtype", "fp32") == 0
    name = "model.layers.1.mlp.gate_proj"
    weight = _merged(source, trained)[f"{name}.weight"].float()
    groups = weight.reshape(len(weight), -1, 64)
    largest = groups.abs().amax(-1, keepdim=True)
    if to == "fp8":
        scale = largest / 448.0
        expected = (groups / scale).to(torch.float8_e4m3fn).float() * scale
    else:
        scale = largest / 7.5
        expected = (groups / scale).round().clamp(-8, 7) * scale
    model = AutoModelForCausalLM.from_pretrained(out)
    model(torch.tensor([[1, 2]]))  # unpacks the layers where nothing computes in the format
    x = torch.randn(5, 64, generator=torch.Generator().manual_seed(0))
    found = model.get_submodule(name)(x)
    truth = x @ expected.flatten(-2).T
    error = (found - truth).norm() / truth.norm()
    # With fp8 the input, too, has three bits behind the point.
    assert error < (0.04 if to == "fp8" else 1e-3)
    assert (truth - x @ weight.T).norm() / truth.norm() > (0.01 if to == "fp8" else 0.03)
    assert type(model.lm_head).__name__ == "Linear"


def test_groups_that_fit_no_layer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = random_model(tmp_path / "base", "qwen2", intermediate_size=40)
    folder = run_folder(tmp_path / "run", source)
    random_adapter(source, folder, LORA)
    line = _refused((folder, "w4a16", tmp_path / "out"), capsys)
    assert "--to w4a16 must have layers whose inputs are a multiple of 32, got 32, 40" in line
