"""Options of the generators: structured configs, ranges, messages."""

from __future__ import annotations

import pytest
from omegaconf import OmegaConf

from rlkit.generation import (
    SCHEMAS,
    GeneratorConfig,
    HFGeneratorConfig,
    SamplingOptions,
    sampling_config,
)
from rlkit.generation.base import check_sampling
from rlkit.types import SamplingConfig


def test_schemas_work_as_structured_configs() -> None:
    for schema in SCHEMAS:
        override = OmegaConf.create({"sampling": {"temperature": 0.5, "stop": ["\n"]}})
        config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema.node), override))
        assert isinstance(config, GeneratorConfig)
        assert sampling_config(config.sampling, max_completion_length=7, stop=("#", "\n")) == (
            SamplingConfig(max_completion_length=7, temperature=0.5, stop=("\n", "#"))
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "generator.sampling.temperature must be a finite number > 0, got 0"),
        ({"temperature": float("nan")}, "temperature must be a finite number > 0, got nan"),
        ({"top_p": 0.0}, r"generator.sampling.top_p must be in \(0, 1\], got 0.0"),
        ({"top_p": 1.5}, r"generator.sampling.top_p must be in \(0, 1\], got 1.5"),
        ({"top_k": -1}, "generator.sampling.top_k must be >= 0, got -1"),
        ({"min_p": 1.0}, r"generator.sampling.min_p must be in \[0, 1\), got 1.0"),
        ({"stop": [""]}, r"generator.sampling.stop must be non-empty strings, got \(''"),
    ],
)
def test_sampling_options_out_of_range(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SamplingOptions(**options)  # type: ignore[arg-type]


def test_length_limit_out_of_range() -> None:
    with pytest.raises(ValueError, match=r"sampling.max_completion_length must be >= 1, got 0"):
        check_sampling(SamplingConfig(max_completion_length=0))


@pytest.mark.parametrize(("key", "least"), [("max_rows", 1), ("max_tokens", 1), ("check_every", 0)])
def test_hf_options_out_of_range(key: str, least: int) -> None:
    with pytest.raises(ValueError, match=f"generator.{key} must be >= {least}, got {least - 1}"):
        HFGeneratorConfig(**{key: least - 1})  # type: ignore[arg-type]
