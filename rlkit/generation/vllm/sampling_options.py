"""The sampling options of the installed vLLM, read from its source without importing it."""

from __future__ import annotations

import ast
import difflib
import importlib.util
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from rlkit.generation.base import SamplingOptions
from rlkit.runtime.distribution import how_to_install

_OURS = frozenset(
    (
        *("n", "temperature", "top_p", "top_k", "min_p", "seed", "max_tokens"),
        *("stop", "stop_token_ids", "include_stop_str_in_output", "detokenize"),
        *("skip_special_tokens", "spaces_between_special_tokens"),
        *("logprobs", "prompt_logprobs", "logprob_token_ids", "flat_logprobs"),
        *("output_kind", "stream_interval", "skip_clone"),
    )
)
"""Fields of vLLM's SamplingParams that have a name of their own here, or that rlkit decides."""


@dataclass(kw_only=True, slots=True)
class VLLMSamplingOptions(SamplingOptions):
    """This is the sampling distribution, with whatever else vLLM knows."""

    extra: dict[str, Any] = field(default_factory=dict)
    """Further fields of vLLM's SamplingParams by name, such as repetition_penalty or bad_words.
    The trainer does not know them: what they change shows as mismatch between the two."""

    def __post_init__(self) -> None:
        # Named, as `super()` without arguments breaks in dataclasses with slots.
        SamplingOptions.__post_init__(self)
        check_sampling_fields(self.extra)


def is_installed() -> bool:
    """Tell whether vLLM can be imported, without importing it."""
    return importlib.util.find_spec("vllm") is not None


def check_sampling_fields(extra: dict[str, Any]) -> None:
    """Raise ValueError unless every key is a field of the installed vLLM's SamplingParams."""
    for key in extra:
        if key in _OURS:
            hint = f"generator.sampling.{key}" if key in SamplingOptions.__slots__ else "no option"
            raise ValueError(
                f"generator.sampling.extra must not hold {key}, which rlkit sets itself ({hint})"
            )
    if not extra or not is_installed():
        return
    known = sampling_fields() - _OURS
    for key in extra:
        if key not in known:
            near = difflib.get_close_matches(key, sorted(known), n=1)
            hint = f" (did you mean {near[0]}?)" if near else f" ({', '.join(sorted(known))})"
            raise ValueError(
                f"generator.sampling.extra.{key} is not a field of vLLM's SamplingParams{hint}"
            )


def further_options(schema: type | None) -> list[str]:
    """Name the options that a dataclass takes through a mapping, as `extra.min_tokens`."""
    if schema is not VLLMSamplingOptions or not is_installed():
        return []
    return [f"extra.{name}" for name in sorted(sampling_fields() - _OURS)]


def require_vllm() -> None:
    """Raise ValueError, with the command that helps, unless vLLM is installed."""
    if not is_installed():
        raise ValueError(f"generator=vllm needs vLLM: {how_to_install('vllm')} (or generator=hf)")


@cache
def sampling_fields() -> frozenset[str]:
    """Read the fields of SamplingParams from the source of vLLM: importing it takes 6 s."""
    require_vllm()
    spec = importlib.util.find_spec("vllm")
    assert spec is not None and spec.origin is not None
    source = Path(spec.origin).with_name("sampling_params.py").read_text()
    (params,) = (
        node
        for node in ast.parse(source).body
        if isinstance(node, ast.ClassDef) and node.name == "SamplingParams"
    )
    names = [
        node.target.id
        for node in params.body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    ]
    return frozenset(name for name in names if not name.startswith("_"))


def takes_bursts(sampling: VLLMSamplingOptions) -> bool:
    """Tell whether a burst samples all that `sampling` asks of vLLM beyond rlkit's options."""
    return set(sampling.extra) <= {"ignore_eos"}
