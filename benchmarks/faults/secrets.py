"""F16: secret canaries in a run, its resume, a failing run, a sweep, a report and refusals."""

from __future__ import annotations

from pathlib import Path

from byte_model import write_byte_model
from secret_canaries import CANARIES, REWARD, env, leaks, overrides

from benchmarks.faults.row import Row
from benchmarks.faults.runs import forks


def run(count: int, folder: Path) -> Row:
    """Do `count` of the commands in turn, and look for each canary in all they print and write.

    Survived is a canary that a command lets out nowhere, neither whole nor by its first half.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_byte_model(folder / "model")
    (folder / "reward.py").write_text(REWARD)
    words = overrides(folder / "model")
    more = [word.replace("steps=2", "steps=3") for word in words]
    alone = [word for word in words if "functions.g" not in word]
    commands: dict[str, tuple[list[str], int]] = {
        "run": ([*words, "run_dir=out/run"], 0),
        "resume": ([*more, "run_dir=out/run", "resume=must"], 0),
        "failing run": ([*alone, "stop.no_reward_steps=1", "run_dir=out/failing"], 1),
        "sweep": (["-m", *words, "steps=1", "seed=0,1", "hydra.sweep.dir=out/sweep"], 0),
        "report": (["report", "out/sweep"], 0),
        "refused address": (
            ["run_dir=out/no", f"model.source=https://a:{CANARIES['userinfo']}@h/x"],
            2,
        ),
        "refused value": (["run_dir=out/no", f"steps={CANARIES['HF_TOKEN']}"], 2),
        "refused option": (["run_dir=out/no", f"+api_key={CANARIES['option']}"], 2),
    }
    tried, lost, notes = 0, 0, list[str]()
    for name, (command, code) in list(commands.items())[:count]:
        done = forks().start(*command, cwd=folder, env=env()).finish(300.0)
        found = set(leaks(done.stdout, done.stderr, folder=folder / "out"))
        tried += len(CANARIES)
        leaked = {leak.split(" in ")[0] for leak in found}
        lost += len(leaked)
        notes += [f"{name}: {', '.join(sorted(found))}"] if found else []
        if done.returncode != code:
            notes.append(f"{name} ended with {done.returncode}: {done.stderr[-200:]}")
            lost += 1
    said = "; ".join(notes[:3]) or "none printed or written, whole or by half"
    note = f"{len(CANARIES)} canaries x {min(count, len(commands))} commands; {said}"
    return Row("F16 secret canaries", tried, tried - lost, lost, note)
