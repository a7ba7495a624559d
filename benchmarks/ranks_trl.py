"""TRL's step on several cards; `accelerate launch` starts it once a card."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from benchmarks.step_sides import Work
from benchmarks.step_trl import trl_side


def main() -> int:
    """Train with TRL; the first process writes the seconds."""
    parser = argparse.ArgumentParser(prog="accelerate launch -m benchmarks.ranks_trl")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--work", required=True, help="a Work, as JSON")
    options = parser.parse_args()
    fields = json.loads(options.work)
    found = trl_side(Work(folder=Path(fields.pop("folder")), **fields))
    if os.environ.get("RANK", "0") == "0":
        options.out.write_text(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
