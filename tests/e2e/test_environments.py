"""Runs with an environment of the user's own: whole, killed and resumed, replayed, reported."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli_process import RunCLI
from digits_environment import MODULE

from rlkit import cli
from rlkit.tracking import read_metrics
from rlkit.tracking.base import VOLATILE

STOPS = "[a,b,c,d,e,f,g,h,i,j,k,l,m,n,o,p,q,r,s,t,u,v,w,x,y,z,A,B,C,D,E,F,G,H,I,J,K,L,M,N,O,P]"


@pytest.fixture
def options(small: list[str], tmp_path: Path) -> list[str]:
    (tmp_path / "digits.py").write_text(MODULE)
    kept = [o for o in small if not o.startswith(("+reward", "task="))]
    return [
        *kept,
        "task=echo",
        "task.max_prompt_length=300",
        "task.max_completion_length=120",
        f"environment.fn={tmp_path / 'digits.py'}:Digits",
        "environment.max_turn_tokens=12",
        "environment.workers=1",
        f"generator.sampling.stop={STOPS}",
        "optim.learning_rate=0.01",
    ]


def numbers(run: Path) -> list[dict[str, float]]:
    return [
        {k: v for k, v in row.items() if not str(k).startswith(VOLATILE)}
        for row in read_metrics(run)
    ]


@pytest.mark.parametrize("turns", ["trajectory", "to_go"])
def test_a_resumed_run_is_the_whole_run_bit_for_bit(
    rlkit: RunCLI, options: list[str], tmp_path: Path, turns: str
) -> None:
    if turns == "to_go":
        options = [*options, "algorithm=rloo_token", "algorithm.advantage.turns=to_go"]
    whole = rlkit("run_dir=whole", *options)
    assert whole.returncode == 0, whole.stderr
    assert rlkit("run_dir=parts", *options, "steps=2").returncode == 0
    again = rlkit("run_dir=parts", *options, "resume=must")
    assert again.returncode == 0, again.stderr
    assert numbers(tmp_path / "whole") == numbers(tmp_path / "parts")
    weights = "adapter/adapter_model.safetensors"
    assert (tmp_path / "whole" / weights).read_bytes() == (
        tmp_path / "parts" / weights
    ).read_bytes()
    last = read_metrics(tmp_path / "whole")[-1]
    assert last["episodes/turns"] > 1.5
    assert last["episodes/spliced_tokens"] > 10
    assert last["environment/calls"] > 0.5
    assert last["rewards/environment/mean"] == pytest.approx(last["reward"])
    ends = sum(value for key, value in last.items() if key.startswith("episodes/end/"))
    assert ends == pytest.approx(1.0)


def test_replay_has_the_gradient_of_training(
    rlkit: RunCLI, options: list[str], tmp_path: Path
) -> None:
    assert rlkit("run_dir=run", *options).returncode == 0
    run = tmp_path / "run"
    assert cli.run(["replay", f"run_dir={run}", "algorithms=[grpo,rloo_token,ppo,online_dpo]"]) == 0
    found = json.loads((run / "replay-step-000003.json").read_text())
    trained = read_metrics(run)[3]
    assert trained["grad_norm"] > 0.0
    grpo = found["algorithms"]["grpo"]
    assert grpo["grad_norm"] == pytest.approx(trained["grad_norm"], rel=1e-6)
    assert found["reward"] == pytest.approx(trained["reward"], rel=1e-6)


def test_failures_of_an_environment_are_counted_and_not_learnt_from(
    rlkit: RunCLI, options: list[str], tmp_path: Path
) -> None:
    broken = MODULE.replace(
        "        earned =", "        raise RuntimeError('out of order')\n        earned ="
    )
    (tmp_path / "digits.py").write_text(broken)
    result = rlkit("run_dir=run", *options, "steps=1")
    assert (
        "out of order" in result.stdout + result.stderr + (tmp_path / "run" / "log.txt").read_text()
    )
    row = read_metrics(tmp_path / "run")[0]
    # A turn that was cut short never came to the environment, and has earned 0.
    assert row["rewards/failures/environment/raised"] == row["rollouts/without_reward"] > 0
    assert row["reward"] == 0.0


def test_options_without_an_environment_and_plain_text_are_refused(
    rlkit: RunCLI, small: list[str], options: list[str]
) -> None:
    lonely = rlkit("run_dir=run", *small, "environment.max_turns=3")
    assert lonely.returncode != 0
    assert "environment.max_turns must be left alone" in lonely.stderr + lonely.stdout
    raw = rlkit("run_dir=run", *[o for o in options if not o.startswith("task")], "task=max_of_n")
    assert raw.returncode != 0
    assert "environment.fn must be empty with a task of plain text" in raw.stderr + raw.stdout


PROGRAM = '''
import json, urllib.request
from rlkit.environments.agent import AgentEnvironment

class Talks(AgentEnvironment):
    """A program that says the seed back to what it heard, and pays for digits and vowels."""
    def play(self, columns, seed, endpoint):
        messages = [{"role": "user", "content": f"number {columns['number']}"}]
        paid = 0.0
        for turn in range(3):
            body = json.dumps({"model": endpoint.model, "messages": messages}).encode()
            head = {"Content-Type": "application/json"}
            request = urllib.request.Request(endpoint.base_url + "/chat/completions", body, head)
            with urllib.request.urlopen(request) as reply:
                message = json.load(reply)["choices"][0]["message"]
            paid += sum(c in "aeiou0123456789" for c in message["content"]) / 4
            messages += [message, {"role": "user", "content": f"{turn} of {seed % 97}"}]
        return paid
'''


def test_a_program_that_talks_over_http_is_trained_and_resumed_bit_for_bit(
    rlkit: RunCLI, options: list[str], tmp_path: Path
) -> None:
    (tmp_path / "talks.py").write_text(PROGRAM)
    rows = [
        {"prompt": [{"role": "user", "content": f"number {n}"}], "number": n} for n in range(12)
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    kept = [o for o in options if not o.startswith(("task=", "environment.fn="))]
    options = [
        *kept,
        "task=dataset",
        f"task.path={tmp_path / 'rows.jsonl'}",
        "+task.columns.prompt=prompt",
        "+task.columns.number=number",
        "task.eval_fraction=0.5",
        f"environment.fn={tmp_path / 'talks.py'}:Talks",
        "environment.cut_turns=answer",
        "steps=3",
    ]
    whole = rlkit("run_dir=whole", *options)
    assert whole.returncode == 0, whole.stderr
    assert rlkit("run_dir=parts", *options, "steps=2").returncode == 0
    assert rlkit("run_dir=parts", *options, "resume=must").returncode == 0
    assert numbers(tmp_path / "whole") == numbers(tmp_path / "parts")
    rows_of = read_metrics(tmp_path / "whole")
    assert all(row["episodes/turns"] == 3.0 and row["episodes/end/done"] == 1.0 for row in rows_of)
    assert all(row["grad_norm"] > 0.0 for row in rows_of)
    assert rows_of[0]["episodes/spliced_tokens"] > 10
