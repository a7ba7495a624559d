"""All workloads in one run: a step of rlkit beside TRL and Unsloth, and the limit of the card.

    python -m benchmarks.speed [--rows W1,W2,W3,W4,Q1,Q2] [--sides rlkit,trl] [--out FILE]

Each row of `benchmarks.workloads` is measured by `benchmarks.step`, in processes of its own. Q1 and
Q2 have a base in 4 bits on all sides. R1 has real lengths: a trained model (`--model FILE.gguf`)
answers questions (`--data FILE.jsonl`), so that completions end by themselves. The file is written
after each row, so what has been measured stays when the time is up. `--of FILES` measures nothing,
and prints the table of files that were written before.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.ending import exit_on_sigterm
from benchmarks.side import Result, write_report
from benchmarks.step_sides import medians
from benchmarks.workloads import WORKLOADS, Workload

_MODULE = "benchmarks.speed"


def main() -> int:
    """Measure the rows, print the table, and write the file."""
    options = _arguments()
    if options.of:
        print(table(rows_of(options.of)))
        return 0
    rows: dict[str, Result] = {}
    for name in options.rows.split(","):
        rows[name] = _measured(WORKLOADS[name], options)
        if options.out:
            works = {row: WORKLOADS[row]._asdict() for row in rows}
            write_report(options.out, _MODULE, works, rows)
        print(table(rows), flush=True)
    return 1 if any("error" in side for row in rows.values() for side in row.values()) else 0


def _measured(work: Workload, options: argparse.Namespace) -> Result:
    sides = options.sides.split(",")
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "row.json"
        command = [
            *(sys.executable, "-m", "benchmarks.step", "--out", str(out)),
            *(f"--shape={work.shape}", f"--sides={','.join(sides)}"),
            *(f"--prompts={work.prompts}", f"--samples={work.samples}"),
            *(f"--new-tokens={work.new_tokens}", f"--timeout-s={options.timeout_s}"),
            *(f"--warmup={options.warmup}", f"--steps={options.steps}"),
            *(["--four-bit"] if work.four_bit else []),
            *(_real(options) if work.ends_itself else []),
        ]
        subprocess.run(command, check=False)
        if not out.exists():
            return {side: {"error": "benchmarks.step wrote no result"} for side in sides}
        found: Result = json.loads(out.read_text())["results"]
        return found


def _real(options: argparse.Namespace) -> list[str]:
    if options.model is None or options.data is None:
        raise SystemExit("--model and --data must be given for rows of real lengths")
    return [f"--model={options.model}", f"--data={options.data}"]


def rows_of(files: Sequence[Path]) -> dict[str, Result]:
    """Return the rows of several files of this program, in the order of `WORKLOADS`.

    A later file adds its sides to a row that an earlier one has.
    """
    found: dict[str, Result] = {}
    for file in files:
        for name, sides in json.loads(file.read_text())["results"].items():
            found[name] = found.get(name, {}) | sides
    return {name: found[name] for name in WORKLOADS if name in found}


def table(rows: Mapping[str, Result]) -> str:
    """Return a line a row: the limit, rlkit's phases, and steps and peak memory of the others.

    Args:
        rows: For each row of `WORKLOADS` its sides' results, as `benchmarks.step` writes them.

    Returns:
        A table in Markdown; seconds, and how many times rlkit's step another's takes.
    """
    others = list(dict.fromkeys(side for row in rows.values() for side in row if side != "rlkit"))
    heads = ["row", "limit", "generate / score / update", "rlkit's step", "GB", *others]
    lines = ["| " + " | ".join(heads) + " |", "| " + " | ".join("---" for _ in heads) + " |"]
    for name, sides in rows.items():
        limit = WORKLOADS[name].limit_s
        cells = [name, "" if limit is None else f"{limit:g}"]
        ours = sides.get("rlkit", {"error": "not measured"})
        if "error" in ours:
            cells += ["", str(ours["error"])[:60], ""]
        else:
            m = medians(ours)
            cells.append(" / ".join(f"{m[phase]:.2f}" for phase in ("generate", "score", "update")))
            cells += [f"**{m['step']:.2f}**", f"{ours['device_peak_bytes'] / 1e9:.0f}"]
        for side in others:
            cells.append(_beside(ours, sides.get(side)))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _beside(ours: Result, theirs: Result | None) -> str:
    if theirs is None:
        return ""
    if "error" in theirs:
        return str(theirs["error"])[:60]
    step = medians(theirs)["step"]
    times = "" if "error" in ours else f"{step / medians(ours)['step']:.2f}x, "
    return f"{step:.2f} ({times}{theirs['device_peak_bytes'] / 1e9:.0f} GB)"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=f"python -m {_MODULE}")
    parser.add_argument("--rows", default="W1,W2,W3,W4,Q1,Q2")
    parser.add_argument("--sides", default="rlkit,trl")
    parser.add_argument("--warmup", type=int, default=1)
    parser.add_argument("--steps", type=int, default=3, help="measured, after the warm-up")
    parser.add_argument("--timeout-s", type=float, default=300.0, help="of each side")
    parser.add_argument("--model", type=Path, help="a trained model, for R1")
    parser.add_argument("--data", type=Path, help="lines with `question`, for R1")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--of", type=Path, nargs="+", help="files whose table is printed")
    return parser.parse_args()


if __name__ == "__main__":
    exit_on_sigterm()
    sys.exit(main())
