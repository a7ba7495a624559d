"""Write a LoRA adapter as a GGUF file, which llama.cpp adds to the GGUF file of its base."""

from __future__ import annotations

from pathlib import Path

from gguf import MODEL_ARCH_NAMES, GGUFWriter

from rlkit.exports.gguf.families import Names
from rlkit.exports.trained import TrainedPolicy


def write_lora(path: Path, trained: TrainedPolicy, *, name: str) -> None:
    """Write the run's adapter in float32; llama.cpp scales by alpha / rank.

    Raises ValueError when the run trained all weights, or the family has no form in GGUF.
    """
    adapter = trained.adapter
    if adapter is None:
        raise ValueError("--to gguf:lora must have a run with an adapter, got one that trained all")
    names = Names(trained.hf_config)
    writer = GGUFWriter(path, MODEL_ARCH_NAMES[names.family.arch])
    writer.add_type("adapter")
    writer.add_name(name)
    writer.add_string("adapter.type", "lora")
    # The scale of rank-stabilised LoRA comes out the same this way.
    writer.add_float32("adapter.lora.alpha", adapter.scale * adapter.rank)
    for layer, (a, b) in adapter.factors.items():
        key = names(f"{layer}.weight")
        writer.add_tensor(f"{key}.lora_a", a.float().contiguous().numpy())
        arranged = names.arrange(f"{layer}.weight", b.float())
        writer.add_tensor(f"{key}.lora_b", arranged.contiguous().numpy())
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()
