"""What the comparison of vLLM's logps with the trainer's leaves out."""

from __future__ import annotations

import torch

from benchmarks.faults.engine_logps import at_the_edge
from rlkit.generation.sampling import sampling_probs
from rlkit.types import SamplingConfig


def test_a_heavy_word_that_rounding_keeps_or_drops_is_at_the_edge() -> None:
    """Two sides that differ by .02 keep other words; the ratio of the first word is then .79."""
    sampling = SamplingConfig(max_completion_length=4, top_p=0.8)
    trainer, sampler = torch.tensor([[0.79, 0.21]]), torch.tensor([[0.81, 0.19]])
    ratio = sampling_probs(trainer.log(), sampling) / sampling_probs(sampler.log(), sampling)
    assert abs(float(ratio[0, 0]) - 0.79) < 1e-6
    assert at_the_edge(trainer.log(), sampling).tolist() == [True]
    assert at_the_edge(sampler.log(), sampling).tolist() == [True]


def test_certain_sets_and_light_words_are_not_at_the_edge() -> None:
    sampling = SamplingConfig(max_completion_length=4, top_p=0.8)
    certain = torch.tensor([[0.9, 0.08, 0.02], [0.7, 0.2, 0.1]])
    assert at_the_edge(certain.log(), sampling).tolist() == [False, False]
    light = torch.linspace(0.9e-3, 1.1e-3, 1000)[None]
    assert at_the_edge(light.log(), sampling).tolist() == [False]
    assert at_the_edge(certain.log(), sampling._replace(top_p=1.0)).tolist() == [False, False]
