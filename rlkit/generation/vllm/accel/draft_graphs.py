"""Decode several tokens a row in CUDA graphs of vLLM's, beside its own with one token.

vLLM captures graphs for one number of tokens a row. Its own manager of graphs is made a second time
here for another number, and its own runner captures into it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rlkit.generation.vllm.life import capture_sizes


class DraftGraphs:
    """These are the graphs of one engine for `tokens` tokens a row."""

    def __init__(self, runner: Any, manager: Any, tokens: int) -> None:
        """Hold the graphs of `manager`, a manager of vLLM's."""
        self._runner, self.manager, self._tokens = runner, manager, tokens

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Let vLLM's runner decode `tokens` tokens a row in the body, by these graphs."""
        runner = self._runner
        kept = runner.cudagraph_manager, runner.decode_query_len
        runner.cudagraph_manager, runner.decode_query_len = self.manager, self._tokens
        try:
            yield
        finally:
            runner.cudagraph_manager, runner.decode_query_len = kept

    def find(self, request_ids: Sequence[str]) -> Any:
        """Find the graph of a step of these requests; None when vLLM would run without."""
        from vllm.config import CUDAGraphMode

        runner, count = self._runner, len(request_ids)
        adapters = 0
        if runner.lora_config:
            adapters = len(runner.lora_state.get_activate_loras(request_ids))
        graph = self.manager.dispatch(count, count * self._tokens, self._tokens, adapters)
        return graph if graph.cg_mode == CUDAGraphMode.FULL else None


def draft_sizes(tokens: int, rows: int, max_num_seqs: int) -> list[int]:
    """Return the tokens of the graphs with `tokens` a row, for up to `rows` rows."""
    return [size * tokens for size in capture_sizes(min(rows, max_num_seqs))]


def capture(runner: Any, tokens: int, rows: int) -> DraftGraphs:
    """Capture graphs of `tokens` tokens a row for up to `rows` rows, of an idle engine.

    Args:
        runner: vLLM's V2 model runner, whose own graphs are captured.
        tokens: Tokens a row, >= 2.
        rows: Most rows with which they are used.

    Returns:
        The graphs; without any where vLLM has none of its own.
    """
    options, own = runner.compilation_config, runner.cudagraph_manager
    kept = options.cudagraph_capture_sizes, options.max_cudagraph_capture_size
    # vLLM's manager reads the sizes of its graphs from the options.
    if own.needs_capture():
        sizes = draft_sizes(tokens, rows, runner.max_num_reqs)
        options.cudagraph_capture_sizes, options.max_cudagraph_capture_size = sizes, sizes[-1]
    try:
        many = type(own)(
            runner.vllm_config,
            runner.device,
            own.cudagraph_mode,
            decode_query_len=tokens,
            lora_capture_cases=runner.lora_capture_cases,
        )
        graphs = DraftGraphs(runner, many, tokens)
        if many.needs_capture():
            with graphs.in_use():
                runner.capture_model()
    finally:
        options.cudagraph_capture_sizes, options.max_cudagraph_capture_size = kept
    return graphs
