"""Episodes in a stream and in rounds are the same ones, with vLLM on a CPU in float32."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from rlkit.config import ConfigError
from rlkit.environments import Admission, EnvironmentConfig, EnvironmentSpec
from rlkit.environments.config import CutTurn
from rlkit.environments.pool import EnvironmentPool
from rlkit.environments.rounds import EpisodeGenerator
from rlkit.environments.splice import Splicer
from rlkit.generation import Progress, VLLMGeneratorConfig, sample_seed
from rlkit.generation.vllm.config import is_installed
from rlkit.types import EpisodeEnd, Prompt, Rollout, SamplingConfig

pytestmark = pytest.mark.skipif(not is_installed(), reason="vLLM is not installed")

MODULE = '''
import os, time
from rlkit.environments import Message, Turn

class Uneven:
    """Ends after one to four turns, by what it heard first; slow or broken for some of them."""
    def __init__(self, slow=0.0, fail_at=None, hang=None, crash=None):
        self.slow, self.fail_at, self.hang, self.crash = slow, fail_at, hang, crash
    def start(self, example, seed):
        return {"seed": seed, "turns": 0, "prompt": example.prompt[0].content}, Turn()
    def step(self, state, action):
        if action.turn == self.fail_at:
            raise RuntimeError("broken")
        if action.turn == 1 and state["prompt"] == self.hang:
            time.sleep(1e6)
        if action.turn == 1 and state["prompt"] == self.crash:
            os._exit(3)
        time.sleep(self.slow * (sum(action.ids) % 3))
        turns = state["turns"] or 1 + sum(action.ids) % 4
        last = action.turn + 1 == turns
        said = Message("user", f"{len(action.ids)} {state['seed'] % 100}")
        paid = float(sum(action.ids) % 7)
        return {**state, "turns": turns}, Turn((said,), reward=paid, done=last)
'''
SAMPLING = SamplingConfig(max_completion_length=160)


class NoAdapter:
    """The base model: what an injector is before it has loaded anything."""

    request = None


class Told:
    """It notes how many completions a generator knew of while others were under way."""

    def __init__(self) -> None:
        self.known: list[tuple[int, int]] = []

    def __call__(self, progress: Progress) -> None:
        self.known.append((progress.rows_done, progress.rows))


def play(
    engine: Any, starter: str, folder: Path, told: Told, **options: Any
) -> list[list[Rollout]]:
    """Three prompts, four samples each."""
    from rlkit.generation.vllm.generator import VLLMGenerator

    tokenizer = AutoTokenizer.from_pretrained(starter)
    module = folder / "uneven.py"
    module.write_text(MODULE)
    arguments = options.pop("options", {})
    limits: dict[str, Any] = {"max_turn_tokens": 12, "cut_turns": CutTurn.answer} | options
    config = EnvironmentConfig(**limits)
    turns = VLLMGenerator(
        engine,
        NoAdapter(),  # type: ignore[arg-type]
        stop_token_ids=frozenset({0, 2}),
        config=VLLMGeneratorConfig(),
        progress=told,
    )

    def decode(ids: Sequence[int]) -> str:
        return str(tokenizer.decode(list(ids), skip_special_tokens=True))

    prompts = []
    for index, text in enumerate(("Count to ten.", "Name a river and a hill.", "Hi")):
        messages = ({"role": "user", "content": text},)
        shown = str(
            tokenizer.apply_chat_template(
                list(messages), tokenize=False, add_generation_prompt=True
            )
        )
        ids = tuple(tokenizer(shown, add_special_tokens=False)["input_ids"])
        prompts.append(Prompt(index=index, ids=ids, text=shown, messages=messages))
    pool = EnvironmentPool(EnvironmentSpec(f"{module}:Uneven", arguments), config)
    try:
        episodes = EpisodeGenerator(
            turns,
            pool,
            Splicer(tokenizer, roles=("user",), history=config.history),
            config=config,
            decode=decode,
            max_prompt_length=200,
        )
        seeds = [[sample_seed(7, 0, p.index, i) for i in range(4)] for p in prompts]
        return episodes.generate(prompts, num_samples=4, sampling=SAMPLING, seeds=seeds)
    finally:
        pool.close()


def test_a_stream_plays_the_episodes_of_rounds(engine: Any, starter: str, tmp_path: Path) -> None:
    """Ids, turns, rewards and ends are equal; logps are within float32's noise."""
    rounds, stream = Told(), Told()
    expected = play(engine, starter, tmp_path, rounds)
    found = play(
        engine, starter, tmp_path, stream, admission=Admission.stream, options={"slow": 0.02}
    )
    for a, b in zip(
        [r for group in expected for r in group], [r for group in found for r in group], strict=True
    ):
        assert (a.prompt, a.sample_index, a.episode) == (b.prompt, b.sample_index, b.episode)
        assert a.completion_ids == b.completion_ids
        assert a.sampling_logps == pytest.approx(b.sampling_logps, abs=2e-4)
    lengths = {len(r.episode.turns) for group in found for r in group if r.episode is not None}
    assert len(lengths) > 2, "some episodes must be longer than others"
    # A stream learns of further turns while some are under way, a round never does.
    joined = [
        new > old and done < old
        for (done, old), (_, new) in zip(stream.known, stream.known[1:], strict=False)
    ]
    assert any(joined)


def test_a_stream_keeps_the_limits(engine: Any, starter: str, tmp_path: Path) -> None:
    """Turns, tokens and seconds of an episode end it, and a failing environment as well."""
    stream: dict[str, Any] = {"admission": Admission.stream}
    two = play(engine, starter, tmp_path, Told(), max_turns=2, **stream)
    of_two = [r.episode for group in two for r in group]
    assert {e.end for e in of_two if e} == {EpisodeEnd.done, EpisodeEnd.turns}
    assert max(len(e.turns) for e in of_two if e) == 2
    assert max(len(r.completion_ids) for group in two for r in group) <= 160
    slow = play(
        *(engine, starter, tmp_path, Told()),
        **stream,
        options={"slow": 0.05},
        episode_timeout_s=0.04,
    )
    assert EpisodeEnd.seconds in {r.episode.end for g in slow for r in g if r.episode is not None}
    broken = play(engine, starter, tmp_path, Told(), **stream, options={"fail_at": 1})
    failed = [r.episode for g in broken for r in g if r.episode and r.episode.end == "failed"]
    assert failed and all(len(e.turns) == 2 and e.reward != e.reward for e in failed)


def test_environments_that_hang_and_crash_cost_their_own_episodes(
    engine: Any, starter: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Others go on beside them, as if nothing had been."""
    expected = play(engine, starter, tmp_path, Told())
    bad = {"hang": "Count to ten.", "crash": "Hi"}
    found = play(
        *(engine, starter, tmp_path, Told()),
        admission=Admission.stream,
        options=bad,
        timeout_s=0.5,
    )
    for prompt, kind in ((0, "timeout"), (2, "crashed")):
        longer = [r for r in expected[prompt] if r.episode and len(r.episode.turns) > 1]
        failed = [r for r in found[prompt] if r.episode and r.episode.end == "failed"]
        assert len(failed) == len(longer) > 0
        lines = [m for m in caplog.messages if f"of prompt {prompt} ({kind})" in m]
        assert len(lines) == len(failed)
    for a, b in zip(expected[1], found[1], strict=True):
        assert (a.completion_ids, a.episode) == (b.completion_ids, b.episode)


def test_what_cannot_stream_is_refused_at_the_start() -> None:
    from rlkit import compose

    with pytest.raises(
        ConfigError, match=r"environment.admission must be rounds with generator=hf"
    ):
        compose("task=calculator", "generator=hf", "environment.admission=stream")
