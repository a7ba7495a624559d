"""Two loops with the same outcome lead requests through a vLLM engine in this process."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from rlkit.generation.vllm.piece import Piece

if TYPE_CHECKING:
    from rlkit.generation.vllm.accel.burst import Decoder


class EngineRequest(NamedTuple):
    """One completion, as an engine is asked for it."""

    request_id: str
    """It comes once in the life of an engine."""
    ids: list[int]
    """The prompt."""
    params: Any
    """vLLM's `SamplingParams`."""


def through_core(
    llm: Any, requests: deque[EngineRequest], lora: Any, decoder: Decoder | None
) -> Generator[list[Piece], None, None]:
    """Yield the new tokens of each step of `EngineCore`, or of each burst of `decoder`.

    Ending the iterator early aborts the rest.

    Args:
        llm: A running `vllm.LLM`.
        requests: A queue that is emptied into the engine; what is added between two steps comes in
            beside the others. No stop strings: vLLM looks for those in its output processor, which
            is left out here.
        lora: The adapter's `LoRARequest`; None is the base model.
        decoder: Decodes bursts; None leaves every step to vLLM's scheduler.

    Yields:
        The tokens and logps that each request has gained.
    """
    engine, client = llm.llm_engine, llm.llm_engine.engine_core
    going: set[str] = set()

    def enter() -> None:
        while requests:
            request_id, ids, params = requests.popleft()
            request = engine.input_processor.process_inputs(
                request_id,
                _prompt(ids),
                params,
                supported_tasks=engine.get_supported_tasks(),
                lora_request=lora,
            )
            going.add(request_id)
            client.add_request(request)

    try:
        enter()
        while going:
            for pieces in _look(client, decoder):
                going.difference_update(p.request_id for p in pieces if p.finish_reason)
                yield pieces
                enter()
    finally:
        client.abort_requests(list(going))


def through_engine(
    llm: Any, requests: deque[EngineRequest], lora: Any
) -> Generator[list[Piece], None, None]:
    """Yield the same by vLLM's `LLMEngine`, which knows stop strings."""
    engine = llm.llm_engine
    going: set[str] = set()

    def enter() -> None:
        while requests:
            request_id, ids, params = requests.popleft()
            going.add(request_id)
            engine.add_request(request_id, _prompt(ids), params, lora_request=lora)

    try:
        enter()
        while engine.has_unfinished_requests():
            pieces = [_piece(output) for output in engine.step()]
            going.difference_update(p.request_id for p in pieces if p.finish_reason)
            yield pieces
            enter()
    finally:
        engine.abort_request(list(going))


def _look(client: Any, decoder: Decoder | None) -> Iterator[list[Piece]]:
    yield _pieces(client.get_output().outputs)
    if decoder is not None and decoder.possible():
        yield _pieces(decoder.drain())
        if decoder.possible():
            yield from decoder.run()


def _prompt(ids: list[int]) -> dict[str, object]:
    """Wrap the ids; with its type a prompt counts as rendered, and vLLM passes it on as it is."""
    return {"type": "token", "prompt_token_ids": ids}


def _pieces(outputs: list[Any]) -> list[Piece]:
    """Read vLLM's `EngineCoreOutput`s; column 0 of their logps is the sampled token."""
    return [
        Piece(
            output.request_id,
            output.new_token_ids,
            output.new_logprobs.logprobs[:, 0].tolist() if output.new_token_ids else [],
            None if output.finish_reason is None else str(output.finish_reason),
        )
        for output in outputs
    ]


def _piece(output: Any) -> Piece:
    """Read vLLM's `RequestOutput`."""
    (new,) = output.outputs
    return Piece(
        output.request_id, list(new.token_ids), list(new.logprobs.logprobs), new.finish_reason
    )
