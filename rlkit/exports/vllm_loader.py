"""Ask vLLM about the folder of a whole model, in a child process that frees its memory.

The child loads the folder with vLLM as a user would and answers one request: log-probs after given
tokens, and greedy completions. `python -m rlkit.exports.vllm_loader IN OUT`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from rlkit.exports.child import ask_child
from rlkit.generation.vllm.sampling_options import is_installed

NUM_LIKELIEST = 1000
"""Tokens of a next-token distribution that the child returns; the rest is one number."""
_SHARE = 0.8
"""Share of the card's free memory that vLLM may take."""
_CPU_CACHE = 2**30
"""Bytes for keys and values on a CPU."""
_SETTINGS = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "HF_HUB_OFFLINE": "1",
    # Nothing is compiled: an export is asked once.
    "TORCHDYNAMO_DISABLE": "1",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class VLLMRequest:
    """This record holds what is asked about one folder."""

    model: str
    dtype: str
    """The dtype of the weights that are not quantised. vLLM's `auto` would make 16 bits of 32."""
    allow_remote_code: bool
    rows: Sequence[Sequence[int]]
    """Token ids after which the next-token distribution is wanted."""
    prompts: Sequence[Sequence[int]]
    """Token ids that are completed greedily."""
    max_tokens: int
    """Most tokens of a completion."""
    stop_ids: Sequence[int]
    """Token ids that end a completion, which keeps them."""
    context: int
    """Most tokens of a row."""
    num_likeliest: int
    """Likeliest tokens of a distribution, at most as many as the vocabulary has."""
    memory_share: float
    """Share of the card's memory that vLLM may take, 0 to 1; 0 = it computes on the CPU."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VLLMAnswer:
    """This record holds the answers, in the order of the request."""

    likeliest: list[tuple[list[int], list[float]]]
    """(ids, log-probs) of the likeliest next tokens after each row."""
    completions: list[list[int]]


def ask_vllm(request: VLLMRequest) -> VLLMAnswer:
    """Load the folder in a child process and return the answers.

    Raises ValueError, with vLLM's last line, when it or the hardware cannot load or run the folder.
    """
    answer = ask_child(
        [sys.executable, "-m", __name__],
        asdict(request),
        rule=f"{vllm_version()} must load and run the export",
        environment=_SETTINGS,
    )
    return VLLMAnswer(**answer)


def vllm_version() -> str:
    """Return the name and the version of the installed vLLM."""
    for name in ("vllm", "vllm-cpu"):
        try:
            return f"{name} {version(name)}"
        except PackageNotFoundError:
            continue
    return "vLLM"


def why_not(name: str, device: torch.device) -> str:
    """Return why vLLM cannot load the format `name` on `device` for certain; empty = it may."""
    if not is_installed():
        return "it is not installed"
    if name == "merged4" and device.type != "cuda":
        return "it reads the 4 bits of bitsandbytes on a GPU alone"
    return ""


def memory_share(device: torch.device) -> float:
    """Return the share of the card that vLLM may take now; 0 on a CPU."""
    if device.type != "cuda":
        return 0.0
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info(device)
    return _SHARE * free / total


def _load(request: VLLMRequest) -> Any:
    import vllm

    memory: dict[str, Any] = (
        {"gpu_memory_utilization": request.memory_share}
        if request.memory_share
        else {"kv_cache_memory_bytes": _CPU_CACHE}
    )
    return vllm.LLM(
        model=request.model,
        trust_remote_code=request.allow_remote_code,
        dtype=request.dtype,  # type: ignore[arg-type]
        max_model_len=request.context,
        max_num_seqs=32,
        max_logprobs=request.num_likeliest,
        enforce_eager=True,
        disable_log_stats=True,
        use_tqdm_on_load=False,
        **memory,
    )


def _answer(request: VLLMRequest) -> VLLMAnswer:
    llm = _load(request)
    from vllm import SamplingParams

    def ask(rows: Sequence[Sequence[int]], **options: Any) -> list[Any]:
        prompts = [{"prompt_token_ids": list(row)} for row in rows]
        params = SamplingParams(temperature=0.0, detokenize=False, **options)
        return [found.outputs[0] for found in llm.generate(prompts, params, use_tqdm=False)]

    likeliest = []
    for found in ask(request.rows, max_tokens=1, logprobs=request.num_likeliest):
        # vLLM adds the token that it took, which may be among the likeliest already.
        (place,) = found.logprobs
        ids = sorted(place, key=lambda token: -place[token].logprob)[: request.num_likeliest]
        likeliest.append((ids, [max(place[token].logprob, -1e9) for token in ids]))
    stops = {"stop_token_ids": list(request.stop_ids), "max_tokens": request.max_tokens}
    completions = ask(request.prompts, ignore_eos=True, **stops) if request.prompts else []
    return VLLMAnswer(
        likeliest=likeliest, completions=[list(found.token_ids) for found in completions]
    )


if __name__ == "__main__":
    asked = VLLMRequest(**json.loads(Path(sys.argv[1]).read_text()))
    Path(sys.argv[2]).write_text(json.dumps(asdict(_answer(asked))))
