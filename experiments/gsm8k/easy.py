"""Keep the training questions of GSM8K whose solution has few calculations; the test stays whole.

    python experiments/gsm8k/easy.py DATA OUT [--most 3]

A small model calculates its way to a right answer in 3% of questions with two calculations, and in
under 1% of those with four. The marks <<48/2=24>> of the data count the calculations.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path


def kept(lines: list[str], most: int) -> list[str]:
    """Return the rows with at least one calculation and at most `most`."""
    return [line for line in lines if 1 <= json.loads(line)["answer"].count("<<") <= most]


def main(data: Path, out: Path, most: int) -> None:
    """Write the folder."""
    out.mkdir(parents=True, exist_ok=True)
    lines = (data / "train.jsonl").read_text().splitlines()
    chosen = kept(lines, most)
    (out / "train.jsonl").write_text("\n".join(chosen) + "\n")
    shutil.copy(data / "test.jsonl", out / "test.jsonl")
    print(f"{len(chosen)} of {len(lines)} training questions have 1 to {most} calculations")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--most", type=int, default=3)
    options = parser.parse_args()
    main(options.data, options.out, options.most)
