"""This is the process of one job, from its birth to `run_job` and its exit code.

Light to import: nothing else of rlkit may come before `die_with`.
"""

from __future__ import annotations

import os
import sys
import traceback
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from rlkit.launch.birth import INTERRUPTED, set_up_job_process


def run(packed: str, folder: Path) -> int:
    """Train the packed configuration in `folder`, from its newest checkpoint if it has one."""
    sys.argv = ["rlkit"]
    gpu = os.environ.get("CUDA_VISIBLE_DEVICES", "all")
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    print(f"process {os.getpid()} from {now}, CUDA_VISIBLE_DEVICES={gpu}", flush=True)
    try:
        from rlkit.config import Resume
        from rlkit.launch.job import run_job
        from rlkit.launch.packed import unpack

        config = replace(unpack(packed), run_dir=str(folder), resume=Resume.auto)
        return run_job(config, run_dir=folder)
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception:
        from rlkit.runtime.redact import Redactor

        # To output.txt, whose last line becomes the reason.
        print(Redactor.of_process().text(traceback.format_exc()).rstrip(), file=sys.stderr)
        return 1


def main(folder: str, parent: str = "") -> None:
    """Run the job in a fresh interpreter, with the configuration on standard input.

    `parent` is the process to die with, if a fork server has not seen to that.
    """
    packed = sys.stdin.read()
    if parent:
        set_up_job_process(Path(folder), parent=int(parent))
    sys.exit(run(packed, Path(folder)))
