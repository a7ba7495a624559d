"""The line at the start that says which of rlkit's features of vLLM are on."""

from __future__ import annotations

from rlkit.generation.vllm.compat.features import Feature
from rlkit.generation.vllm.engine import features_line


def test_the_line_names_what_is_on_and_what_the_others_need() -> None:
    lacking = {Feature.views: "", Feature.dense: "", Feature.bursts: "CUDA graphs"}
    assert features_line("0.33.0", lacking) == (
        "vLLM 0.33.0: on are shared weights, dense products; off are bursts (CUDA graphs)"
    )
    assert features_line("0.24.0", {Feature.views: ""}) == "vLLM 0.24.0: on are shared weights"
