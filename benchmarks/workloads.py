"""The workloads by which the speed of a step is judged, and the limits that a card sets to them.

W1 to W4 are those of docs/speed.md; Q1 and Q2 are W1 and W2 on a base in 4 bits.
"""

from __future__ import annotations

from typing import NamedTuple


class Workload(NamedTuple):
    """One step: `prompts` x `samples` completions of `new_tokens` tokens each."""

    shape: str
    """A key of `benchmarks.random_model.SHAPES`."""
    prompts: int
    samples: int
    new_tokens: int
    limit_s: float | None
    """Seconds that bytes and operations of a step take at least on an H200: weights, keys and
    values read once a decoding step at 4.3 TB/s, and matrix products at 770 TFLOP/s.
    None = not computed."""
    four_bit: bool = False
    """QLoRA on a base in NF4, on all sides."""
    ends_itself: bool = False
    """Completions end by themselves, after at most `new_tokens`; `benchmarks.speed --model --data`
    gives a trained model and its questions."""


WORKLOADS = {
    "W1": Workload("qwen2.5-1.5b", 8, 8, 512, 0.88),
    "W2": Workload("llama3.1-8b", 8, 8, 512, 4.2),
    "W3": Workload("qwen2.5-1.5b", 4, 8, 4096, 6.8),
    "W4": Workload("smollm2-135m", 32, 8, 214, 0.15),
    "Q1": Workload("qwen2.5-1.5b", 8, 8, 512, None, four_bit=True),
    "Q2": Workload("llama3.1-8b", 8, 8, 512, None, four_bit=True),
    "R1": Workload("smollm2-135m", 32, 8, 512, None, ends_itself=True),
    "tiny": Workload("tiny", 2, 2, 8, 0.0),
}
