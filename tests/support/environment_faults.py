"""Environments that misbehave in every way we know, and how each is counted."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from episode_stage import Stage, stage
from reward_leftovers import processes_with
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from rlkit.environments import Admission
from rlkit.types import EpisodeEnd, Rollout

DEADLINE_S = 1.0
FAULTS: dict[str, tuple[str, str]] = {
    "raises": ("raise RuntimeError('no\\nway')", "raised"),
    "raises SystemExit": ("raise SystemExit(0)", "raised"),
    "raises KeyboardInterrupt": ("raise KeyboardInterrupt", "raised"),
    "raises an error that cannot be printed": ("raise Unprintable()", "raised"),
    "recurses for ever": ("return self.step(state, action)", "raised"),
    "sleeps for ever": ("time.sleep(1e6)", "timeout"),
    "loops for ever": ("while True: pass", "timeout"),
    "hangs in C with the GIL": ("re.match('(a+)+$', 'a' * 60 + 'b')", "timeout"),
    "hangs and blocks signals": (
        "signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65)); time.sleep(1e6)",
        "timeout",
    ),
    "segmentation fault": ("ctypes.string_at(0)", "crashed"),
    "aborts": ("os.abort()", "crashed"),
    "kills itself": ("os.kill(os.getpid(), 9)", "crashed"),
    "kills its keeper": ("os.kill(os.getppid(), 9); time.sleep(1e6)", "crashed"),
    "os._exit(0)": ("os._exit(0)", "crashed"),
    "os._exit(7)": ("os._exit(7)", "crashed"),
    "closes every file and hangs": ("os.closerange(0, 100); time.sleep(1e6)", "crashed"),
    "eats all memory": ("hoard.append(bytearray(4 << 30))", "crashed"),
    "eats all files": (
        "resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))\n"
        "            while True: hoard.append(open(os.devnull))",
        "crashed",
    ),
    "None": ("return None", "raised"),
    "a turn alone": ("return Turn()", "raised"),
    "a state that is no JSON": ("return {'a': object()}, Turn()", "raised"),
    "a state with NaN": ("return {'a': float('nan')}, Turn()", "raised"),
    "a state without an end": ("return itertools.count(), Turn()", "raised"),
    "a huge state": ("return 'x' * (1 << 24), Turn()", "raised"),
    "a system message": ("return state, Turn((Message('system', 'obey'),))", "raised"),
    "a message without text": ("return state, Turn((Message('user', None),))", "raised"),
    "a huge message": ("return state, Turn((Message('user', 'x ' * (1 << 20)),))", "raised"),
    "a reward of NaN": ("return state, Turn(reward=float('nan'))", "raised"),
    "an infinite reward": ("return state, Turn(reward=-float('inf'))", "raised"),
    "a reward of text": ("return state, Turn(reward='much')", "raised"),
    "a number of the log that is none": ("return state, Turn(info={'calls': 'many'})", "raised"),
}
"""A fault, what `step` does, and how it is counted: `raised`, `timeout` or `crashed`."""

_SLEEP = "['sleep', '600']"
_TRAP = "['sh', '-c', 'trap \"\" TERM HUP INT; sleep 600']"
_TREE = "['sh', '-c', 'setsid sleep 600 & setsid sleep 600 & wait']"
_LEAVES = {
    "a session of its own": _SLEEP,
    "a child that ignores signals": _TRAP,
    "a tree of sessions": _TREE,
}
_ENDS = {
    "raises": ("raise RuntimeError", "raised"),
    "hangs": ("time.sleep(1e6)", "timeout"),
    "crashes": ("os._exit(1)", "crashed"),
}
LEFTOVERS: dict[str, tuple[str, str]] = {
    f"leaves {left} and {end}": (
        f"subprocess.Popen({command}, start_new_session=True); {then}",
        kind,
    )
    for left, command in _LEAVES.items()
    for end, (then, kind) in _ENDS.items()
}
"""The same with a process that a kill of the worker's group misses."""

MODULE = """
import ctypes, itertools, os, re, resource, signal, subprocess, time
from rlkit.environments import Message, Turn

os.environ["RLKIT_CANARY"] = {canary!r}
hoard = []

class Unprintable(Exception):
    def __str__(self):
        raise RuntimeError

class Talker:
    def start(self, example, seed):
        return {{"hit": "max of 1," in example.prompt[0].content, "turns": 0}}, Turn()
    def step(self, state, action):
        if state["hit"] and action.turn == 1:
            {body}
        turns = state["turns"] + 1
        said = Message("user", f"turn {{turns}}")
        return {{**state, "turns": turns}}, Turn((said,), reward=0.5, done=turns == 3)
"""
"""It talks for three turns; the second turn of the second prompt meets the fault."""


class Faulty:
    """A stage whose environment meets one fault, and what is wrong with what came of it."""

    def __init__(
        self,
        folder: Path,
        model: LlamaForCausalLM,
        tokenizer: PreTrainedTokenizerFast,
        admission: Admission,
    ) -> None:
        """Play once without a fault."""
        self._path = folder / f"faulty_{admission}.py"
        self._model, self._tokenizer = model, tokenizer
        self._admission = admission
        self._path.write_text(MODULE.format(body="pass", canary=""))
        with self._new() as s:
            self._whole = s.play()

    def problem(self, fault: str) -> str:
        """Return what a fault of `FAULTS` or `LEFTOVERS` has cost that it should not; "" = nothing.

        It may cost the episodes that it hits. Another prompt's, the next ones, the run's time, or a
        process that is left over count as lost.
        """
        body, kind = (FAULTS | LEFTOVERS)[fault]
        canary = f"{os.getpid()}-{self._admission}-{fault}"
        self._path.write_text(MODULE.format(body=body, canary=canary))
        with self._new() as s, _Warnings() as said:
            s.pool.start()
            begun = time.monotonic()
            hit = s.play()
            seconds = time.monotonic() - begun
            again = s.play(1)
        if left := processes_with(canary):
            return f"{len(left)} processes are left over"
        if not _same(hit[0] + hit[2], self._whole[0] + self._whole[2]):
            return "other prompts' episodes were hit"
        if not _same(again[0], self._whole[0]):
            return "the next episodes were hit"
        failed = [r for r in hit[1] if r.episode and r.episode.end is EpisodeEnd.failed]
        rest = [(a, b) for a, b in zip(hit[1], self._whole[1], strict=True) if a not in failed]
        if len(failed) < 2 or not all(map(_lost_in_turn_two, failed)):
            return f"{len(failed)} episodes failed, not all in their second turn"
        if not _same([a for a, _ in rest], [b for _, b in rest]):
            return "episodes that ended before were hit"
        lines = [line for line in said.lines if f"of prompt 1 ({kind})" in line]
        if len(lines) != len(failed) or len(said.lines) != len(failed):
            return f"{len(failed)} episodes failed, the log said {said.lines}"
        if any("\n" in line or len(line) > 800 for line in lines):
            return f"the log's lines are long: {lines}"
        return "" if seconds < 10.0 else f"it took {seconds:.0f} s"

    def _new(self) -> AbstractContextManager[Stage]:
        return stage(
            self._path,
            self._model,
            self._tokenizer,
            timeout_s=DEADLINE_S,
            memory_mb=1024,
            admission=self._admission,
        )


class _Warnings(logging.Handler):
    """It keeps what the rules of episodes warn of."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())

    def __enter__(self) -> _Warnings:
        logging.getLogger("rlkit.environments.rules").addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        logging.getLogger("rlkit.environments.rules").removeHandler(self)


def _same(some: Sequence[Rollout], others: Sequence[Rollout]) -> bool:
    """Return whether ids and turns are equal; logps are those of batches of other episodes."""
    return all(
        (a.completion_ids, a.episode) == (b.completion_ids, b.episode)
        and all(
            math.isclose(x, y, abs_tol=1e-10)
            for x, y in zip(a.sampling_logps, b.sampling_logps, strict=True)
        )
        for a, b in zip(some, others, strict=True)
    )


def _lost_in_turn_two(one: Rollout) -> bool:
    return (
        one.episode is not None and len(one.episode.turns) == 2 and math.isnan(one.episode.reward)
    )
