"""The generated tasks are endless, and neither hopeless nor solved for a 135M model."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence
from typing import NamedTuple

from rlkit.rewards import RewardSpec
from rlkit.rewards.answers import raw_exact
from rlkit.rewards.numbers import ballot
from rlkit.rewards.tags import first_answer, tag_answer
from rlkit.tasks.base import Example, Message, PromptStyle, Task
from rlkit.tasks.config import (
    ChainSumConfig,
    CompareDecimalsConfig,
    EchoConfig,
    MaxOfNConfig,
    RevWordsConfig,
    TaskConfig,
)
from rlkit.tasks.generated import Problem, splits
from rlkit.tasks.words import WORDS
from rlkit.types import Completion

# Format and answer are logged apart: most early progress of small models is format.
_TAG_REWARDS = (
    RewardSpec("tag_answer", "tag_answer"),
    RewardSpec("tag_format", "tag_format", weight=0.0),
)
_RAW_REWARDS = (RewardSpec("raw_exact", "raw_exact"),)


class QA(NamedTuple):
    """This is a question with its answer and a key that its reorderings share."""

    question: str
    answer: str
    key: str


DrawQA = Callable[[random.Random], QA]


def echo(config: EchoConfig) -> Task:
    """Make a task of copying and format: "The secret word is X"."""

    def draw(rng: random.Random) -> QA:
        return _echo_qa(rng.choice(WORDS))

    return _chat_task(config, draw, shots=[_echo_qa("apple")])


def rev_words(config: RevWordsConfig) -> Task:
    """Make a task of reversing the order of a few words."""

    def draw(rng: random.Random) -> QA:
        return _reverse_qa(rng.sample(WORDS, rng.randint(config.min_words, config.max_words)))

    # The worked examples have every length in turn, from fixed words.
    spread = config.max_words - config.min_words + 1
    lengths = [config.min_words + i % spread for i in range(4)]
    shots = [_reverse_qa(WORDS[10 * i : 10 * i + n]) for i, n in enumerate(lengths)]
    return _chat_task(config, draw, shots=shots)


def max_of_n(config: MaxOfNConfig) -> Task:
    """Make a task of finding the largest of a few different numbers below 100."""

    def draw(rng: random.Random) -> QA:
        return _max_qa(rng.sample(range(100), config.n))

    rng = random.Random("max_of_n")
    return _raw_task(config, draw, shots=[draw(rng) for _ in range(4)])


def chain_sum(config: ChainSumConfig) -> Task:
    """Make a task of sums and differences of a few numbers, never below zero."""
    least = 10 ** (config.digits - 1) if config.digits > 1 else 0

    def draw(rng: random.Random) -> QA:
        while True:
            numbers = [rng.randrange(least, 10**config.digits) for _ in range(config.terms)]
            signs = [rng.choice("+-") for _ in numbers[1:]]
            qa = _sum_qa(numbers, signs)
            if int(qa.answer) >= 0:
                return qa

    draws = map(draw, itertools.repeat(random.Random("chain_sum")))
    shots = [
        next(qa for qa in draws if ("-" in qa.question) == has_minus)
        for has_minus in (False, True, False, True)
    ]
    return _raw_task(config, draw, shots=shots)


def compare_decimals(config: CompareDecimalsConfig) -> Task:
    """Make a task of comparing two decimals, of which one has a digit more."""

    def draw(rng: random.Random) -> QA:
        whole = rng.randrange(1, 100)
        # A coin says whether the longer one is larger, so that its length says nothing.
        longer_wins = rng.random() < 0.5
        low, high = sorted(rng.sample(range(1 if longer_wins else 0, 10), 2))
        short, long = (low, high) if longer_wins else (high, low)
        pair = [f"{whole}.{short}", f"{whole}.{long}{rng.randrange(1, 10)}"]
        rng.shuffle(pair)
        return _compare_qa(pair)

    shots = [("3.8", "3.25"), ("14.61", "14.4"), ("7.07", "7.3"), ("52.2", "52.95")]
    return _raw_task(config, draw, shots=[_compare_qa(pair) for pair in shots])


def _echo_qa(word: str) -> QA:
    question = (
        f"The secret word is {word}. What is the secret word? Answer inside <answer></answer>."
    )
    return QA(question, word, key=word)


def _reverse_qa(words: Sequence[str]) -> QA:
    question = f"Reverse the order of these words: {' '.join(words)}"
    return QA(question, " ".join(reversed(words)), key=" ".join(sorted(words)))


def _max_qa(numbers: Sequence[int]) -> QA:
    listing = ", ".join(map(str, numbers))
    key = ",".join(map(str, sorted(numbers)))
    return QA(f"max of {listing}", str(max(numbers)), key=key)


def _sum_qa(numbers: Sequence[int], signs: Sequence[str]) -> QA:
    question = str(numbers[0]) + "".join(
        f" {sign} {n}" for sign, n in zip(signs, numbers[1:], strict=True)
    )
    signed = [numbers[0], *(int(f"{s}{n}") for s, n in zip(signs, numbers[1:], strict=True))]
    return QA(f"What is {question}?", str(sum(signed)), key=",".join(map(str, sorted(signed))))


def _compare_qa(pair: Sequence[str]) -> QA:
    question = f"Which is larger, {pair[0]} or {pair[1]}?"
    return QA(question, max(pair, key=float), key=",".join(sorted(pair)))


def _chat_task(config: TaskConfig, draw: DrawQA, *, shots: Sequence[QA]) -> Task:
    """Put worked examples into turns of the conversation, a prefix that all prompts share."""
    prefix = tuple(
        message
        for shot in shots
        for message in (Message("user", shot.question), Message("assistant", _tagged(shot.answer)))
    )
    form = _Form(PromptStyle.chat, (), _TAG_REWARDS, _tag_success, _tag_gold, _tag_vote)
    return _task(config, draw, form, shots, lambda question: (*prefix, Message("user", question)))


def _raw_task(config: TaskConfig, draw: DrawQA, *, shots: Sequence[QA]) -> Task:
    """Put worked examples into the text; the completion ends with its line.

    An empty line between examples raises the base success of sums (SmolLM2-135M: .16 to .26).
    """
    prefix = "".join(f"Q: {shot.question}\nA: {shot.answer}\n\n" for shot in shots)
    form = _Form(PromptStyle.raw, ("\n",), _RAW_REWARDS, _raw_success, _raw_gold, _raw_vote)
    return _task(config, draw, form, shots, lambda question: f"{prefix}Q: {question}\nA:")


class _Form(NamedTuple):
    """This holds what all tasks of one prompt style share."""

    style: PromptStyle
    stop: tuple[str, ...]
    rewards: tuple[RewardSpec, ...]
    success: Callable[[Completion], bool]
    gold: Callable[[Example], str]
    answer: Callable[[Completion], str | None]


def _task(
    config: TaskConfig,
    draw: DrawQA,
    form: _Form,
    shots: Sequence[QA],
    prompt: Callable[[str], str | tuple[Message, ...]],
) -> Task:
    def problem(rng: random.Random) -> Problem:
        qa = draw(rng)
        return Problem(qa.key, Example(prompt=prompt(qa.question), columns={"answer": qa.answer}))

    train, held = splits(
        problem, seed=config.seed, eval_size=config.eval_size, shots={s.key for s in shots}
    )
    return Task(
        name=config.name,
        style=form.style,
        train=train,
        eval=held,
        max_prompt_length=config.max_prompt_length,
        max_completion_length=config.max_completion_length,
        stop=form.stop,
        rewards=form.rewards,
        success=form.success,
        gold_completion=form.gold,
        answer=form.answer,
    )


def _tagged(answer: object) -> str:
    return f"<answer>{answer}</answer>"


def _tag_gold(example: Example) -> str:
    return _tagged(example.columns["answer"])


def _raw_gold(example: Example) -> str:
    return f" {example.columns['answer']}\n"


def _tag_success(completion: Completion) -> bool:
    return tag_answer(completion) == 1.0


def _raw_success(completion: Completion) -> bool:
    return raw_exact(completion) == 1.0


def _tag_vote(completion: Completion) -> str | None:
    return ballot(first_answer(completion.text))


def _raw_vote(completion: Completion) -> str | None:
    return ballot(completion.text.lstrip(" ").split("\n", 1)[0])
