"""Ask llama.cpp about a GGUF file, in a child process that may crash without harm.

The child loads the file with the server of xllamacpp and answers one request: log-probs after given
tokens, greedy completions, and the tokens of texts. `python -m rlkit.exports.gguf.llama IN OUT`.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx

from rlkit.exports.child import WAIT_S, ask_child

NUM_LIKELIEST = 1000
"""Tokens of a next-token distribution that the child returns; the rest is one number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LlamaRequest:
    """This record holds what is asked about one GGUF file."""

    model: str
    lora: str
    """The file of an adapter; empty = none."""
    rows: Sequence[Sequence[int]]
    """Token ids after which the next-token distribution is wanted."""
    plain_token: int
    """The id of a token that is ASCII text."""
    prompts: Sequence[Sequence[int]]
    """Token ids that are completed greedily."""
    max_tokens: int
    """Most tokens of a completion."""
    texts: Sequence[str]
    """Texts that are tokenised, special tokens included."""
    threads: int
    context: int
    """Most tokens of a row."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LlamaAnswer:
    """This record holds the answers, in the order of the request."""

    likeliest: list[tuple[list[int], list[float]]]
    """(ids, log-probs) of the likeliest next tokens after each row."""
    completions: list[list[int]]
    tokens: list[list[int]]


def ask_llama(request: LlamaRequest) -> LlamaAnswer:
    """Load the file in a child process and return the answers.

    Raises ValueError, with llama.cpp's last line, when it cannot load or run the file.
    """
    answer = ask_child(
        [sys.executable, "-m", __name__],
        asdict(request),
        rule=f"llama.cpp must load and run {Path(request.model).name}",
    )
    return LlamaAnswer(**answer)


def _serve(request: LlamaRequest) -> Any:
    """Return the running server of xllamacpp, quiet and with one slot."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = request.model
    if request.lora:
        adapter = xllamacpp.CommonAdapterLoraInfo()
        adapter.path, adapter.scale = request.lora, 1.0
        params.lora_adapters = [adapter]
    params.n_ctx = request.context
    params.n_parallel = 1
    params.n_gpu_layers = 0
    params.warmup = params.fit_params = False
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = request.threads
    return xllamacpp.Server(params)


def _likeliest(server: Any, ids: Sequence[int], plain_token: int) -> tuple[list[int], list[float]]:
    # The log-probs are the model's own, whatever is sampled. An end of the text or half a character
    # would come without them, so that a plain token is made to be sampled.
    answer = server.handle_completions(
        {
            "prompt": list(ids),
            "n_predict": 1,
            "n_probs": NUM_LIKELIEST,
            "temperature": 0.0,
            "logit_bias": [[plain_token, 1e4]],
            "cache_prompt": True,
        }
    )
    (token,) = answer["choices"][0]["logprobs"]["content"]
    likeliest = token["top_logprobs"]
    return [int(t["id"]) for t in likeliest], [_finite(t["logprob"]) for t in likeliest]


def _finite(value: float | None) -> float:
    return value if value is not None and math.isfinite(value) else -1e9


def _complete(address: str, ids: Sequence[int], max_tokens: int) -> list[int]:
    body = {"prompt": list(ids), "n_predict": max_tokens, "temperature": 0.0, "return_tokens": True}
    return [int(token) for token in _post(address, "completion", body)["tokens"]]


def _tokenised(address: str, text: str) -> list[int]:
    body = {"content": text, "add_special": False, "parse_special": True}
    return [int(token) for token in _post(address, "tokenize", body)["tokens"]]


def _post(address: str, path: str, body: dict[str, Any]) -> Any:
    return httpx.post(f"{address}/{path}", json=body, timeout=WAIT_S).raise_for_status().json()


def _answer(request: LlamaRequest) -> LlamaAnswer:
    server = _serve(request)
    address = server.listening_address
    return LlamaAnswer(
        likeliest=[_likeliest(server, ids, request.plain_token) for ids in request.rows],
        completions=[_complete(address, ids, request.max_tokens) for ids in request.prompts],
        tokens=[_tokenised(address, text) for text in request.texts],
    )


if __name__ == "__main__":
    asked = LlamaRequest(**json.loads(Path(sys.argv[1]).read_text()))
    Path(sys.argv[2]).write_text(json.dumps(asdict(_answer(asked))))
