"""Plan the memory of an engine: pure arithmetic on a model's shape and the free memory."""

from __future__ import annotations

from typing import Any, NamedTuple

GIB = 2**30
OVERHEAD_BYTES = GIB // 4
"""Least that CUDA graphs, workspaces and vLLM's activations take; the memory plan knows better."""
NF4_BYTES = 0.516
"""A weight in blocks of 64 with double quantisation."""
FP8_BYTES = 1.001
"""A weight in e4m3 with its part of the scale of a row."""
_KV_SHARE = 0.5
"""Most of the memory that weights leave free that the key-value cache takes by itself."""
_CPU_KV_SHARE = 0.25


class CacheShape(NamedTuple):
    """These numbers decide the bytes of one token in the key-value cache."""

    num_layers: int
    num_kv_heads: int
    head_dim: int
    bytes_per_value: int

    @property
    def bytes_per_token(self) -> int:
        """Count keys and values of all layers."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * self.bytes_per_value


class Demand(NamedTuple):
    """This is what a run asks of the memory of its engine."""

    rows: int
    """Completions of one call of `generate`."""
    tokens_per_row: int
    """Longest prompt and longest completion together."""
    block_size: int


class Budget(NamedTuple):
    """This is what an engine gets."""

    kv_cache_bytes: int
    max_num_seqs: int


def cache_shape(text_config: Any, *, bytes_per_value: int) -> CacheShape:
    """Read the cache's shape off a transformers text config."""
    heads = text_config.num_attention_heads
    head_dim = getattr(text_config, "head_dim", None) or text_config.hidden_size // heads
    return CacheShape(
        num_layers=text_config.num_hidden_layers,
        num_kv_heads=getattr(text_config, "num_key_value_heads", None) or heads,
        head_dim=head_dim,
        bytes_per_value=bytes_per_value,
    )


def weight_bytes(
    text_config: Any, *, bytes_per_parameter: float, bytes_in_layers: float | None = None
) -> int:
    """Count the bytes of a dense decoder's weights from its config; norms are left out.

    `bytes_in_layers`: those of a weight of the linear layers but the head; None = the others'.
    """
    d, layers = text_config.hidden_size, text_config.num_hidden_layers
    shape = cache_shape(text_config, bytes_per_value=1)
    queries = text_config.num_attention_heads * shape.head_dim
    attention = 2 * d * queries + 2 * d * shape.num_kv_heads * shape.head_dim
    heads = 1 if text_config.tie_word_embeddings else 2
    per_layer = attention + 3 * d * text_config.intermediate_size
    in_layers = layers * per_layer * (bytes_in_layers or bytes_per_parameter)
    return int(in_layers + heads * text_config.vocab_size * d * bytes_per_parameter)


def bytes_for(rows: int, demand: Demand, shape: CacheShape) -> int:
    """Return the cache bytes that `rows` completions of full length need, in whole blocks."""
    blocks = -(-demand.tokens_per_row // demand.block_size)
    # One block more, as vLLM keeps an empty one, and one for the rounding of its own division.
    return (rows * blocks + 2) * demand.block_size * shape.bytes_per_token


def plan(
    demand: Demand,
    shape: CacheShape,
    *,
    kv_cache_bytes: int,
    max_num_seqs: int,
    most_seqs: int,
    free_bytes: int,
    reserved_bytes: int,
    on_cpu: bool,
) -> Budget:
    """Choose the sizes of the cache and of the batch.

    The cache is what `max_num_seqs` completions need, but at most half of what `reserved_bytes`
    leaves of `free_bytes`, on a CPU a quarter.

    Args:
        demand: The rows and tokens of a run.
        shape: Cache bytes of a token.
        kv_cache_bytes: Size of the cache; 0 asks for a choice.
        max_num_seqs: Size of the batch; 0 asks for a choice.
        most_seqs: The largest batch that is chosen.
        free_bytes: Free memory of the device.
        reserved_bytes: Memory that the weights take.
        on_cpu: True where the engine runs on a CPU.

    Raises:
        ValueError: Not even one completion fits; the message says what to set.
    """
    share = _CPU_KV_SHARE if on_cpu else _KV_SHARE
    room = free_bytes - reserved_bytes - (0 if on_cpu else OVERHEAD_BYTES)
    seqs = max_num_seqs or max(1, min(demand.rows, most_seqs))
    wanted = kv_cache_bytes or min(bytes_for(seqs, demand, shape), int(share * max(room, 0)))
    least = bytes_for(1, demand, shape)
    if wanted < least:
        key = "generator.kv_cache_bytes" if kv_cache_bytes else "free memory for generator=vllm"
        rule = f"at least {gib(least)} for one completion of {demand.tokens_per_row} tokens"
        advice = "task.max_completion_length shortens it, generator=hf needs no engine"
        if not kv_cache_bytes:
            rule += f" beside {gib(free_bytes - max(room, 0))} of weights and graphs"
        raise ValueError(
            f"{key} must be {rule} ({advice}), got {gib(kv_cache_bytes or free_bytes)}"
        )
    if room < wanted:
        raise ValueError(
            f"free memory for generator=vllm must be at least "
            f"{gib(free_bytes - room + wanted)} (weights, graphs and a cache of "
            f"{gib(wanted)}; generator.kv_cache_bytes makes it smaller), got {gib(free_bytes)}"
        )
    return Budget(kv_cache_bytes=wanted, max_num_seqs=seqs)


def gib(num_bytes: int) -> str:
    """Write a number of bytes as people read it."""
    return f"{num_bytes / GIB:.2f} GiB"
