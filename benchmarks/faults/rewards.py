"""F7: reward functions that raise, hang, crash, lie, print a gigabyte or kill their process."""

from __future__ import annotations

import math
import time
from pathlib import Path

from reward_faults import FAULTS, MODULE, batch

from benchmarks.faults.row import Row
from rlkit.rewards import Failure, RewardConfig, RewardSpec
from rlkit.rewards.pool import RewardPool

_DEADLINE_S = 1.0


def run(count: int, folder: Path) -> Row:
    """Hit one of three groups with `count` faults in turn.

    Survived is a batch whose other groups keep their rewards, in which the fault is counted under
    its kind within the deadline and a second, and after which the next batch is scored as ever.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names = [list(FAULTS)[i % len(FAULTS)] for i in range(count)]
    survived, slowest, notes = 0, 0.0, list[str]()
    for number, name in enumerate(names):
        body, kind = FAULTS[name]
        file = folder / f"fault_{number}.py"
        file.write_text(MODULE.format(body=body))
        seconds, wrong = _score(file, kind)
        slowest = max(slowest, seconds)
        survived += not wrong
        notes += [f"{name}: {wrong}"] if wrong else []
    said = "; ".join(notes[:3]) or "other groups keep their rewards, each is counted by its kind"
    note = f"{len(set(names))} kinds, slowest batch {slowest:.1f} s with a deadline of 1 s; {said}"
    return Row("F7 reward functions that misbehave", count, survived, count - survived, note)


def _score(file: Path, kind: Failure) -> tuple[float, str]:
    specs = [RewardSpec("f", f"{file}:f"), RewardSpec("ok", f"{file}:ok")]
    with RewardPool(specs, RewardConfig(workers=1, timeout_s=_DEADLINE_S)) as pool:
        pool.start()
        begun = time.monotonic()
        scores = pool.score(batch())
        seconds = time.monotonic() - begun
        again = pool.score(batch(first_index=10))
    if scores.report.failures != {("f", kind): 2}:
        return seconds, f"counted as {dict(scores.report.failures)}"
    others = [scores.rewards[0], scores.rewards[2]] == [[1.5, 2.5], [1.5, 2.5]]
    hit = all(math.isnan(reward) for reward in scores.rewards[1])
    after = again.rewards == [[1.5, 2.5]] * 3 and not again.failures
    limit = _DEADLINE_S + 1.0 + (kind is Failure.output)
    if seconds > limit:
        return seconds, f"took {seconds:.1f} s"
    return seconds, "" if others and hit and after else "other groups or batches were hit"
