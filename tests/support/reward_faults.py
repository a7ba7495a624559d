"""Reward functions that misbehave in every way we know, and how each is counted."""

from __future__ import annotations

from rlkit.rewards import Failure
from rlkit.types import Completion, FinishReason, Prompt

# What the function does with the completions of the second group, and how it is counted.
FAULTS: dict[str, tuple[str, Failure]] = {
    "raises": ("raise RuntimeError('no\\nway')", Failure.raised),
    "raises SystemExit": ("raise SystemExit(0)", Failure.raised),
    "raises an error that cannot be printed": ("raise Unprintable()", Failure.raised),
    "recurses for ever": ("return f(group)", Failure.raised),
    "sleeps for ever": ("time.sleep(1e6)", Failure.timeout),
    "loops for ever": ("while True: pass", Failure.timeout),
    "hangs in C with the GIL": ("re.match('(a+)+$', 'a' * 60 + 'b')", Failure.timeout),
    "raises TimeoutError": ("raise TimeoutError('2 s')", Failure.timeout),
    "segmentation fault": ("ctypes.string_at(0)", Failure.killed),
    "aborts": ("os.abort()", Failure.killed),
    "kills itself": ("os.kill(os.getpid(), 9)", Failure.killed),
    "os._exit(0)": ("os._exit(0)", Failure.exited),
    "os._exit(7)": ("os._exit(7)", Failure.exited),
    "too few values": ("return [1.0] * (len(group) - 1)", Failure.wrong_length),
    "too many values": ("return [1.0] * 1000000", Failure.wrong_length),
    "no list": ("return 1.0", Failure.wrong_type),
    "None": ("return None", Failure.wrong_type),
    "a string": ("return 'ab'", Failure.wrong_type),
    "an endless generator": ("return itertools.count()", Failure.wrong_type),
    "strings": ("return ['1.0'] * len(group)", Failure.wrong_type),
    "lists": ("return [[1.0]] * len(group)", Failure.wrong_type),
    "a length that lies": ("return Liar()", Failure.raised),
    "NaN": ("return [float('nan')] * len(group)", Failure.not_finite),
    "infinity": ("return [-float('inf')] * len(group)", Failure.not_finite),
    "a huge integer": ("return [10 ** 40000] * len(group)", Failure.not_finite),
    "prints 1 GB": ("for _ in range(1000): print('x' * 1000000)", Failure.output),
    "writes 1 GB to stderr": (
        "for _ in range(1000): os.write(2, b'x' * 1000000)",
        Failure.output,
    ),
    "closes every file and hangs": ("os.closerange(0, 100); time.sleep(1e6)", Failure.killed),
}

MODULE = """
import ctypes, itertools, os, re, time

class Unprintable(Exception):
    def __str__(self):
        raise RuntimeError

class Liar:
    def __len__(self):
        return 2
    def __iter__(self):
        raise KeyError("nothing here")

def f(group):
    if group[0].prompt.index == 1:
        {body}
    return [float(len(c.text)) for c in group]

def ok(group):
    return [0.5] * len(group)
"""


def batch(first_index: int = 0) -> list[list[Completion]]:
    groups = []
    for index in range(first_index, first_index + 3):
        prompt = Prompt(index=index, ids=(1,), text="q")
        groups.append(
            [
                Completion(prompt=prompt, text=t, ids=(1, 2), finish_reason=FinishReason.stop)
                for t in ("a", "bb")
            ]
        )
    return groups
