"""A shorter warm-up of vLLM: it compiles what a plain request runs, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def plain_warm_up() -> Iterator[None]:
    """Let engines that are built in the body warm up with a plain request.

    Kernels of penalties, grammars or top-k logps are compiled by the first request that asks for
    them. vLLM's V1 runner has no such warm-up, and nothing changes there.
    """
    from vllm import SamplingParams

    # The class's own dictionary holds the staticmethod as it is, so that it can be put back.
    kept = SamplingParams.__dict__.get("for_sampler_warmup")
    if kept is not None:
        SamplingParams.for_sampler_warmup = staticmethod(_plain_request)  # type: ignore[method-assign]
    try:
        yield
    finally:
        if kept is not None:
            SamplingParams.for_sampler_warmup = kept  # type: ignore[method-assign]


def _plain_request() -> Any:
    from vllm import SamplingParams

    return SamplingParams(temperature=0.9, seed=0, logprobs=0)
