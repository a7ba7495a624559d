"""F14: names that would lead out of the run's folder, or that are odd, wherever a name is given."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from benchmarks.faults.one_line import badly_ended
from benchmarks.faults.row import Row
from benchmarks.faults.runs import forks, prepare

_HOME = "${oc.env:HOME}"
_ABSOLUTE = "/an absolute path"
"""It stands for one below the folder that is watched: a name in the way is nobody's."""
NAMES = (
    *("../x", "../../../../x", _ABSOLUTE, "a/../../x", "..", "."),
    *("a\0b", "con", "nul.txt", "x" * 300, "漢字 ü 🙂", "-x", "--help"),
    *("~", "~/x", "$(touch pwned)", "`touch pwned`", "a;touch pwned", "a\nb"),
    *("x\x1b[2J", "%s%n", "\u202ex", "a b", "*", "a\\b", _HOME),
)
"""Names as a user, a data set or a colleague's command may have them."""
_PLACES: Mapping[str, str] = {
    "the task's name": "task.name",
    "a run's folder": "run_dir",
    "a sweep's folder": "hydra.sweep.dir",
    "a reward's name": "reward",
    "an evaluation's name": "evaluation",
}


def run(count: int, folder: Path) -> Row:
    """Give `count` pairs of a place and a name to the command line, in a folder in a folder.

    Survived is a command that worked or refused in one line, and that wrote below the folder that
    it may write to and nowhere else. `run_dir` and a sweep's folder are paths of the user's own.
    """
    base = prepare(folder)
    pairs = [(place, name) for name in NAMES for place in _PLACES][:count]
    survived, refused, notes = 0, 0, list[str]()
    for number, (place, name) in enumerate(pairs):
        wrong, worked = _try(folder / f"box_{number}", base, place, name, model=folder)
        survived, refused = survived + (not wrong), refused + (not worked)
        notes += [f"{place} {name[:20]!r}: {wrong}"] if wrong else []
    said = "; ".join(notes[:4]) or "0 files outside"
    note = (
        f"{len(NAMES)} names in {len(_PLACES)} places; {len(pairs) - refused} ran, {refused} "
        f"refused in one line; {said}"
    )
    return Row("F14 hostile names", len(pairs), survived, len(pairs) - survived, note)


def _try(box: Path, base: list[str], place: str, name: str, *, model: Path) -> tuple[str, bool]:
    """Return what went wrong, and whether the command ran to its end."""
    cwd = box / "a/b/c"
    cwd.mkdir(parents=True)
    name = f"{box}/elsewhere/x" if name == _ABSOLUTE else name
    words, allowed = _command(base, place, name, cwd, model)
    before = _files(box) | _at_the_root()
    home = {"HOME": str(box / "home"), "RLKIT_BOX": str(box)}
    done = forks().start(*words, cwd=cwd, env={**os.environ, **home}).finish(120)
    new = (_files(box) | _at_the_root()) - before
    outside = [path for path in new if not path.is_relative_to(allowed)]
    if outside:
        return f"wrote {outside[0]}", done.returncode == 0
    return badly_ended(done), done.returncode == 0


def _folder(cwd: Path, name: str) -> Path:
    """Return the folder that a user means by this path."""
    if "\0" in name:
        return cwd
    return cwd.parents[2] / "home" if name == _HOME else Path(os.path.normpath(cwd / name))


def _command(
    base: list[str], place: str, name: str, cwd: Path, model: Path
) -> tuple[list[str], Path]:
    """Return the words of a command with `name` at `place`, and where it may write."""
    small = [o for o in base if not o.startswith(("steps", "evaluation.", "model.", "+reward"))]
    reward = f"{model / 'faults_reward.py'}:digits"
    common = [*small, "steps=1", "evaluation.num_prompts=0", f"model.source={model / 'model'}"]
    quoted = _quoted(name)
    if place == "a run's folder":
        words = [f"run_dir={quoted}", f"+reward.functions.f.fn={reward}", *common]
        return words, _folder(cwd, name)
    if place == "a sweep's folder":
        tables = ["-m", "model=tabular", "steps=1", f"hydra.sweep.dir={quoted}", "seed=0,1"]
        return tables, _folder(cwd, name)
    if place == "the task's name":
        rows = model / "names.jsonl"
        lines = [{"prompt": f"say {i}", "answer": str(i)} for i in range(8)]
        rows.write_text("".join(json.dumps(line) + "\n" for line in lines))
        data = ["task=dataset", f"task.path={rows}", "+task.columns.prompt=prompt"]
        own = [o for o in common if not o.startswith("task=")]
        words = [*data, *own, f"task.name={quoted}", f"+reward.functions.f.fn={reward}"]
        return [*words, "task.eval_fraction=0.2"], cwd / "runs"
    named = ["run_dir=runs/x"]
    if place == "a reward's name":
        table = f"+reward.functions={{{quoted}: {{fn: {_quoted(reward)}}}}}"
        return [*named, table, *common], cwd / "runs/x"
    sides = f"+evaluation.tasks={{{quoted}: {{name: max_of_n, num_prompts: 2}}}}"
    own = [o for o in common if "evaluation" not in o]
    more = ["evaluation.num_prompts=2", f"+reward.functions.f.fn={reward}"]
    return [*named, sides, *own, *more], cwd / "runs/x"


def _quoted(name: str) -> str:
    escaped = name.replace("'", "\\'")
    return f"'{escaped}'"


def _at_the_root() -> set[Path]:
    """Return what lies in the folders that names with many `..` lead to."""
    places = (Path(folder) / name for folder in ("/", "/etc", "/tmp") for name in ("x", "pwned"))
    return {path for path in places if os.path.lexists(path)}


def _files(box: Path) -> set[Path]:
    return {Path(root) / name for root, _, files in os.walk(box) for name in files}
