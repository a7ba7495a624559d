"""This is one process of a run on several devices, from its birth to its exit code.

torchrun's agent starts it for `rlkit gpus=2 ...`; with `torchrun --nnodes` the command line itself
is such a process.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from rlkit.launch.birth import die_with
from rlkit.launch.job import exit_code_of
from rlkit.launch.packed import unpack
from rlkit.launch.rank_place import END, leave


def main(file: str, parent: str) -> None:
    """Run the job of the packed configuration in `file`; rank 0 leaves its end beside it."""
    die_with(int(parent))
    packed = json.loads(Path(file).read_text())
    sys.argv = packed["argv"]
    config = unpack(packed["config"])
    rank = os.environ["RANK"]
    code = exit_code_of(config, run_dir=Path(config.run_dir))
    if rank == "0":
        end = {"code": code, "pid": os.getpid()}
        Path(file).with_name(END).write_text(json.dumps(end))
    leave(code)
