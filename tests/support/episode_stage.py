"""A stage for episodes: a small engine, a talking environment and what leads between them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from rlkit.environments import EnvironmentConfig, EnvironmentSpec
from rlkit.environments.pool import EnvironmentPool
from rlkit.environments.rounds import EpisodeGenerator
from rlkit.environments.splice import Splicer
from rlkit.generation import HFGeneratorConfig, sample_seed
from rlkit.generation.hf import HFGenerator
from rlkit.generation.stream import StreamSource
from rlkit.types import Prompt, Rollout, SamplingConfig

MODULE = '''
import time
from rlkit.environments import Message, Turn

class Talker:
    """Says what it heard and its seed; ends after `turns`; forges, fails and waits when told to."""
    def __init__(self, turns=3, greet=False, fail_at=None, slow=0.0):
        self.turns, self.greet, self.fail_at, self.slow = turns, greet, fail_at, slow
    def start(self, example, seed):
        hello = (Message("user", f"hello {seed % 1000}"),) if self.greet else ()
        return {"seed": seed, "heard": []}, Turn(hello)
    def step(self, state, action):
        if action.turn == self.fail_at:
            raise RuntimeError("broken")
        time.sleep(self.slow)
        heard = [*state["heard"], action.text]
        say = f"<|im_end|> {len(action.ids)} {state['seed'] % 1000}"
        done = len(heard) == self.turns
        turn = Turn((Message("user", say),), reward=0.5, done=done, info={"heard": 1.0})
        return {**state, "heard": heard}, turn
'''
SAMPLING = SamplingConfig(max_completion_length=120, temperature=1.5)


def talking_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A random model in float64."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.3,
    )
    made = LlamaForCausalLM(config).double()
    made.requires_grad_(False).train(False)
    return made


class Recording:
    """The engine, and what it was asked for."""

    def __init__(self, inner: HFGenerator) -> None:
        self.inner = inner
        self.calls: list[tuple[int, int]] = []
        self.version = 0

    def generate(
        self,
        prompts: Sequence[Prompt],
        *,
        num_samples: int,
        sampling: SamplingConfig,
        seeds: Sequence[Sequence[int]],
    ) -> list[list[Rollout]]:
        self.calls.append((len(prompts), num_samples))
        return self.inner.generate(prompts, num_samples=num_samples, sampling=sampling, seeds=seeds)

    def stream(self, source: StreamSource, *, sampling: SamplingConfig) -> None:
        """Sample what is asked for one after the other, the newest last."""
        waiting = deque(source.more([], idle=True))
        while waiting:
            one = waiting.popleft()
            ((rollout,),) = self.inner.generate(
                [one.prompt], num_samples=1, sampling=sampling, seeds=[[one.seed]]
            )
            waiting += source.more([(one.key, rollout)], idle=not waiting)

    def load_adapter(self, tensors: Mapping[str, Tensor], version: int) -> None:
        self.inner.load_adapter(tensors, version)

    def close(self) -> None:
        self.inner.close()


class Stage:
    """An engine, an environment and what leads between them."""

    def __init__(
        self,
        model: LlamaForCausalLM,
        tokenizer: PreTrainedTokenizerFast,
        pool: EnvironmentPool,
        config: EnvironmentConfig,
    ) -> None:
        # A third of the ids ends a turn, among them the template's own end.
        self.end = int(tokenizer.get_vocab()["<|im_end|>"])
        stops = frozenset({self.end, *range(10, len(tokenizer), 8)})
        self.engine = Recording(
            HFGenerator(
                model,
                tokenizer,
                activate=lambda _: nullcontext(),
                stop_token_ids=stops,
                config=HFGeneratorConfig(),
            )
        )
        self.tokenizer = tokenizer
        self.pool = pool
        self.splicer = Splicer(tokenizer, roles=("user",), history=config.history)
        self.episodes = EpisodeGenerator(
            self.engine,
            pool,
            self.splicer,
            config=config,
            decode=self.decode,
            max_prompt_length=200,
        )

    def decode(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def prompts(self, count: int) -> list[Prompt]:
        result = []
        for i in range(count):
            messages = ({"role": "user", "content": f"max of {i}, 3"},)
            text = str(
                self.tokenizer.apply_chat_template(
                    list(messages), tokenize=False, add_generation_prompt=True
                )
            )
            ids = tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])
            result.append(Prompt(index=i, ids=ids, text=text, messages=messages))
        return result

    def play(
        self, count: int = 3, samples: int = 4, *, sampling: SamplingConfig = SAMPLING
    ) -> list[list[Rollout]]:
        seeds = [[sample_seed(7, 0, p, i) for i in range(samples)] for p in range(count)]
        return self.episodes.generate(
            self.prompts(count), num_samples=samples, sampling=sampling, seeds=seeds
        )


@contextmanager
def stage(
    module: Path,
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    options: dict[str, object] | None = None,
    **limits: object,
) -> Iterator[Stage]:
    config = EnvironmentConfig(**limits)  # type: ignore[arg-type]
    pool = EnvironmentPool(EnvironmentSpec(f"{module}:Talker", options or {}), config)
    try:
        yield Stage(model, tokenizer, pool, config)
    finally:
        pool.close()
