"""`EpisodeGenerator` makes a generator of episodes of any generator of completions.

In rounds, one call of the inner generator samples the next turn of all live episodes. Its prompts
are the ids so far, so an engine with a prefix cache computes only what is new. Then the environment
answers them all. In a stream (`rlkit.environments.stream`) each turn joins as soon as it can. An
episode never crosses an update of the policy. Nothing is kept from one call to the next, so a
resumed run needs no state of an environment.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from torch import Tensor

from rlkit.environments.branch import begin
from rlkit.environments.config import Admission, EnvironmentConfig, History
from rlkit.environments.live import LiveEpisode
from rlkit.environments.messages import message_of
from rlkit.environments.pool import Answer, Begin, EnvironmentPool
from rlkit.environments.rules import Rules, warn
from rlkit.environments.splice import Splicer
from rlkit.environments.stream import TurnStream
from rlkit.generation.base import environment_seed
from rlkit.generation.stream import StreamGenerator
from rlkit.types import Generator, Prompt, Rollout, SamplingConfig


class EpisodeGenerator:
    """Implements `rlkit.types.Generator`: each rollout is an episode with an environment."""

    def __init__(
        self,
        inner: Generator,
        pool: EnvironmentPool,
        splicer: Splicer,
        *,
        config: EnvironmentConfig,
        decode: Callable[[Sequence[int]], str],
        max_prompt_length: int,
        pulse: Callable[[], None] = lambda: None,
    ) -> None:
        """Play episodes with `inner`'s turns and `pool`'s answers.

        Args:
            inner: Samples one turn.
            pool: The environment's workers; somebody else closes them.
            splicer: The text between turns.
            config: The limits of an episode.
            decode: Sampled ids to the text that the environment sees.
            max_prompt_length: Most tokens of a first prompt.
            pulse: Called while the environment works; what it raises ends `generate`.
        """
        self._inner = inner
        self._pool = pool
        self._splicer = splicer
        self._config = config
        self._rules = Rules(splicer, config, decode)
        self._max_prompt_length = max_prompt_length
        self._pulse = pulse
        self._streams = _streaming(inner) if config.admission is Admission.stream else None

    def load_adapter(self, tensors: Mapping[str, Tensor], version: int) -> None:
        """Sample with this adapter from now on; `version` tags the rollouts."""
        self._inner.load_adapter(tensors, version)

    def close(self) -> None:
        """Free what the inner generator holds."""
        self._inner.close()

    def generate(
        self,
        prompts: Sequence[Prompt],
        *,
        num_samples: int,
        sampling: SamplingConfig,
        seeds: Sequence[Sequence[int]],
    ) -> list[list[Rollout]]:
        """Play episodes; samples of a prompt meet the same environment.

        Args:
            prompts: The examples' prompts, with their messages.
            num_samples: Episodes of each prompt, >= 0.
            sampling: The distribution of a turn, with the most tokens of an episode.
            seeds: A seed for each episode: [prompt][sample].

        Returns:
            The rollouts, [prompt][sample]. An episode whose environment failed is among them.

        Raises:
            ValueError: A prompt cannot be begun, or the inner generator refuses its request.
            RuntimeError: The environment's workers cannot be started any more.
        """
        if not prompts or num_samples == 0:
            return [[] for _ in prompts]
        begun = self._begin(prompts, seeds, num_samples)
        every = [live for group in begun for live in group]
        if self._streams is None:
            self._play_rounds(every, num_samples, sampling)
        else:
            source = TurnStream(
                every,
                self._pool,
                self._rules,
                most_tokens=sampling.max_completion_length,
                pulse=self._pulse,
            )
            self._streams.stream(source, sampling=sampling)
        return [[live.rollout() for live in group] for group in begun]

    def _play_rounds(
        self, every: Sequence[LiveEpisode], num_samples: int, sampling: SamplingConfig
    ) -> None:
        """Sample turn after turn, each in one call for all episodes that go on."""
        first = self._rules.limit(sampling.max_completion_length)
        heads = every[::num_samples]
        turns = self._inner.generate(
            [replace(live.prompt, limit=first) for live in heads],
            num_samples=num_samples,
            sampling=sampling,
            seeds=[
                [live.seed for live in every[n * num_samples : (n + 1) * num_samples]]
                for n in range(len(heads))
            ],
        )
        for live, rollout in zip(every, [r for group in turns for r in group], strict=True):
            self._rules.take(live, rollout)
        while True:
            going = self._answer([live for live in every if live.end is None], sampling)
            if not going:
                break
            self._sample(going, sampling)

    def _begin(
        self, prompts: Sequence[Prompt], seeds: Sequence[Sequence[int]], num_samples: int
    ) -> list[list[LiveEpisode]]:
        """Start each prompt's environment once; its samples get copies of one value."""
        calls = [
            Begin(prompt.messages or prompt.text, prompt.columns, environment_seed(row[0]))
            for prompt, row in zip(prompts, seeds, strict=True)
        ]
        begun = []
        for prompt, row, answer in zip(
            prompts, seeds, self._pool.run(calls, pulse=self._pulse), strict=True
        ):
            state = answer.state if isinstance(answer, Answer) else None
            if isinstance(answer, Answer):
                prompt = self._first_prompt(prompt, answer)
            else:
                warn(prompt, answer)
            shown = begin(prompt) if self._config.history is History.branch else None
            begun.append(
                [
                    LiveEpisode(
                        prompt=prompt,
                        sample_index=i,
                        seed=row[i],
                        state=state,
                        seconds=answer.seconds,
                        shown=shown,
                    )
                    for i in range(num_samples)
                ]
            )
        return begun

    def _first_prompt(self, prompt: Prompt, answer: Answer) -> Prompt:
        messages = answer.turn.messages
        if not messages and not self._pool.tools:
            return prompt
        text, ids = self._splicer.prompt(prompt.messages, messages)
        if len(ids) > self._max_prompt_length:
            raise ValueError(
                f"task.max_prompt_length must be >= {len(ids)} for prompt {prompt.index} with what "
                f"its environment begins with, got {self._max_prompt_length}"
            )
        heard = tuple(map(message_of, messages))
        return replace(prompt, ids=ids, text=text, messages=(*prompt.messages, *heard))

    def _answer(self, live: Sequence[LiveEpisode], sampling: SamplingConfig) -> list[LiveEpisode]:
        """Let the environment answer the last turns; return the episodes that go on."""
        calls = [self._rules.question(one) for one in live]
        answers = self._pool.run(calls, pulse=self._pulse)
        for one, call, answer in zip(live, calls, answers, strict=True):
            self._rules.hear(one, call, answer, sampling.max_completion_length)
        return [one for one in live if one.end is None]

    def _sample(self, live: Sequence[LiveEpisode], sampling: SamplingConfig) -> None:
        """Sample the next turn of every live episode, in one call."""
        most = sampling.max_completion_length
        asked = [self._rules.next_turn(one, n, most) for n, one in enumerate(live)]
        turns = self._inner.generate(
            [request.prompt for request in asked],
            num_samples=1,
            sampling=sampling,
            seeds=[[request.seed] for request in asked],
        )
        for one, (rollout,) in zip(live, turns, strict=True):
            self._rules.take(one, rollout)


def _streaming(inner: Generator) -> StreamGenerator:
    """Return a generator that takes turns while it decodes; raises ValueError for any other."""
    if not isinstance(inner, StreamGenerator):
        name = type(inner).__name__
        raise ValueError(f"environment.admission must be rounds with {name}, got stream")
    return inner
