"""Starting from an adapter that exists: trained on, or merged; PEFT itself is the truth."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from folder_run import run_config
from tiny_models import make_batch, oracle_logps, random_ids, tiny_model
from tiny_run import Recorder
from tiny_tokenizers import byte_level_tokenizer
from torch import Tensor
from transformers import PreTrainedModel

from rlkit.assembly.assemble import assemble
from rlkit.models import ModelConfig
from rlkit.models.config import AdapterUse, LoRAConfig, TuningKind
from rlkit.models.load import load_model
from rlkit.models.peft_config import read_adapter_config
from rlkit.models.source import with_adapter_shape
from rlkit.policy.policy import Policy, new_policy
from rlkit.training.stopping import StopRequest
from rlkit.types import FullKL, KLDirection, OutputSpec

CPU = torch.device("cpu")
BATCH = make_batch([random_ids(6, seed=1), random_ids(9, seed=2)], [[5, 6, 7], [8, 9, 10]])


def llama(**options: Any) -> PreTrainedModel:
    """The tiny Llama with a row for each token of the byte-level tokenizer."""
    return tiny_model("llama", dtype=torch.float32, vocab_size=300, **options)


def peft_model(**options: Any) -> Any:
    """An SFT model by PEFT: random A and B on the tiny Llama."""
    values = {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "down_proj"], **options}
    model = peft.get_peft_model(llama(), peft.LoraConfig(**values))
    torch.manual_seed(7)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0.0, 0.2)
    return model


@pytest.fixture
def base(tmp_path: Path) -> Path:
    folder = tmp_path / "base"
    llama().save_pretrained(folder)
    byte_level_tokenizer().save_pretrained(folder)
    return folder


def config_of(base: Path, adapter: Path, tmp_path: Path, **options: Any) -> ModelConfig:
    cache = str(tmp_path / "cache")
    config = ModelConfig(source=str(base), adapter=str(adapter), cache_dir=cache, **options)
    return with_adapter_shape(config)


def policy_of(config: ModelConfig) -> Policy:
    base = load_model(config, device=CPU, say=lambda _: None)
    return new_policy(base, config, seed=0)


def logps(policy: Policy, adapter: dict[str, Tensor] | None) -> Tensor:
    return policy.forward(BATCH, adapter=adapter, temperature=1.0).logps


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("use", list(AdapterUse))
def test_policy_and_reference_start_as_the_sft_model(
    base: Path, tmp_path: Path, use: AdapterUse, rslora: bool
) -> None:
    sft = peft_model(use_rslora=rslora)
    sft.save_pretrained(str(tmp_path / "sft"))
    with torch.no_grad():
        truth = oracle_logps(sft, BATCH, temperature=1.0)
        plain = oracle_logps(llama(), BATCH, temperature=1.0)
    assert (truth - plain).abs().max() > 0.1
    policy = policy_of(config_of(base, tmp_path / "sft", tmp_path, adapter_use=use))
    torch.testing.assert_close(logps(policy, policy.adapter), truth, rtol=1e-5, atol=1e-5)
    # Bitwise, so that the KL of step 0 is exactly 0 by every estimator.
    assert torch.equal(logps(policy, policy.adapter), logps(policy, None))
    spec = OutputSpec(full_kl=FullKL(direction=KLDirection.reverse))
    output = policy.forward(BATCH, adapter=policy.adapter, temperature=1.0, spec=spec)
    assert output.full_kl is not None and output.full_kl.abs().max() < 1e-6
    # What trains moves; the reference stays.
    with torch.no_grad():
        for tensor in policy.adapter.values():
            tensor.add_(0.05)
    assert (logps(policy, policy.adapter) - truth).abs().max() > 1e-2
    torch.testing.assert_close(logps(policy, None), truth, rtol=1e-5, atol=1e-5)


def test_all_weights_train_from_a_merged_adapter(base: Path, tmp_path: Path) -> None:
    sft = peft_model()
    sft.save_pretrained(str(tmp_path / "sft"))
    merge = AdapterUse.merge
    config = config_of(base, tmp_path / "sft", tmp_path, adapter_use=merge, tuning=TuningKind.full)
    policy = policy_of(config)
    with torch.no_grad():
        truth = oracle_logps(sft, BATCH, temperature=1.0)
    torch.testing.assert_close(logps(policy, policy.adapter), truth, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match=r"adapter_use must be merge with model\.tuning=full"):
        ModelConfig(adapter="sft", tuning=TuningKind.full)


def test_the_shape_is_the_adapters(base: Path, tmp_path: Path) -> None:
    peft_model().save_pretrained(str(tmp_path / "sft"))
    config = config_of(base, tmp_path / "sft", tmp_path)
    assert (config.lora.rank, config.lora.alpha) == (4, 6.0)
    assert set(config.lora.targets) == {"q_proj", "down_proj"}
    assert with_adapter_shape(config) == config  # as read back from a run's folder
    with pytest.raises(ValueError, match=r"model\.lora must be left as it is with model\.adapter"):
        config_of(base, tmp_path / "sft", tmp_path, lora=LoRAConfig(rank=8))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alora_invocation_tokens": [5, 6]}, "alora_invocation_tokens must be unset, got [5, 6]"),
        ({"use_dora": True}, "use_dora must be unset, got True"),
        ({"use_qalora": True}, "use_qalora must be unset, got True"),
        ({"rank_pattern": {"q_proj": 2}}, "rank_pattern must be unset"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save must be unset"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out must be unset"),
        ({"bias": "all"}, "bias must be none, got all"),
        ({"target_modules": ".*_proj"}, "target_modules must be a list of names, got .*_proj"),
        ({"an_option_of_next_year": {"x": 1}}, "an_option_of_next_year must be unset"),
        *(
            ({"init_lora_weights": start}, f"leave the base weights as they are, got {start}")
            for start in ("pissa", "pissa_niter_16", "olora", "corda", "loftq", "lora_ga")
        ),
    ],
)
@pytest.mark.parametrize("use", list(AdapterUse))
def test_options_that_change_the_arithmetic_are_refused_by_name(
    base: Path, tmp_path: Path, use: AdapterUse, options: dict[str, Any], message: str
) -> None:
    peft_model().save_pretrained(str(tmp_path / "sft"))
    file = tmp_path / "sft" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | options))
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        config_of(base, tmp_path / "sft", tmp_path, adapter_use=use)
    assert "\n" not in str(error.value) and str(file) in str(error.value)


def test_every_option_of_pefts_own_default_is_harmless(tmp_path: Path) -> None:
    for options in ({}, {"init_lora_weights": "gaussian"}, {"lora_dropout": 0.1}):
        peft_model(**options).save_pretrained(str(tmp_path / "sft"))
        assert read_adapter_config(tmp_path / "sft").rank == 4


def test_an_adapter_of_another_model_is_refused_when_merged(base: Path, tmp_path: Path) -> None:
    other = llama(intermediate_size=64)
    config = peft.LoraConfig(r=4, target_modules=["down_proj"])
    peft.get_peft_model(other, config).save_pretrained(str(tmp_path / "sft"))
    config_ = config_of(base, tmp_path / "sft", tmp_path, adapter_use=AdapterUse.merge)
    with pytest.raises(ValueError, match=r"must fit a weight of shape \(32, 48\), got \(32, 64\)"):
        policy_of(config_)
    assert not list((tmp_path / "cache").glob("models/tiny*"))


@pytest.mark.parametrize("use", list(AdapterUse))
def test_a_run_starts_from_an_adapter_with_a_kl_of_exactly_0(
    base: Path, tmp_path: Path, use: AdapterUse
) -> None:
    """From the command line's options through two steps."""
    peft_model().save_pretrained(str(tmp_path / "sft"))
    rows = [{"prompt": "abcdefghijkl"[i], "answer": "a"} for i in range(12)]
    overrides = [
        f"model.adapter={tmp_path / 'sft'}",
        f"model.adapter_use={use.value}",
        f"model.cache_dir={tmp_path / 'cache'}",
        "model.chat_template=rlkit_plain",
        "optim.learning_rate=0.01",
        "steps=2",
    ]
    config = run_config(base, rows, tmp_path, *overrides)
    run = assemble(config, say=lambda _: None)
    tracker = Recorder()
    try:
        trainer = run.trainer(tracker, StopRequest(), run_dir=tmp_path / "run")
        trainer.fit(run.initial_state(), stop=StopRequest())
    finally:
        run.close()
    first, second = (record.metrics["kl"] for record in tracker.steps)
    assert first == 0.0
    assert tracker.evaluations[0].metrics["kl"] == 0.0
    assert run.config.model.lora.rank == (4 if use is AdapterUse.train else 16)
    assert second > 1e-4
