"""The pool: same values as the plain functions, weights, NaN, loading errors, speed, shutdown."""

from __future__ import annotations

import logging
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import psutil
import pytest

from rlkit import types
from rlkit.rewards import (
    Failure,
    OnFailure,
    RewardConfig,
    RewardFunctionConfig,
    RewardSpec,
    reward_specs,
    wire,
)
from rlkit.rewards.pool import RewardPool
from rlkit.rewards.printed import Collected, Line
from rlkit.rewards.scores import weighted_sum
from rlkit.rewards.tags import tag_answer
from rlkit.rewards.unsloth_2025 import xmlcount
from rlkit.types import Completion, FinishReason, Prompt

MODULE = """
from rlkit.rewards import per_sample

def shortest(group):
    best = min(len(c.ids) for c in group)
    return [float(len(c.ids) == best) for c in group]

def only_first(group, *, value=3.0):
    return [value] + [None] * (len(group) - 1)

def nothing(group):
    return [None] * len(group)

@per_sample
def facts(completion):
    prompt = completion.prompt
    assert list(completion.ids) == [7, 8, 2**31 - 1] and completion.ids[-1] == 2**31 - 1
    assert completion.finish_reason == "length" and prompt.text == "é\\U0001f600\\x00"
    assert prompt.ids == (5, 6) and len(completion.ids[1:]) == 2
    assert prompt.columns == {"answer": "a", "more": [1, {"x": None}]}
    return float(prompt.index)

def chatty(group):
    print("first line")
    print("second", len(group))
    import sys
    print("warned", file=sys.stderr)
    return [1.0] * len(group)

@per_sample
def chatty_too(completion):
    print("mine")
    return 2.0

def silent(group):
    return [0.0] * len(group)

async def later(group, *, value=4.0):
    import asyncio
    await asyncio.sleep(0)
    async def one():
        await asyncio.sleep(0)
        return value
    return await asyncio.gather(*(one() for _ in group))

@per_sample
async def later_each(completion):
    import asyncio
    await asyncio.sleep(0)
    return float(len(completion.text))

def as_trl(prompts, completions, answer, completion_ids, **kwargs):
    assert prompts == ["q"] * len(completions) and sorted(kwargs) == []
    assert [list(range(len(c))) for c in completions] == completion_ids
    return [float(a in c) for a, c in zip(answer, completions)]

def as_trl_chat(completions, weight=1.0, **kwargs):
    assert kwargs["prompts"][0] == [{"role": "user", "content": "q"}]
    assert sorted(kwargs) == ["answer", "completion_ids", "prompts"]
    return [weight * len(c[0]["content"]) for c in completions]

async def as_trl_later(completions, **kwargs):
    return [float(len(c)) for c in completions]

def takes_nothing():
    return []

def greedy_reader(group):
    import numpy
    return numpy.arange(len(group))
"""


@pytest.fixture
def module(tmp_path: Path) -> str:
    path = tmp_path / "user_rewards.py"
    path.write_text(MODULE)
    return str(path)


def group(texts: list[str], *, answer: object = "a", index: int = 0) -> list[Completion]:
    prompt = Prompt(index=index, ids=(1, 2), text="q", columns={"answer": answer})
    return [
        Completion(prompt=prompt, text=t, ids=tuple(range(len(t))), finish_reason=FinishReason.stop)
        for t in texts
    ]


@pytest.fixture
def groups() -> list[list[Completion]]:
    right, wrong = "<answer>a</answer>", "<answer>b</answer>"
    return [group([right, wrong, ""]), group([wrong, "x" * 40, right, right], index=9)]


def test_equals_the_plain_functions(groups: list[list[Completion]]) -> None:
    specs = [RewardSpec("a", "tag_answer", 2.0), RewardSpec("b", "xmlcount", -0.5)]
    with RewardPool(specs, RewardConfig(workers=2)) as pool:
        scores = pool.score(groups)
    for completions, components, rewards in zip(
        groups, scores.components, scores.rewards, strict=True
    ):
        for c, parts, reward in zip(completions, components, rewards, strict=True):
            assert parts == (tag_answer(c), xmlcount(c))
            assert reward == 2.0 * (tag_answer(c) or 0.0) - 0.5 * xmlcount(c)
    assert scores.failures == {}
    assert pool.names == ("a", "b")
    assert pool.weights == (2.0, -0.5)


def test_group_functions_and_not_applicable(groups: list[list[Completion]], module: str) -> None:
    specs = [
        RewardSpec("short", f"{module}:shortest"),
        RewardSpec("first", f"{module}:only_first", 1.0, {"value": 5.0}),
        RewardSpec("order", f"{module}:greedy_reader", 0.0),
    ]
    with RewardPool(specs, RewardConfig(workers=1)) as pool:
        scores = pool.score(groups)
    assert scores.rewards == [[5.0, 0.0, 1.0], [6.0, 0.0, 1.0, 1.0]]
    assert math.isnan(scores.components[0][1][1])
    assert [parts[2] for parts in scores.components[1]] == [0.0, 1.0, 2.0, 3.0]
    assert scores.report.not_applicable == {"first": 5}
    assert scores.failures == {}


def test_what_nobody_judged_has_no_reward(groups: list[list[Completion]], module: str) -> None:
    # The function with weight 0 gives values, which must not turn "no reward" into "reward 0".
    specs = [
        RewardSpec("nothing", f"{module}:nothing"),
        RewardSpec("logged", "tag_answer", 0.0),
    ]
    with RewardPool(specs, RewardConfig(workers=1)) as pool:
        scores = pool.score(groups)
    assert all(math.isnan(reward) for rewards in scores.rewards for reward in rewards)
    assert scores.components[0][0][1] == 1.0


@pytest.mark.parametrize(
    ("values", "weights", "expected"),
    [
        ([1.0, 2.0], [3.0, -1.0], 1.0),
        ([math.nan, 2.0], [3.0, -1.0], -2.0),
        ([math.nan, 2.0], [3.0, 0.0], math.nan),
        ([math.nan, math.nan], [1.0, 1.0], math.nan),
        ([0.0, math.nan], [1.0, 1.0], 0.0),
    ],
)
def test_weighted_sum(values: list[float], weights: list[float], expected: float) -> None:
    assert weighted_sum(values, weights) == pytest.approx(expected, nan_ok=True)


def test_everything_arrives(module: str) -> None:
    prompt = Prompt(
        index=4,
        ids=(5, 6),
        text="é\U0001f600\x00",
        columns={"answer": "a", "more": [1, {"x": None}]},
    )
    one = Completion(
        prompt=prompt, text="t", ids=(7, 8, 2**31 - 1), finish_reason=FinishReason.length
    )
    with RewardPool([RewardSpec("f", f"{module}:facts")], RewardConfig(workers=1)) as pool:
        scores = pool.score([[one, one]])
    assert scores.report.messages == {}
    assert scores.rewards == [[4.0, 4.0]]


@pytest.mark.parametrize(
    ("copy", "original"), [(wire.WirePrompt, Prompt), (wire.WireCompletion, Completion)]
)
def test_worker_types_have_the_same_fields(copy: type, original: type) -> None:
    assert [f.name for f in fields(copy)] == [f.name for f in fields(original)]


def test_workers_import_no_torch(tmp_path: Path) -> None:
    path = tmp_path / "look.py"
    path.write_text(
        "import sys\ndef f(group):\n    return [float('torch' in sys.modules)] * len(group)"
    )
    with RewardPool(
        [RewardSpec("f", f"{path}:f"), RewardSpec("g", "correctness")], RewardConfig(workers=1)
    ) as pool:
        assert pool.score([group(["x"])]).components[0][0][0] == 0.0


def test_empty_batches(groups: list[list[Completion]], module: str) -> None:
    specs = [RewardSpec("a", "tag_answer"), RewardSpec("b", f"{module}:shortest")]
    with RewardPool(specs, RewardConfig(workers=2)) as pool:
        assert pool.score([]).rewards == []
        assert pool.score([[], groups[0], []]).rewards == [[], [1.0, 0.0, 1.0], []]


@pytest.mark.parametrize(
    ("fn", "options", "message"),
    [
        (
            "nowhere.py:f",
            {},
            r"reward.functions.mine.fn must name an existing file, got nowhere.py:f",
        ),
        (
            "no_such_module:f",
            {},
            r"mine.fn must be importable, got no_such_module:f: ModuleNotFound",
        ),
        ("{module}:missing", {}, r"mine.fn must name a function, got .*user_rewards.py:missing"),
        ("{module}:only_first", {"valu": 1}, r"mine.options must be one of value, got valu"),
        ("{module}:shortest", {"x": 1}, r"mine.options must be empty, got x"),
        (
            "{module}:takes_nothing",
            {},
            r"fn must take the list of one prompt's completions first, or TRL's \(prompts, com",
        ),
        ("cosine_length", {}, r"mine.options.max_length must be given, got nothing"),
        ("{broken}:f", {}, r"mine.fn must be importable, got .*broken.py:f: SyntaxError"),
        ("{suicidal}:f", {}, r"importing .*suicidal.py:f exited with code 3; it printed: bye"),
    ],
)
def test_what_cannot_be_loaded_is_one_line(
    fn: str, options: dict[str, object], message: str, module: str, tmp_path: Path
) -> None:
    (tmp_path / "broken.py").write_text("def f(:")
    (tmp_path / "suicidal.py").write_text("import os\nprint('bye')\nos._exit(3)")
    target = fn.format(
        module=module, broken=tmp_path / "broken.py", suicidal=tmp_path / "suicidal.py"
    )
    pool = RewardPool([RewardSpec("mine", target, 1.0, options)], RewardConfig(workers=2))
    with pool, pytest.raises(ValueError, match=message) as caught:
        pool.start()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "function", "message"),
    [
        (
            "tag_anwser",
            {},
            r"must be a registered name, .* got tag_anwser \(did you mean tag_answer",
        ),
        ("x", {"fn": "math_verify"}, r"reward.functions.x.fn must be a registered name"),
        ("a/b", {"fn": "tag_answer"}, r"must be a name without '/'"),
        ("x", {"fn": "tag_answer", "weight": math.nan}, r"x.weight must be finite, got nan"),
    ],
)
def test_config_names_key_rule_and_value(
    name: str, function: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        RewardConfig(functions={name: RewardFunctionConfig(**function)})  # type: ignore[arg-type]


@pytest.mark.parametrize("key", ["timeout_s", "step_timeout_s", "startup_timeout_s", "workers"])
def test_config_ranges(key: str) -> None:
    with pytest.raises(ValueError, match=rf"reward.{key} must be > 0|reward.{key} must be >= 1"):
        RewardConfig(**{key: 0})  # type: ignore[arg-type]


def test_specs_come_from_the_config_or_the_task() -> None:
    recommended = [RewardSpec("task", "tag_answer")]
    assert reward_specs(RewardConfig(), recommended) == tuple(recommended)
    config = RewardConfig(functions={"tag_answer": RewardFunctionConfig(weight=3.0)})
    assert reward_specs(config, recommended) == (RewardSpec("tag_answer", "tag_answer", 3.0, {}),)
    with pytest.raises(ValueError, match="this task recommends no reward"):
        reward_specs(RewardConfig(), [])
    silent = RewardConfig(functions={"tag_answer": RewardFunctionConfig(weight=0.0)})
    with pytest.raises(ValueError, match="must hold a weight other than 0"):
        reward_specs(silent, [])


@pytest.fixture
def pool(groups: list[list[Completion]]) -> Iterator[RewardPool]:
    specs = [RewardSpec("a", "tag_answer"), RewardSpec("b", "tag_format", 0.0)]
    with RewardPool(specs, RewardConfig(workers=2)) as pool:
        pool.score(groups)
        yield pool


def test_trivial_functions_cost_little(pool: RewardPool) -> None:
    """48 completions of 20 tokens, two functions: 3 ms on a free core; the best of many calls."""
    batch = [group(["<answer>a</answer>"] * 8, index=i) for i in range(6)]
    assert min(pool.score(batch).report.seconds for _ in range(100)) < 0.005


def test_starts_within_a_second() -> None:
    """The best of three, because other programs share the cores."""
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        with RewardPool([RewardSpec("a", "tag_answer")], RewardConfig(workers=2)) as pool:
            pool.start()
            seconds.append(time.perf_counter() - start)
    assert min(seconds) < 1.0


def test_a_worker_killed_between_batches_harms_nobody(
    pool: RewardPool, groups: list[list[Completion]]
) -> None:
    before = pool.score(groups)
    for pid in pool.pids:
        os.kill(pid, signal.SIGKILL)
        psutil.Process(pid).wait(5)
    after = pool.score(groups)
    assert after.rewards == before.rewards
    assert after.failures == {}


def test_close_leaves_no_process_and_no_file(groups: list[list[Completion]]) -> None:
    me = psutil.Process()
    num_fds = me.num_fds()
    pool = RewardPool([RewardSpec("a", "tag_answer")], RewardConfig(workers=3))
    pool.score(groups)
    pids = pool.pids
    start = time.monotonic()
    pool.close()
    pool.close()
    assert time.monotonic() - start < 5.0
    assert not any(psutil.pid_exists(pid) for pid in pids)
    assert me.num_fds() == num_fds


PARENT = """
import sys, time
from rlkit.rewards import RewardConfig, RewardSpec
from rlkit.rewards.pool import RewardPool
from rlkit.types import Completion, FinishReason, Prompt
prompt = Prompt(index=0, ids=(1,), text="q", columns={})
one = Completion(prompt=prompt, text="t", ids=(1,), finish_reason=FinishReason.stop)
if __name__ == "__main__":
    with RewardPool([RewardSpec("f", sys.argv[1])], RewardConfig(workers=2)) as pool:
        pool.start()
        print(*pool.pids, flush=True)
        if sys.argv[2] == "raise":
            raise KeyError("a bug in the parent")
        pool.score([[one]])
"""


@pytest.mark.parametrize(
    ("body", "how"),
    [
        ("return [0.0]", "raise"),
        ("import time; time.sleep(600)", "kill"),
        # Holds the GIL for ever, so that no thread of the worker could notice the parent's death.
        ("import re; re.match('(a+)+$', 'a' * 60 + 'b')", "kill"),
    ],
)
def test_no_orphans(tmp_path: Path, body: str, how: str) -> None:
    (tmp_path / "f.py").write_text(f"def f(group):\n    {body}\n")
    (tmp_path / "parent.py").write_text(PARENT)
    command = [sys.executable, str(tmp_path / "parent.py"), f"{tmp_path / 'f.py'}:f", how]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as parent:
        assert parent.stdout is not None
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(pids) == 2
        if how == "kill":
            time.sleep(1.0)
            parent.kill()
        parent.wait(timeout=5)
    _, alive = psutil.wait_procs([psutil.Process(p) for p in pids if psutil.pid_exists(p)], 5)
    assert not alive


def test_an_interrupted_call_does_not_spoil_the_next(
    groups: list[list[Completion]], tmp_path: Path
) -> None:
    flag = tmp_path / "flag"
    (tmp_path / "f.py").write_text(
        "import os, time\n"
        "def f(group):\n"
        f"    while not os.path.exists({str(flag)!r}):\n"
        "        time.sleep(0.01)\n"
        "    return [1.0] * len(group)\n"
    )
    specs = [RewardSpec("f", f"{tmp_path / 'f.py'}:f")]
    with RewardPool(specs, RewardConfig(workers=1)) as pool:
        pool.start()
        previous = signal.signal(signal.SIGALRM, _interrupt)
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        try:
            with pytest.raises(KeyboardInterrupt):
                pool.score(groups)
        finally:
            signal.signal(signal.SIGALRM, previous)
        flag.touch()
        scores = pool.score(groups[:1])
    assert scores.rewards == [[1.0, 1.0, 1.0]]
    assert scores.failures == {}


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def test_failed_samples_keep_the_rest_only_if_asked(tmp_path: Path) -> None:
    (tmp_path / "f.py").write_text(
        "def f(group):\n    return [1.0, float('nan')]\n\ndef g(group):\n    return [10.0, 20.0]\n"
    )
    specs = [RewardSpec("f", f"{tmp_path}/f.py:f"), RewardSpec("g", f"{tmp_path}/f.py:g")]
    rewards = {}
    for policy in OnFailure:
        with RewardPool(specs, RewardConfig(workers=1, on_failure=policy)) as pool:
            scores = pool.score([group(["x", "y"])])
            rewards[policy] = scores.rewards[0]
            assert scores.report.failures == {("f", Failure.not_finite): 1}
    assert rewards[OnFailure.drop][0] == rewards[OnFailure.ignore][0] == 11.0
    assert math.isnan(rewards[OnFailure.drop][1])
    assert rewards[OnFailure.ignore][1] == 20.0


def test_types_module_is_what_the_copies_mirror() -> None:
    assert types.FinishReason.length == "length"  # so that workers may compare with plain strings


def test_what_functions_print_is_in_the_log_with_their_names(
    groups: list[list[Completion]], module: str, caplog: pytest.LogCaptureFixture
) -> None:
    names = ("silent", "chatty", "chatty_too")
    specs = [RewardSpec(name, f"{module}:{name}") for name in names]
    with (
        caplog.at_level(logging.INFO, "rlkit.rewards"),
        RewardPool(specs, RewardConfig(workers=1)) as pool,
    ):
        pool.score(groups)
        heard = [r.getMessage() for r in caplog.records]
        caplog.clear()
        pool.score(groups[:1])
        again = [r.getMessage() for r in caplog.records]
    each = ["first line", "second {}", "warned"]
    expected = [
        line
        for size in (3, 4)
        for line in (
            *(f"reward chatty printed: {text.format(size)}" for text in each),
            *["reward chatty_too printed: mine"] * size,
        )
    ]
    assert heard == expected
    assert again == expected[:6]


def test_a_flood_of_output_is_cut() -> None:
    collected = Collected()
    collected.add(b"\x1ef\x1e" + b"x" * 40_000)
    first, rest = collected.take()
    assert first == Line("f", "x" * 500)
    assert rest == Line("f", "... and 23619 more bytes")  # 40,003 - 16,384
    assert collected.take() == []


def test_async_functions_and_trls_signature(groups: list[list[Completion]], module: str) -> None:
    specs = [
        RewardSpec("later", f"{module}:later", 1.0, {"value": 5.0}),
        RewardSpec("each", f"{module}:later_each"),
        RewardSpec("trl", f"{module}:as_trl"),
        RewardSpec("trl_later", f"{module}:as_trl_later"),
    ]
    with RewardPool(specs, RewardConfig(workers=1)) as pool:
        scores = pool.score(groups)
    assert scores.report.messages == {}
    for completions, components in zip(groups, scores.components, strict=True):
        for c, parts in zip(completions, components, strict=True):
            length = float(len(c.text))
            assert parts == (5.0, length, float("a" in c.text), length)


def test_trls_signature_gets_messages_where_the_task_is_a_chat(module: str) -> None:
    turns: tuple[dict[str, object], ...] = ({"role": "user", "content": "q"},)
    prompt = Prompt(index=0, ids=(1,), text="q", columns={"answer": "a"}, messages=turns)
    sample = Completion(prompt=prompt, text="abc", ids=(1,), finish_reason=FinishReason.stop)
    spec = RewardSpec("chat", f"{module}:as_trl_chat", 1.0, {"weight": 2.0})
    with RewardPool([spec], RewardConfig(workers=1)) as pool:
        scores = pool.score([[sample]])
    assert scores.report.messages == {}
    assert scores.rewards == [[6.0]]


def test_seconds_and_what_did_not_apply_are_metrics(
    groups: list[list[Completion]], module: str
) -> None:
    specs = [RewardSpec("first", f"{module}:only_first"), RewardSpec("tag", "tag_answer")]
    with RewardPool(specs, RewardConfig(workers=1)) as pool:
        metrics = pool.score(groups).metrics()
    assert metrics.pop("rewards/first/not_applicable") == 5.0
    assert set(metrics) == {"time/reward/first", "time/reward/tag"}
    assert all(0 < seconds < 5 for seconds in metrics.values())
