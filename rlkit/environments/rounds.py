"""`EpisodeGenerator` makes a generator of episodes of any generator of completions.

It works in rounds. One call of the inner generator samples the next turn of all live episodes. Its
prompts are the ids so far, so an engine with a prefix cache computes only what is new. Then the
environment answers them all. An episode never crosses an update of the policy. Nothing is kept
from one call to the next, so a resumed run needs no state of an environment.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from torch import Tensor

from rlkit.environments.base import Action, Message
from rlkit.environments.branch import begin, follow
from rlkit.environments.config import CutTurn, EnvironmentConfig, History
from rlkit.environments.live import LiveEpisode
from rlkit.environments.messages import message_of
from rlkit.environments.pool import Answer, Begin, Continue, EnvironmentPool, Fault
from rlkit.environments.splice import Splicer
from rlkit.generation.base import environment_seed, turn_seed
from rlkit.types import EpisodeEnd, Generator, Prompt, Rollout, SamplingConfig

_log = logging.getLogger(__name__)


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
        self._decode = decode
        self._max_prompt_length = max_prompt_length
        self._pulse = pulse
        answered = config.cut_turns is CutTurn.answer
        self._cut_at = config.max_turn_tokens if answered else None

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
        first = self._limit(sampling.max_completion_length)
        turns = self._inner.generate(
            [replace(group[0].prompt, limit=first) for group in begun],
            num_samples=num_samples,
            sampling=sampling,
            seeds=seeds,
        )
        every = [live for group in begun for live in group]
        for live, rollout in zip(every, [r for group in turns for r in group], strict=True):
            live.take(rollout, cut_at=self._cut_at)
        while True:
            going = self._answer([live for live in every if live.end is None], sampling)
            if not going:
                break
            self._sample(going, sampling)
        return [[live.rollout() for live in group] for group in begun]

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
                _warn(prompt, answer)
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
        calls = []
        for one in live:
            turn = one.turns[-1]
            ids = tuple(one.ids[turn.start : turn.stop])
            assert one.state is not None
            calls.append(Continue(one.state, Action(self._decode(ids), ids, len(one.turns) - 1)))
        answers = self._pool.run(calls, pulse=self._pulse)
        for one, call, answer in zip(live, calls, answers, strict=True):
            one.seconds += answer.seconds
            if isinstance(answer, Fault):
                _warn(one.prompt, answer)
                one.end = EpisodeEnd.failed
                continue
            said = answer.turn
            one.state = answer.state
            one.turns[-1] = one.turns[-1]._replace(reward=said.reward, info=said.info)
            one.end = self._end(one, done=said.done)
            if one.end is None:
                self._go_on(one, call.action.text, said.messages, sampling)
        return [one for one in live if one.end is None]

    def _go_on(
        self,
        one: LiveEpisode,
        said: str,
        messages: Sequence[Message],
        sampling: SamplingConfig,
    ) -> None:
        """Append what the model reads before its next turn, if there is room for one."""
        after, shown = one.ids[-1], one.shown
        if shown is None:
            ids, afresh = self._splicer.between(messages, after=after), False
        else:
            one.shown, ids, afresh = follow(self._splicer, shown, said, messages, after=after)
        if len(one.ids) + len(ids) >= sampling.max_completion_length:
            one.end = EpisodeEnd.context
        else:
            one.splice(ids, afresh=afresh)

    def _end(self, live: LiveEpisode, *, done: bool) -> EpisodeEnd | None:
        if done:
            return EpisodeEnd.done
        if len(live.turns) >= self._config.max_turns:
            return EpisodeEnd.turns
        if live.seconds > self._config.episode_timeout_s:
            return EpisodeEnd.seconds
        return None

    def _sample(self, live: Sequence[LiveEpisode], sampling: SamplingConfig) -> None:
        """Sample the next turn of every live episode, in one call."""
        prompts = [
            one.next_prompt(limit=self._limit(sampling.max_completion_length - len(one.ids)))
            for one in live
        ]
        seeds = [[turn_seed(one.seed, len(one.turns))] for one in live]
        turns = self._inner.generate(prompts, num_samples=1, sampling=sampling, seeds=seeds)
        for one, (rollout,) in zip(live, turns, strict=True):
            one.take(rollout, cut_at=self._cut_at)

    def _limit(self, left: int) -> int:
        most = self._config.max_turn_tokens
        return left if most is None else min(left, most)


def _warn(prompt: Prompt, fault: Fault) -> None:
    _log.warning(
        "the environment failed in an episode of prompt %d (%s): %s",
        prompt.index,
        fault.kind,
        fault.message,
    )
