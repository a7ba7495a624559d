"""This module asks, before anything else, whether a server samples as rlkit needs it."""

from __future__ import annotations

from rlkit.generation.vllm.config import VLLMServerConfig
from rlkit.generation.vllm.server_client import ServerClient, ServerError
from rlkit.runtime.redact import resolved


def check_server(config: VLLMServerConfig) -> tuple[str, int]:
    """Ask for the base model's name and context; raises ValueError when it will not do."""
    client = ServerClient(
        resolved(config.url, key="generator.url"), timeout_s=min(config.timeout_s, 30.0)
    )
    try:
        models = client.get("/v1/models")["data"]
        base = [m for m in models if m.get("parent") is None]
        names = [str(m["id"]) for m in base]
        if config.model and config.model not in names:
            raise ValueError(
                f"generator.model must be one of {', '.join(names)}, got {config.model}"
            )
        if not config.model and len(names) != 1:
            raise ValueError(f"generator.model must be set to one of {', '.join(names)}, got none")
        name = config.model or names[0]
        (context,) = (int(m["max_model_len"]) for m in base if m["id"] == name)
        _check_logprobs(client, name)
    except ServerError as error:
        raise ValueError(
            f"generator.url must be that of a running `vllm serve`, got {config.url}: {error}"
        ) from error
    finally:
        client.close()
    return name, context


def _check_logprobs(client: ServerClient, model: str) -> None:
    """Refuse raw logps: with one word left to draw from, only the processed one is 0."""
    body = {"model": model, "prompt": [1], "max_tokens": 1, "top_k": 1, "logprobs": 0}
    (choice,) = client.post("/v1/completions", body)["choices"]
    if choice["logprobs"]["token_logprobs"][0] < -1e-6:
        raise ValueError(
            "the server must report the probabilities that it samples from: start `vllm serve` "
            "with --logprobs-mode processed_logprobs"
        )
