"""Bursts of decoding steps past vLLM's scheduler, against vLLM's scheduler, on a CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.random_model import write_random_model
from rlkit.generation import VLLMGeneratorConfig
from rlkit.generation.vllm import generator
from rlkit.generation.vllm.accel.burst import _stops, ended
from rlkit.generation.vllm.accel.find import find_decoder
from rlkit.generation.vllm.choice import describe
from rlkit.generation.vllm.compat.check import Support, look_up
from rlkit.generation.vllm.compat.features import Feature
from rlkit.generation.vllm.config import Compilation, VLLMSamplingOptions, Weights, is_installed
from rlkit.generation.vllm.life import capture_sizes
from rlkit.generation.vllm.piece import Piece
from rlkit.types import Prompt, SamplingConfig

TESTS = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Run `vllm_v2_on_cpu.py`, which samples 6 completions of up to 37 tokens, 4 at once."""
    return json.loads(_output("vllm_v2_on_cpu.py", tmp_path_factory.mktemp("burst")))


def _output(script: str, folder: Path, *arguments: str) -> str:
    """The last line of what a script of tests/support prints about a random model in `folder`."""
    if not is_installed() or torch.cuda.is_available():
        pytest.skip("needs vLLM for CPUs; GPUs have test_vllm_gpu.py")
    write_random_model(folder / "tiny", "tiny", dtype=torch.float32)
    done = subprocess.run(
        [sys.executable, str(TESTS / "support" / script), str(folder / "tiny"), *arguments],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(TESTS.parent)},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.splitlines()[-1]


@pytest.mark.nightly
@pytest.mark.parametrize("case", ["length", "stops"])
def test_bursts_sample_what_the_scheduler_samples(found: Any, case: str) -> None:
    """Rows that end, rows that join when a place is free, batches that shrink, an adapter."""
    slow, fast = found[f"{case} scheduler"], found[f"{case} bursts"]
    for a, b in zip(slow, fast, strict=True):
        assert a["ids"] == b["ids"] and a["reason"] == b["reason"]
        np.testing.assert_allclose(a["logps"], b["logps"], atol=2e-5)
    assert found[f"{case} replays"] >= 30, "most steps must have been part of a burst"
    reasons = {row["reason"] for row in fast}
    assert reasons == ({"length"} if case == "length" else {"length", "stop"})


@pytest.mark.nightly
def test_the_trial_of_an_unmeasured_version(found: Any) -> None:
    """Right bursts pass; wrong tokens, wrong logps and a failure do not."""
    assert found["trial"] == ""
    tokens, logps, failure = found["broken trial"]
    assert tokens == "the tokens that vLLM's own loop samples"
    assert logps.startswith("the logps that vLLM's own loop gives, got 1.0e-02 off")
    assert failure == "no failure in their trial: run_fullgraph() got 1 argument"


@pytest.mark.nightly
def test_an_interrupted_burst_leaves_the_engine_ready(found: Any) -> None:
    assert found["interrupted"] == 0
    for a, b in zip(found["length scheduler"], found["after"], strict=True):
        assert a["ids"] == b["ids"]
    assert found["lost blocks"] == 0


@pytest.mark.nightly
def test_random_schedules_sample_what_seeds_and_positions_say(tmp_path: Path) -> None:
    """Hundreds of calls over a made-up model: stops, joins, preemptions, interrupts."""
    assert _output("vllm_schedules_on_cpu.py", tmp_path, "400").startswith("400 calls, ")


def test_no_two_generators_name_a_request_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step that vLLM launched ahead may still be on its way when the next call begins: by a name
    it knows, its token would go to the wrong completion.
    """
    named: list[str] = []

    def through_core(_: Any, requests: Iterable[Any], *__: Any) -> Iterator[list[Piece]]:
        asked = [request.request_id for request in requests]
        named.extend(asked)
        yield [Piece(name, [1], [-1.0], "length") for name in asked]

    monkeypatch.setattr(generator, "through_core", through_core)
    monkeypatch.setattr(generator.VLLMGenerator, "_sampling_params", lambda *_: None)
    engine: Any = SimpleNamespace(
        **{"llm": object(), "max_model_len": 8, "start_log": "", "decoder": None, "asleep": ()},
        **{"weights": Weights.shared, "release_kv_cache": False, "call_numbers": count()},
        **{"past_output_processor": True},
    )
    for _ in range(2):
        sampler = generator.VLLMGenerator(
            engine,
            SimpleNamespace(request=None),
            stop_token_ids=frozenset(),
            config=VLLMGeneratorConfig(),
        )
        for _ in range(2):
            sampler.generate(
                [Prompt(index=0, ids=(1, 2), text="")],
                num_samples=3,
                sampling=SamplingConfig(max_completion_length=1),
                seeds=[[1, 2, 3]],
            )
    assert len(set(named)) == len(named) == 12


@pytest.mark.parametrize(
    ("config", "found", "need"),
    [
        ({}, "one kind of attention", "one kind of attention"),
        ({"compilation": Compilation.eager}, "one kind of attention", "CUDA graphs"),
        ({"sampling": VLLMSamplingOptions(stop=["\n"])}, "", "no generator.sampling.stop"),
        ({"sampling": VLLMSamplingOptions(extra={"ignore_eos": True})}, "one device", "one device"),
        (
            {"sampling": VLLMSamplingOptions(extra={"min_tokens": 3})},
            "one device",
            "no generator.sampling.extra",
        ),
    ],
)
def test_the_summary_says_why_there_are_no_bursts(
    config: dict[str, Any], found: str, need: str
) -> None:
    said = describe(VLLMGeneratorConfig(**config), found, on_cpu=False)
    assert said == f", decoding step by step (bursts need {need})"


def test_a_vllm_without_the_names_decodes_step_by_step() -> None:
    core = SimpleNamespace(engine_core=object())
    llm = SimpleNamespace(llm_engine=SimpleNamespace(engine_core=core))
    gaps = {Feature.bursts: ("v1.a.B.c", "v1.a.B.d", "v1.a.B.e")}
    lacking = Support(line=None, missing=gaps, is_measured=False)
    assert find_decoder(llm, lacking) == "v1.a.B.c and 2 more names in vLLM"
    no_line = Support(line=None, missing={}, is_measured=False)
    assert find_decoder(llm, no_line) == "a vLLM of a known line"
    core.engine_core = None
    assert find_decoder(llm, look_up("0.24.0")) == "the engine in this process"


@pytest.mark.parametrize(
    "ids, expected",
    [
        ([1, 2, 3], (3, None)),
        ([1, 7, 3], (2, "stop")),
        ([1, 2, 3, 4, 5], (5, "length")),
        ([1, 2, 3, 4, 7], (5, "stop")),  # the last token it may have is a stop token
        ([7, 2, 3, 4, 7], (1, "stop")),
    ],
)
def test_where_a_completion_ends(ids: list[int], expected: tuple[int, str | None]) -> None:
    request = SimpleNamespace(
        num_output_tokens=5, max_tokens=10, sampling_params=SimpleNamespace(stop_token_ids=[7, 9])
    )
    (stop,) = _stops([request], np.array([ids]))
    assert ended(request, len(ids), stop) == expected


def test_rows_of_one_burst_may_have_different_stops() -> None:
    def requests(*stops: list[int]) -> list[Any]:
        return [
            SimpleNamespace(sampling_params=SimpleNamespace(stop_token_ids=ids)) for ids in stops
        ]

    ids = np.array([[5, 7, 9], [7, 5, 5], [1, 2, 3]])
    assert _stops(requests([5, 9], [5, 9], [5, 9]), ids) == [0, 1, None]
    assert _stops(requests([9], [5], []), ids) == [2, 1, None]


def test_graphs_are_captured_for_few_batch_sizes() -> None:
    assert capture_sizes(1) == [1]
    assert capture_sizes(6) == [1, 2, 4, 6]
    assert capture_sizes(64) == [1, 2, 4, 8, 16, 32, 48, 64]
    assert capture_sizes(256) == [1, 2, 4, 8, 16, 32, 48, 64, 96, 128, 160, 192, 224, 256]
    assert capture_sizes(512)[-6:] == [224, 256, 320, 384, 448, 512]
