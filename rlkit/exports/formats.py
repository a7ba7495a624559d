"""List the formats that a run can leave the house in, with the bound that each must keep."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

CARD = "README.md"
"""The name of the model card in the folder of an export."""


class Loader(StrEnum):
    """The library that loads an export again, to prove that it is the run's policy."""

    peft = "peft"
    transformers = "transformers"
    """It loads a folder; vLLM may load it as well."""
    xllamacpp = "xllamacpp"


class WithVLLM(StrEnum):
    """It says whether vLLM loads the whole models of an export as well as transformers."""

    auto = "auto"
    """It does where the run's device is a GPU; what it cannot load is said in one line."""
    always = "always"
    """It does on a CPU as well; what it cannot load is refused."""
    never = "never"


class Kind(StrEnum):
    """The kind of thing that a format writes."""

    adapter = "adapter"
    """The adapter alone, in PEFT's format."""
    folder = "folder"
    """A whole model in Hugging Face's format."""
    gguf = "gguf"
    """A whole model as one GGUF file."""
    gguf_lora = "gguf_lora"
    """The adapter alone, as a GGUF file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """A format has a name, a kind, a size and a bound."""

    name: str
    """The text after `--to`."""
    kind: Kind
    bits: float
    """Bits of a weight of a linear layer, for the look at the disk."""
    max_kl: float
    """Most nats a token of KL(the run's policy || the export)."""
    loader: Loader

    @property
    def folder(self) -> str:
        """Return the name of the format's folder."""
        return self.name.replace(":", "-")

    @property
    def gguf_type(self) -> str:
        """Return the part after `gguf:`, such as `q4_k_m`; empty for other formats."""
        return self.name.partition(":")[2]


def _gguf(name: str, bits: float, max_kl: float) -> Format:
    return Format(
        name=f"gguf:{name}", kind=Kind.gguf, bits=bits, max_kl=max_kl, loader=Loader.xllamacpp
    )


def _folder(name: str, bits: float, max_kl: float) -> Format:
    return Format(name=name, kind=Kind.folder, bits=bits, max_kl=max_kl, loader=Loader.transformers)


# The bounds are a few times what SmolLM2-135M loses; larger models lose less. Another model than
# the run's is whole nats away (docs/exports.md).
FORMATS: tuple[Format, ...] = (
    Format(name="adapter", kind=Kind.adapter, bits=0.5, max_kl=0.01, loader=Loader.peft),
    _folder("merged16", 16.0, 0.02),
    _folder("merged4", 4.5, 0.4),
    _folder("fp8", 8.1, 0.1),
    _folder("w4a16", 4.5, 0.6),
    # While GPTQ or AWQ works, the model in 16 bits lies beside it.
    _folder("gptq", 20.5, 0.4),
    _folder("awq", 20.5, 0.4),
    _gguf("f16", 16.0, 0.02),
    _gguf("q8_0", 8.5, 0.03),
    _gguf("q6_k", 6.6, 0.05),
    _gguf("q5_k_m", 5.7, 0.1),
    _gguf("q4_k_m", 4.9, 0.2),
    _gguf("q4_0", 4.5, 0.4),
    Format(name="gguf:lora", kind=Kind.gguf_lora, bits=0.5, max_kl=0.05, loader=Loader.xllamacpp),
)


def parse_formats(text: str) -> tuple[Format, ...]:
    """Return the formats of `merged16,gguf:q4_k_m`; raises ValueError naming one that is none."""
    known = {format.name: format for format in FORMATS}
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in known:
            raise ValueError(f"--to must be among {', '.join(known)}, got {name}")
    if not names:
        raise ValueError(f"--to must name a format ({', '.join(known)}), got {text!r}")
    if len(set(names)) < len(names):
        raise ValueError(f"--to must name each format once, got {text}")
    return tuple(known[name] for name in names)
