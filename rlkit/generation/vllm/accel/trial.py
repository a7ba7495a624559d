"""Bursts on a version of vLLM that nobody has measured: they must sample what vLLM samples."""

from __future__ import annotations

from collections import deque
from typing import Any

from rlkit.generation.vllm.accel.burst import Decoder
from rlkit.generation.vllm.life import reason
from rlkit.generation.vllm.loop import EngineRequest, through_core
from rlkit.generation.vllm.probe import probe_prompts

_NUM_TOKENS = 8
_MOST_OFF = 1e-3
"""Most difference of two logps of one token, in nats; on an H100 they were 1e-6 apart."""


def first_difference(llm: Any, decoder: Decoder) -> str:
    """Decode the probe prompts by vLLM's scheduler and in bursts, without an adapter.

    Args:
        llm: An idle `vllm.LLM` in this process.
        decoder: A decoder of this engine.

    Returns:
        What bursts need and this engine lacks, for its summary; empty when both samples agree.
    """
    try:
        _decode(llm, None, run=0)  # from here on the prompts are in the prefix cache for both
        expected, found = _decode(llm, None, run=1), _decode(llm, decoder, run=2)
    except Exception as error:  # an unknown vLLM may fail in any way: its own loop works
        return f"no failure in their trial: {reason(error)}"
    if not any(len(tokens) > 1 for pieces in found.values() for tokens, _ in pieces):
        return "a CUDA graph for their trial"
    for request_id, pieces in expected.items():
        (ids, logps), (its_ids, its_logps) = _joined(pieces), _joined(found[request_id])
        if ids != its_ids:
            return "the tokens that vLLM's own loop samples"
        off = max(abs(a - b) for a, b in zip(logps, its_logps, strict=True))
        if not off <= _MOST_OFF:
            return f"the logps that vLLM's own loop gives, got {off:.1e} off"
    return ""


_Pieces = list[tuple[list[int], list[float]]]


def _decode(llm: Any, decoder: Decoder | None, *, run: int) -> dict[str, _Pieces]:
    """Give the tokens and logps of each prompt, as they came.

    `run` keeps the names of requests apart. vLLM schedules a step ahead, and a late token must not
    go to a later request of the same name.
    """
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    requests = deque(
        EngineRequest(
            f"trial-{run}-{number}",
            list(prompt),
            SamplingParams(
                max_tokens=_NUM_TOKENS,
                seed=number,
                ignore_eos=True,
                detokenize=False,
                logprobs=0,
                flat_logprobs=True,
                output_kind=RequestOutputKind.DELTA,
                stop_token_ids=[],
            ),
        )
        for number, prompt in enumerate(probe_prompts(llm))
    )
    found: dict[str, _Pieces] = {request.request_id: [] for request in requests}
    for pieces in through_core(llm, requests, None, decoder):
        for piece in pieces:
            found[piece.request_id].append((piece.token_ids, piece.logps))
    return {request_id.rsplit("-", 1)[-1]: pieces for request_id, pieces in found.items()}


def _joined(pieces: _Pieces) -> tuple[list[int], list[float]]:
    ids = [token for tokens, _ in pieces for token in tokens]
    return ids, [logp for _, logps in pieces for logp in logps]
