"""Generated tasks: disjoint halves, purity, and answers recomputed from the question's text."""

from __future__ import annotations

import contextlib
import io
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace

import pytest

from rlkit.tasks import SCHEMAS, Example, PromptStyle, TaskConfig, build_task, config
from rlkit.tasks.generated import held_out
from rlkit.tasks.words import WORDS
from rlkit.types import Completion, FinishReason, Prompt

CONFIGS: dict[str, TaskConfig] = {
    "echo": config.EchoConfig(),
    "rev_words": config.RevWordsConfig(min_words=2, max_words=4),
    "max_of_n": config.MaxOfNConfig(n=3),
    "max_of_5": config.MaxOfNConfig(n=5),
    "chain_sum": config.ChainSumConfig(terms=2, digits=1),
    "chain_sum_3": config.ChainSumConfig(terms=3, digits=2),
    "compare_decimals": config.CompareDecimalsConfig(),
}


def question(example: Example) -> str:
    """The last question, without its worked examples."""
    if isinstance(example.prompt, str):
        last = example.prompt.rpartition("Q: ")[2]
        assert last.endswith("\nA:")
        return last.removesuffix("\nA:")
    assert example.prompt[-1].role == "user"
    return example.prompt[-1].content


def normalised(name: str, text: str) -> str:
    """The problem up to the order of its parts, worked out from the text alone."""
    if name.startswith("chain_sum"):
        parts = re.findall(r"[+-]?\d+", text.replace(" ", ""))
        return ",".join(sorted(str(int(part)) for part in parts))
    if name == "rev_words":
        text = text.partition(": ")[2]
    return " ".join(sorted(re.findall(r"[\w.]+", text)))


def solve_echo(text: str) -> str:
    match = re.search(r"secret word is (\w+)\.", text)
    assert match
    return match.group(1)


def solve_reverse(text: str) -> str:
    return " ".join(text.partition(": ")[2].split()[::-1])


def solve_max(text: str) -> str:
    return str(max(int(n) for n in re.findall(r"\d+", text)))


def solve_sum(text: str) -> str:
    return str(sum(int(part) for part in re.findall(r"[+-]?\d+", text.replace(" ", ""))))


def solve_compare(text: str) -> str:
    first, second = re.findall(r"\d+\.\d+", text)
    assert float(first) != float(second)
    return str(first if float(first) > float(second) else second)


SOLVERS: dict[str, Callable[[str], str]] = {
    "echo": solve_echo,
    "rev_words": solve_reverse,
    "max_of_n": solve_max,
    "max_of_5": solve_max,
    "chain_sum": solve_sum,
    "chain_sum_3": solve_sum,
    "compare_decimals": solve_compare,
}


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("seed", [0, 1])
def test_halves_are_disjoint(name: str, seed: int) -> None:
    task = build_task(replace(CONFIGS[name], seed=seed, eval_size=2000))
    assert task.train.size is None and task.eval.size is not None
    held = [normalised(name, question(task.eval.get(i))) for i in range(task.eval.size)]
    trained = {normalised(name, question(task.train.get(i))) for i in range(5000)}
    assert len({task.eval.get(i).prompt for i in range(task.eval.size)}) == task.eval.size
    assert not trained & set(held)
    shots = _shots(task.train.get(0))
    assert not {normalised(name, shot) for shot in shots} & (trained | set(held))


@pytest.mark.parametrize("name", CONFIGS)
def test_answers_are_right(name: str) -> None:
    task = build_task(CONFIGS[name])
    for i in range(300):
        example = task.train.get(i)
        assert example.columns["answer"] == SOLVERS[name](question(example))


@pytest.mark.parametrize("name", CONFIGS)
def test_worked_examples_are_right(name: str) -> None:
    example = build_task(CONFIGS[name]).train.get(0)
    if isinstance(example.prompt, str):
        pairs = re.findall(r"Q: (.*)\nA: (.*)\n", example.prompt)
    else:
        turns = example.prompt[:-1]
        assert [m.role for m in turns] == ["user", "assistant"] * (len(turns) // 2)
        pairs = [(q.content, a.content[8:-9]) for q, a in zip(turns[::2], turns[1::2], strict=True)]
    assert len(pairs) == (1 if name == "echo" else 4)
    for asked, answer in pairs:
        assert SOLVERS[name](asked) == answer


@pytest.mark.parametrize("name", CONFIGS)
def test_gold_succeeds_and_others_do_not(name: str) -> None:
    task = build_task(CONFIGS[name])
    assert task.gold_completion is not None and task.success is not None
    example, other = task.eval.get(0), task.eval.get(1)
    prompt = Prompt(index=0, ids=(1,), text="", columns=example.columns)

    def judged(text: str) -> bool:
        assert task.success is not None
        return task.success(
            Completion(prompt=prompt, text=text, ids=(1,), finish_reason=FinishReason.stop)
        )

    assert judged(task.gold_completion(example))
    if other.columns != example.columns:
        assert not judged(task.gold_completion(other))
    assert not judged("")


@pytest.mark.parametrize("name", CONFIGS)
def test_all_prompts_share_the_worked_examples(name: str) -> None:
    task = build_task(CONFIGS[name])
    prompts = [task.train.get(i).prompt for i in range(3)] + [task.eval.get(0).prompt]
    if task.style is PromptStyle.raw:
        assert len({str(p).rpartition("Q: ")[0] for p in prompts}) == 1
    else:
        assert len({p[:-1] for p in prompts}) == 1


def test_examples_are_the_same_in_another_process() -> None:
    program = (
        "from rlkit.tasks import build_task, config\n"
        "for c in (config.EchoConfig(seed=3), config.MaxOfNConfig(seed=3)):\n"
        "    t = build_task(c)\n"
        "    print([t.train.get(i).columns['answer'] for i in (0, 7, 10**9)], t.eval.get(5))\n"
    )
    there = subprocess.run(
        [sys.executable, "-c", program],
        env={"PYTHONHASHSEED": "1" if os.environ.get("PYTHONHASHSEED") == "0" else "0"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    with contextlib.redirect_stdout(io.StringIO()) as here:
        exec(program, {})
    assert there == here.getvalue() and len(there.splitlines()) == 2


def test_order_of_access_does_not_matter() -> None:
    one, two = build_task(CONFIGS["max_of_n"]), build_task(CONFIGS["max_of_n"])
    forwards = [one.train.get(i) for i in range(20)]
    backwards = [two.train.get(i) for i in reversed(range(20))]
    assert forwards == backwards[::-1]
    assert len({e.prompt for e in forwards}) > 15


def test_a_quarter_is_held_out_and_the_seed_says_which() -> None:
    keys = [str(i) for i in range(20_000)]
    held = {seed: {key for key in keys if held_out(key, seed)} for seed in (0, 1)}
    for seed in (0, 1):  # binomial: sd of the share is 0.003
        assert abs(len(held[seed]) / len(keys) - 0.25) < 0.0125
    assert abs(len(held[0] & held[1]) / len(keys) - 0.0625) < 0.007


def test_a_small_task_has_fewer_eval_problems() -> None:
    task = build_task(config.ChainSumConfig(eval_size=500))
    # 100 sums and 55 differences; a quarter is held out.
    assert task.eval.size is not None and 25 <= task.eval.size <= 55


def test_compare_decimals_cannot_be_won_by_position_or_by_length() -> None:
    task = build_task(CONFIGS["compare_decimals"])
    first = longer = 0
    for i in range(2000):
        example = task.train.get(i)
        pair = re.findall(r"\d+\.\d+", question(example))
        first += example.columns["answer"] == pair[0]
        longer += example.columns["answer"] == max(pair, key=len)
    assert abs(first / 2000 - 0.5) < 0.045  # four standard errors
    assert abs(longer / 2000 - 0.5) < 0.045


def test_words_are_different_single_words() -> None:
    assert len(set(WORDS)) == len(WORDS) >= 300
    assert all(re.fullmatch("[a-z]+", word) for word in WORDS)


@pytest.mark.parametrize(
    ("cls", "options", "message"),
    [
        (config.EchoConfig, {"seed": -1}, r"task.seed must be >= 0, got -1"),
        (config.EchoConfig, {"eval_size": 0}, r"task.eval_size must be >= 1, got 0"),
        (config.EchoConfig, {"max_prompt_length": 0}, r"task.max_prompt_length must be >= 1"),
        (config.EchoConfig, {"max_completion_length": 0}, r"max_completion_length must be >= 1"),
        (config.EchoConfig, {"name": "../x"}, r"task.name must be echo .*, got ../x"),
        (config.MaxOfNConfig, {"n": 9}, r"task.n must be in \[2, 8\], got 9"),
        (config.ChainSumConfig, {"digits": 0}, r"task.digits must be in \[1, 6\], got 0"),
        (config.ChainSumConfig, {"terms": 1}, r"task.terms must be in \[2, 8\], got 1"),
        (config.RevWordsConfig, {"min_words": 1}, r"task.min_words must be in \[2, 8\], got 1"),
        (config.RevWordsConfig, {"min_words": 4}, r"task.max_words must be in \[4, 8\], got 2"),
        (config.GSM8KConfig, {"eval_fraction": 1.0}, r"task.eval_fraction must be in \[0, 1\)"),
    ],
)
def test_ranges(cls: type[TaskConfig], options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cls(**options)  # type: ignore[arg-type]


def test_every_schema_has_its_name() -> None:
    assert [(s.group, s.name) for s in SCHEMAS] == [("task", s.node().name) for s in SCHEMAS]
    with pytest.raises(ValueError, match="task must be one of the group `task`, got TaskConfig"):
        build_task(TaskConfig())


def _shots(example: Example) -> list[str]:
    if isinstance(example.prompt, str):
        return re.findall(r"Q: (.*)\nA: ", example.prompt)
    return [m.content for m in example.prompt[:-1] if m.role == "user"]
