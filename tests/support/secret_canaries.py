"""Canaries in environment, arguments, options and addresses, and the search for them in files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from cli_process import environment

REWARD = '''
import os

def f(group, *, api_key, nested, password, url):
    """Fail with every secret that it knows, in ways that cut and quote them."""
    known = [api_key, nested["token"], password, url, os.environ["HF_TOKEN"]]
    print("connecting with", *known)
    if len(group) == 3:  # as in training, not in the check before it
        raise RuntimeError("x" * 280 + password + repr(known))
    assert password == os.environ["JUDGE_PASSWORD"]
    return [float(len(c.text)) for c in group]

def g(group):
    return [float(len(c.text)) for c in group]
'''
CANARIES = {
    "HF_TOKEN": "hfcanary-111111-aaaaaa",
    "API_KEY_OF_MINE": "envcanary-222222-bbbbbb",
    "JUDGE_PASSWORD": 'pw"canary-333333-cccccc',
    "option": "optcanary-444444-dddddd",
    "nested": "nestcanary-555555-eeeeee",
    "userinfo": "usercanary-666666-ffffff",
    "query": "querycanary-777777-gggggg",
}
"""The values; each is also looked for by its first half, which a cut may leave."""
VARIABLES = ("HF_TOKEN", "API_KEY_OF_MINE", "JUDGE_PASSWORD")


def env() -> dict[str, str]:
    return {**environment(), **{name: CANARIES[name] for name in VARIABLES}}


def overrides(model: Path) -> list[str]:
    address = f"https://me:{CANARIES['userinfo']}@host/p?api_key={CANARIES['query']}"
    options = (
        f"{{api_key: '{CANARIES['option']}', nested: {{token: '{CANARIES['nested']}'}}, "
        f"password: 'env:JUDGE_PASSWORD', url: '{address}'}}"
    )
    return [
        f"model.source={model}",
        "task=max_of_n",
        "task.max_completion_length=4",
        "steps=2",
        "prompts_per_step=2",
        "algorithm.group_size=3",
        "evaluation.num_prompts=1",
        "evaluation.samples_per_prompt=1",
        "memory.torch_threads=1",
        "reward.workers=1",
        "tracker.plot=false",
        "reward.on_failure=ignore",
        "+reward.functions.g.fn=reward.py:g",
        "stop.no_reward_steps=100",
        f"+reward.functions.f={{fn: reward.py:f, options: {options}}}",
    ]


def leaks(*texts: str, folder: Path) -> Iterator[str]:
    """Yield a line for each place where a part of a canary is found."""
    places = {f"text {i}": text.encode() for i, text in enumerate(texts)}
    places |= {str(p): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    for name, value in CANARIES.items():
        for needle in (value, value[: len(value) // 2 + 2]):
            yield from (
                f"{name} in {place}" for place, data in places.items() if needle.encode() in data
            )
