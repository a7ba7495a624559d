"""Loading: values, dtype, templates, stop tokens, and weights that do not fit."""

from __future__ import annotations

import json
import re
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import random_ids, tiny_model
from transformers import AutoModelForCausalLM

from rlkit.models import AttentionImpl, ChatTemplate, DType, ModelConfig
from rlkit.models.config import Checkpointing
from rlkit.models.load import BaseModel, load_model, resolve_checkpointing
from rlkit.models.resolved import resolve_dtype

CPU = torch.device("cpu")
IDS = torch.tensor([random_ids(7, seed=1)])


def load(folder: Path, **options: object) -> BaseModel:
    config = ModelConfig(source=str(folder), **options)  # type: ignore[arg-type]
    return load_model(config, device=CPU, say=lambda _: None)


def test_a_folder_loads_with_its_values_frozen(folder: Path) -> None:
    base = load(folder)
    expected = tiny_model("llama", dtype=torch.float32)(input_ids=IDS).logits
    assert torch.equal(base.model(input_ids=IDS).logits, expected)
    assert not any(p.requires_grad for p in base.model.parameters())
    assert not base.model.training
    assert base.location == str(folder)


def test_stop_tokens_are_the_union_of_tokenizer_and_generation_config(folder: Path) -> None:
    assert load(folder).stop_ids == {2, 3}
    (folder / "generation_config.json").unlink()
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, "eos_token_id": 5}))
    assert load(folder).stop_ids == {2, 5}


def test_a_missing_pad_token_becomes_the_end_token(folder: Path) -> None:
    assert load(folder).tokenizer.pad_token_id == 2


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (DType.auto, torch.float32),
        (DType.bf16, torch.bfloat16),
        (DType.fp16, torch.float16),
        (DType.fp32, torch.float32),
    ],
)
def test_dtype(folder: Path, dtype: DType, expected: torch.dtype) -> None:
    base = load(folder, dtype=dtype)
    assert base.dtype == expected
    assert {p.dtype for p in base.model.parameters()} == {expected}
    assert base.notes[0].startswith("dtype: ")


def test_auto_dtype_says_why() -> None:
    assert resolve_dtype(DType.auto, CPU) == (torch.float32, "dtype: fp32 (auto: cpu)")
    assert resolve_dtype(DType.bf16, CPU) == (torch.bfloat16, "dtype: bf16 (model.dtype)")


@pytest.mark.gpu
def test_auto_dtype_on_cuda() -> None:
    dtype, why = resolve_dtype(DType.auto, torch.device("cuda"))
    native = torch.cuda.get_device_capability()[0] >= 8
    assert dtype == (torch.bfloat16 if native else torch.float16)
    assert torch.cuda.get_device_name() in why


def test_checkpointing_is_automatic_by_size_and_device(folder: Path) -> None:
    model = load(folder).model
    auto = ModelConfig()
    off, on = Checkpointing.off, Checkpointing.on
    assert resolve_checkpointing(auto, model, CPU)[0] is off
    assert resolve_checkpointing(auto, model, torch.device("cuda"))[0] is off
    with torch.device("meta"):
        large = tiny_model("llama", vocab_size=32_000_000)
    assert resolve_checkpointing(auto, large, torch.device("cuda"))[0] is on
    assert resolve_checkpointing(auto, large, CPU)[0] is off
    for wanted in (off, on, Checkpointing.offload):
        config = ModelConfig(gradient_checkpointing=wanted)
        reason = f"gradient checkpointing: {wanted.value}"
        assert resolve_checkpointing(config, model, CPU) == (wanted, reason)


def test_attention_is_eager_where_scores_are_capped(tmp_path: Path, folder: Path) -> None:
    assert load(folder).model.config._attn_implementation == "sdpa"
    eager = load(folder, attention=AttentionImpl.eager)
    assert eager.model.config._attn_implementation == "eager"
    tiny_model("gemma2", dtype=torch.float32).save_pretrained(folder)
    assert load(folder).model.config._attn_implementation == "eager"


MESSAGES = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]


def render(base: BaseModel, *, generate: bool) -> object:
    return base.tokenizer.apply_chat_template(
        MESSAGES, tokenize=False, add_generation_prompt=generate
    )


def test_a_base_model_gets_the_plain_template_and_says_so(folder: Path) -> None:
    base = load(folder)
    assert render(base, generate=False) == "### user\nhi\n\n### assistant\nyo</s>\n\n"
    assert render(base, generate=True) == (
        "### user\nhi\n\n### assistant\nyo</s>\n\n### assistant\n"
    )
    assert "chat template: rlkit_plain (the tokenizer has none)" in base.notes


def test_the_tokenizers_own_template_comes_first(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{{ messages[0]['content'] }}!")
    base = load(folder)
    assert render(base, generate=True) == "hi!"
    assert "chat template: the tokenizer's own" in base.notes
    plain = load(folder, chat_template=ChatTemplate.rlkit_plain)
    assert str(render(plain, generate=True)).startswith("### user\n")


def test_a_tokenizer_that_begins_with_bos_keeps_it_in_built_in_templates(folder: Path) -> None:
    path = folder / "tokenizer.json"
    values = json.loads(path.read_text())
    special = {"SpecialToken": {"id": "<s>", "type_id": 0}}
    sequence = {"Sequence": {"id": "A", "type_id": 0}}
    values["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [special, sequence],
        "pair": [special, sequence, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
    }
    path.write_text(json.dumps(values))
    base = load(folder)
    assert base.tokenizer.encode("a")[0] == 1
    assert str(render(base, generate=True)).startswith("<s>### user\n")


def test_chatml_needs_its_tokens(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"model.chat_template=chatml needs .*<\|im_end\|>"):
        load(folder, chat_template=ChatTemplate.chatml)


def test_a_missing_weight_is_an_error_and_not_random(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    message = "must hold every weight of its config.*model.layers.1.mlp.up_proj.weight"
    with pytest.raises(ValueError, match=message):
        load(folder)


def test_a_wrongly_shaped_weight_is_an_error(folder: Path) -> None:
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, "intermediate_size": 40}))
    with pytest.raises(ValueError, match="must hold weights of the shapes of its config"):
        load(folder)


def test_a_folder_without_tokenizer(folder: Path) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(ValueError, match=re.escape(str(folder))):
        load(folder)


def test_a_source_is_needed() -> None:
    with pytest.raises(ValueError, match=r"model.source must name a model"):
        ModelConfig(source=" ")


def write_gguf(path: Path) -> None:
    """The tiny llama in GGUF, with rows of queries and keys in GGUF's order."""
    model = tiny_model("llama", dtype=torch.float32)
    config = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(256)
    writer.add_embedding_length(32)
    writer.add_block_count(2)
    writer.add_feed_forward_length(48)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_rope_dimension_count(8)
    writer.add_rope_freq_base(float(config.rope_parameters["rope_theta"]))
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(67)
    tokens = ["<unk>", "<s>", "</s>", "a", "b", "ab", "ba", *(f"c{i}" for i in range(60))]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 3] + [1] * 64)
    # Two, as transformers 5.17 takes a list of one for its only element.
    writer.add_token_merges(["a b", "b a"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight":
            continue
        heads = 4 if "q_proj" in name else 2 if "k_proj" in name else None
        if heads is not None:
            tensor = tensor.reshape(heads, 2, 4, 32).transpose(1, 2).reshape(tensor.shape)
        target = names.get_name(name, try_suffixes=(".weight",))
        assert target is not None
        writer.add_tensor(target, np.ascontiguousarray(tensor.numpy()))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_gguf_file_is_converted_once_and_keeps_every_value(tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf")
    config = ModelConfig(source=str(tmp_path / "tiny.gguf"), cache_dir=str(tmp_path / "cache"))
    said: list[str] = []
    base = load_model(config, device=CPU, say=said.append)
    assert len(said) == 1 and "tiny.gguf" in said[0]
    expected = tiny_model("llama", dtype=torch.float32)
    for name, value in expected.state_dict().items():
        assert torch.equal(base.model.state_dict()[name], value), name
    # The RMSNorm epsilon is stored in float32 by GGUF.
    torch.testing.assert_close(
        base.model(input_ids=IDS).logits, expected(input_ids=IDS).logits, rtol=1e-5, atol=1e-5
    )
    assert base.stop_ids == {2}
    assert base.tokenizer.eos_token_id == 2  # transformers 5.17 alone would say 1
    again = load_model(config, device=CPU, say=said.append)
    assert len(said) == 1
    assert again.location == base.location
    # Other engines load the converted folder without knowing where it came from.
    plain = AutoModelForCausalLM.from_pretrained(base.location)
    assert torch.equal(plain(input_ids=IDS).logits, base.model(input_ids=IDS).logits)


def test_a_changed_gguf_file_is_converted_anew(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    config = ModelConfig(source=str(path), cache_dir=str(tmp_path / "cache"))
    write_gguf(path)
    first = load_model(config, device=CPU, say=lambda _: None).location
    path.touch()
    assert load_model(config, device=CPU, say=lambda _: None).location != first


def test_a_cut_off_gguf_file_is_refused_and_nothing_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    write_gguf(path)
    path.write_bytes(path.read_bytes()[:2000])
    config = ModelConfig(source=str(path), cache_dir=str(tmp_path / "cache"))
    with pytest.raises(ValueError, match=r"model.source must be a GGUF file that transformers"):
        load_model(config, device=CPU, say=lambda _: None)
    assert not [p for p in (tmp_path / "cache" / "models").iterdir() if p.is_dir()]
