"""F16: canaries in environment, arguments, options and addresses reach no file and no screen."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_process import environment
from warm_cli import Forks

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
    """What of which canary is found where."""
    places = {f"text {i}": text.encode() for i, text in enumerate(texts)}
    places |= {str(p): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    for name, value in CANARIES.items():
        for needle in (value, value[: len(value) // 2 + 2]):
            yield from (
                f"{name} in {place}" for place, data in places.items() if needle.encode() in data
            )


def run(
    forks: Forks, folder: Path, *words: str, env: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    return forks.start(*words, cwd=folder, env=env).finish(120.0)


def test_no_canary_leaks_and_the_run_resumes(
    forks: Forks, model_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "reward.py").write_text(REWARD)
    words = overrides(model_folder)
    done = run(forks, tmp_path, *words, "run_dir=runs/a", env=env())
    assert done.returncode == 0, done.stderr
    assert list(leaks(done.stdout, done.stderr, folder=tmp_path / "runs")) == []
    config = (tmp_path / "runs/a/config.yaml").read_text()
    assert "password: env:JUDGE_PASSWORD" in config
    assert "api_key: '***'" in config and "token: '***'" in config
    log = (tmp_path / "runs/a/log.txt").read_text()
    assert "RuntimeError: xxx" in log and "connecting with ***" in log

    more = [word.replace("steps=2", "steps=3") for word in words]
    done = run(forks, tmp_path, *more, "run_dir=runs/a", "resume=must", env=env())
    assert done.returncode == 0, done.stderr
    assert list(leaks(done.stdout, done.stderr, folder=tmp_path / "runs")) == []
    metrics = (tmp_path / "runs/a/metrics.jsonl").read_text().splitlines()
    assert len(metrics) == 3

    without = {name: value for name, value in env().items() if name != "JUDGE_PASSWORD"}
    done = run(forks, tmp_path, *more, "run_dir=runs/a", "resume=must", env=without)
    assert done.returncode == 2
    assert done.stderr == (
        "rlkit: reward.functions.f.options.password must name a variable that is set, got "
        "env:JUDGE_PASSWORD\n"
    )


def test_a_run_that_fails_says_no_secret(forks: Forks, model_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "reward.py").write_text(REWARD)
    words = [word for word in overrides(model_folder) if "functions.g" not in word]
    words += ["stop.no_reward_steps=1", "run_dir=runs/a"]
    done = run(forks, tmp_path, *words, env=env())
    assert done.returncode == 1
    assert "no sample had a reward" in (tmp_path / "runs/a/status.json").read_text()
    assert list(leaks(done.stdout, done.stderr, folder=tmp_path / "runs")) == []


def test_no_canary_leaks_from_a_sweep(forks: Forks, model_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "reward.py").write_text(REWARD)
    words = ["-m", *overrides(model_folder), "steps=1", "seed=0,1", "hydra.sweep.dir=sweep"]
    done = run(forks, tmp_path, *words, env=env())
    assert done.returncode == 0, done.stderr + done.stdout
    shown = run(forks, tmp_path, "report", "sweep", env=env())
    assert shown.returncode == 0
    texts = (done.stdout, done.stderr, shown.stdout, shown.stderr)
    assert list(leaks(*texts, folder=tmp_path / "sweep")) == []


@pytest.mark.parametrize(
    "word",
    [
        f"model.source=https://me:{CANARIES['userinfo']}@host/x?token={CANARIES['query']}",
        f"task.path=https://me:{CANARIES['userinfo']}@host/x",
        f"steps={CANARIES['HF_TOKEN']}",
        f"+reward.functions.x={{fn: a, options: {{api_key: '{CANARIES['option']}'}}}}",
        f"+api_key={CANARIES['option']}",
        f"generator.url={CANARIES['API_KEY_OF_MINE']}",
    ],
)
def test_refusals_hide_secrets(word: str, forks: Forks, tmp_path: Path) -> None:
    group = "generator=vllm_server" if word.startswith("generator") else "task=dataset"
    done = run(forks, tmp_path, "run_dir=a", group, word, env=env())
    assert done.returncode == 2
    assert done.stderr.startswith("rlkit: ") and done.stderr.count("\n") == 1
    assert list(leaks(done.stdout, done.stderr, folder=tmp_path)) == []
