"""A Ray cluster of two nodes on this machine, to try sweeps on.

    pip install 'rlkit-lm[ray]'
    python tests/cluster/ray_here.py      # until Ctrl-C; prints the address

It needs root on Linux. Each node has a host name of its own, by `unshare`; the second one has a
process space of its own as well, so that it can die with all that runs on it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

NODES = ("node1", "node2")
_PORT = 6450
_WORKER_PORTS = 21000
_START_S = 120.0
_QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_DISABLE_IMPORT_WARNING": "1"}
# Seconds in place of minutes until a silent node is taken for dead.
_HASTY = {"RAY_health_check_period_ms": "1000", "RAY_health_check_failure_threshold": "3"}


def missing() -> list[str]:
    """Why there can be no cluster here; empty when there can."""
    lacking = [name for name in ("ray", "hydra_plugins.hydra_ray_launcher") if not _has(name)]
    return lacking if os.geteuid() == 0 and shutil.which("unshare") else ["root", *lacking]


def _has(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:
        return False


class Ray:
    """A running cluster with one core a node; node1 is its head, on which the driver runs."""

    address = f"127.0.0.1:{_PORT}"

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environ = {**_QUIET, "RAY_TMPDIR": str(folder)}
        self._nodes: dict[str, subprocess.Popen[bytes]] = {}

    def start_node(self, node: str) -> None:
        """Start a node, the head first."""
        head = node == NODES[0]
        options = [f"--node-ip-address=127.0.0.{1 + NODES.index(node)}", "--num-cpus=1", "--block"]
        options += ["--object-store-memory=80000000", "--disable-usage-stats"]
        first = _WORKER_PORTS + 500 * NODES.index(node)
        options += [f"--min-worker-port={first}", f"--max-worker-port={first + 400}"]
        options += [f"--dashboard-agent-listen-port={first + 401}"]
        if head:
            options += [
                "--head",
                f"--port={_PORT}",
                f"--ray-client-server-port={_PORT + 1}",
                "--include-dashboard=false",
            ]
            options += [f"--temp-dir={self.folder}"]
        else:
            options += [f"--address={self.address}"]
        ray = f"{sys.executable} -m ray.scripts.scripts start {' '.join(options)}"
        # The driver is a process of the head, which looks for it by its number.
        apart = [] if head else ["--pid", "--fork", "--kill-child", "--mount-proc"]
        last = "exec" if head else ""
        with (self.folder / f"{node}.out").open("ab") as log:
            self._nodes[node] = subprocess.Popen(
                ["unshare", "--uts", *apart, "sh", "-c", f"hostname {node}; {last} {ray}"],
                env={**os.environ, **self.environ, **_HASTY},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._until_it_is_up(1 if head else len(NODES))

    def kill_node(self, node: str) -> None:
        """Let a node lose power: every process on it is gone at once."""
        process = self._nodes.pop(node)
        process.kill()
        process.wait()

    def mend(self) -> None:
        """Bring back every node that is not there."""
        for node in NODES:
            if node not in self._nodes:
                self.start_node(node)

    def stop(self) -> None:
        """End both nodes; the head ends its processes itself."""
        for node in reversed(list(self._nodes)):
            process = self._nodes.pop(node)
            process.send_signal(signal.SIGTERM if node == NODES[0] else signal.SIGKILL)
            process.wait(timeout=30)

    def _until_it_is_up(self, nodes: int) -> None:
        script = (
            f"import ray; ray.init('{self.address}', logging_level='ERROR', log_to_driver=False); "
            "print(sum(node['Alive'] for node in ray.nodes()))"
        )
        give_up = time.monotonic() + _START_S
        while time.monotonic() < give_up:
            done = subprocess.run(
                [sys.executable, "-c", script],
                env={**os.environ, **self.environ},
                capture_output=True,
                text=True,
                check=False,
            )
            if done.stdout.split()[-1:] == [str(nodes)]:
                return
            time.sleep(1.0)
        raise TimeoutError(f"Ray did not start within {_START_S:g} s: {done.stderr[-500:]}")


@contextmanager
def cluster() -> Iterator[Ray]:
    """A cluster until the block is left."""
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # the names of sockets are short
    ray = Ray(folder)
    try:
        for node in NODES:
            ray.start_node(node)
        yield ray
    finally:
        ray.stop()
        shutil.rmtree(folder, ignore_errors=True)


def main() -> None:
    """Run a cluster until Ctrl-C."""
    if lacking := missing():
        sys.exit(f"a Ray cluster needs {', '.join(lacking)}: see the first lines of {__file__}")
    for number in (signal.SIGINT, signal.SIGTERM):  # a shell lets its background ignore Ctrl-C
        signal.signal(number, signal.default_int_handler)
    with contextlib.suppress(KeyboardInterrupt), cluster() as ray:
        print(f"hydra.launcher.ray.init.address={ray.address}\nCtrl-C ends it", flush=True)
        signal.pause()


if __name__ == "__main__":
    main()
