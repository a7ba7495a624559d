"""Leases of GPUs: never more than a whole card, never lost, whoever dies."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from rlkit.launch.devices import GPU, visible_among
from rlkit.launch.leases import WHOLE, take, take_cards, used

CARDS = [GPU("GPU-aaaa", "0", 80 << 30), GPU("GPU-bbbb", "1", 80 << 30)]

# Takes and gives back leases and writes down when: several of these at once are the test.
WORKER = """
import json, random, sys, time
from pathlib import Path
from rlkit.launch.devices import GPU
from rlkit.launch.leases import take
folder, seed, jobs_per_gpu, rounds = Path(sys.argv[1]), *map(int, sys.argv[2:])
rng, spans = random.Random(seed), []
cards = [GPU("GPU-aaaa", "0", 0), GPU("GPU-bbbb", "1", 0)]
while len(spans) < rounds:
    lease = take(cards, jobs_per_gpu=jobs_per_gpu, folder=folder)
    if lease is None:
        time.sleep(0.001)
        continue
    begin = time.monotonic()
    time.sleep(rng.uniform(0, 0.004))
    spans.append((lease.gpu.name, begin, time.monotonic(), 1 / jobs_per_gpu))
    lease.close()
print(json.dumps(spans))
"""


def test_shares_add_up_to_a_card_and_the_least_used_comes_first(tmp_path: Path) -> None:
    leases = [take(CARDS, jobs_per_gpu=2, folder=tmp_path) for _ in range(4)]
    assert [lease.gpu.label for lease in leases if lease] == ["0", "1", "0", "1"]
    assert take(CARDS, jobs_per_gpu=2, folder=tmp_path) is None
    assert leases[2] is not None
    leases[2].close()
    leases[2].close()
    assert take(CARDS, jobs_per_gpu=1, folder=tmp_path) is None  # half a card is not a whole one
    third = take(CARDS, jobs_per_gpu=3, folder=tmp_path)
    assert third is not None and third.gpu.label == "0"
    assert used(tmp_path / "GPU-aaaa") == WHOLE // 2 + WHOLE // 3


def test_a_job_of_two_cards_holds_both_or_none(tmp_path: Path) -> None:
    cards = [*CARDS, GPU("GPU-cccc", "2", 80 << 30)]
    one = take(cards, jobs_per_gpu=1, folder=tmp_path)
    assert one is not None and one.gpu.label == "0"
    both = take_cards(cards, count=2, jobs_per_gpu=1, folder=tmp_path)
    assert both is not None and [lease.gpu.label for lease in both] == ["1", "2"]
    both[1].close()
    assert take_cards(cards, count=2, jobs_per_gpu=1, folder=tmp_path) is None
    # The free card was not kept by the attempt.
    assert used(tmp_path / "GPU-cccc") == 0
    one.close()
    again = take_cards(cards, count=2, jobs_per_gpu=1, folder=tmp_path)
    assert again is not None and [lease.gpu.label for lease in again] == ["0", "2"]
    assert take_cards(cards, count=4, jobs_per_gpu=1, folder=tmp_path) is None


def test_thirds_fill_a_card(tmp_path: Path) -> None:
    assert all(take(CARDS[:1], jobs_per_gpu=3, folder=tmp_path) for _ in range(3))
    assert take(CARDS[:1], jobs_per_gpu=3, folder=tmp_path) is None


def test_sweeps_at_once_never_hold_more_than_there_is(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WORKER, str(tmp_path)]
    workers = [
        subprocess.Popen([*command, str(i), str(share), "40"], stdout=subprocess.PIPE)
        for i, share in enumerate([1, 2, 3, 2])
    ]
    spans = [s for w in workers for s in json.loads(w.communicate(timeout=120)[0])]
    assert len(spans) == 160
    for card in ("GPU-aaaa", "GPU-bbbb"):
        taken = [s for s in spans if s[0] == card]
        for _, begin, _, _ in taken:
            held = sum(share for _, b, e, share in taken if b <= begin < e)
            assert held <= 1 + 1e-6
    assert not list(tmp_path.glob("*/*.lease"))


def test_a_lease_lives_as_long_as_any_process_that_holds_it(tmp_path: Path) -> None:
    code = (
        "import subprocess, sys; from pathlib import Path; "
        "from rlkit.launch.devices import GPU; from rlkit.launch.leases import take; "
        "lease = take([GPU('GPU-aaaa', '0', 0)], jobs_per_gpu=1, folder=Path(sys.argv[1])); "
        "job = subprocess.Popen(['sleep', '60'], pass_fds=[lease.descriptor]); "
        "print(job.pid, flush=True); sys.stdin.read()"
    )
    launcher = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert launcher.stdout is not None
    job = int(launcher.stdout.readline())
    launcher.send_signal(signal.SIGKILL)
    launcher.wait()
    assert take(CARDS[:1], jobs_per_gpu=1, folder=tmp_path) is None
    os.kill(job, signal.SIGKILL)
    for _ in range(1000):
        if lease := take(CARDS[:1], jobs_per_gpu=1, folder=tmp_path):
            break
    assert lease is not None
    assert len(list(tmp_path.glob("GPU-aaaa/*.lease"))) == 1  # the stale one is gone


def test_what_cuda_visible_devices_allows() -> None:
    cards = [GPU("GPU-aaaa", "0", 81559 << 20), GPU("GPU-abcd", "1", 0)]
    assert visible_among(cards, "1,0") == [cards[1], cards[0]]
    assert visible_among(cards, "GPU-abcd") == [cards[1]]
    assert visible_among(cards, "0,7,1") == [cards[0]]  # CUDA stops at the first bad entry
    assert visible_among(cards, "") == []
    assert visible_among(cards, "MIG-1234") == [GPU("MIG-1234", "MIG-1234", 0)]
