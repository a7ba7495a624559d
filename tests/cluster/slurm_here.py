"""A Slurm cluster of two nodes on this machine, to try sweeps on: root and Debian's packages.

    apt-get install slurm-wlm slurmdbd munge mariadb-server-core mariadb-client-core
    python tests/cluster/slurm_here.py /tmp/slurm      # until Ctrl-C; prints what to export

Each node has a host name and a process space of its own, by `unshare`. So the numbers of processes
on two nodes may agree, as on real ones, and a node can die with all that runs on it.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from string import Template

HERE = Path(__file__).parent
COMMANDS = (
    *("slurmctld", "slurmd", "slurmdbd", "sbatch", "munged", "mariadbd", "mariadb-install-db"),
    "unshare",
)
NODES = ("node1", "node2")
_PORT = 17400
_START_S = 30.0


def missing() -> list[str]:
    """Why there can be no cluster here; empty when there can."""
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    lacking = [command for command in COMMANDS if shutil.which(command, path=path) is None]
    return lacking if os.geteuid() == 0 else ["root", *lacking]


class Slurm:
    """A running cluster; all it writes is below `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environ = {"SLURM_CONF": str(folder / "slurm.conf")}
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}
        for name in ("munge", "state", "spool", "log"):
            (folder / name).mkdir(parents=True)
        values = {"FOLDER": str(folder), "HOST": platform.node(), "USER": getpass.getuser()}
        names = ("PORT", "DBD_PORT", "NODE1_PORT", "NODE2_PORT")
        values |= {name: str(_PORT + offset) for offset, name in enumerate(names)}
        for name in ("slurm.conf", "slurmdbd.conf"):
            (folder / name).write_text(Template((HERE / name).read_text()).substitute(values))
            (folder / name).chmod(0o600)

    def start(self) -> None:
        """Start the daemons, each when what it needs answers."""
        munge, data = self.folder / "munge", self.folder / "db"
        (munge / "key").write_bytes(os.urandom(1024))
        (munge / "key").chmod(0o400)
        files = {"key-file": "key", "socket": "socket", "pid-file": "pid", "seed-file": "seed"}
        places = [f"--{option}={munge / name}" for option, name in files.items()]
        self._daemon("munged", "--foreground", "--force", *places, f"--log-file={munge / 'log'}")
        _until((munge / "socket").exists, "munged")
        owner, socket = f"--user={getpass.getuser()}", self.folder / "db.sock"
        _quietly("mariadb-install-db", "--no-defaults", f"--datadir={data}", owner)
        small = ("--innodb-buffer-pool-size=16M", "--skip-networking")
        place = (f"--datadir={data}", f"--socket={socket}", f"--pid-file={self.folder / 'db.pid'}")
        self._daemon("mariadbd", "--no-defaults", *place, owner, *small)
        _until(socket.exists, "mariadbd")
        self._daemon("slurmdbd", "-D", MYSQL_UNIX_PORT=str(socket))
        _until(lambda: self.ask("sacctmgr", "-i", "add", "cluster", "rlkit") != "", "slurmdbd")
        self._daemon("slurmctld", "-D")
        for node in NODES:
            self.start_node(node)
        _until(lambda: self.states() == dict.fromkeys(NODES, "idle"), "slurmctld and its nodes")

    def start_node(self, node: str) -> None:
        """Start a node, which has a host name and a process space of its own."""
        apart = ("--uts", "--pid", "--fork", "--kill-child", "--mount-proc")
        # The shell is the first process there: with it all others end. So it outlives slurmd.
        script = f"hostname {node}; slurmd -D -N {node}; sleep infinity"
        self._daemon("unshare", *apart, "sh", "-c", script, name=node)

    def kill_node(self, node: str) -> None:
        """Let a node lose power: every process on it is gone at once."""
        process = self._daemons.pop(node)
        process.kill()
        process.wait()

    def cut_off(self, node: str) -> None:
        """Kill the daemon of a node; its jobs live on, unseen, as when a network is cut."""
        (pid,) = _pids(f"slurmd -D -N {node}")
        os.kill(pid, signal.SIGKILL)
        self._daemons.pop(node)

    def mend(self) -> None:
        """Bring back every node that is not there, and wait until all have nothing to do."""
        for node in NODES:
            if node not in self._daemons:
                _end_all(f"unshare .* slurmd -D -N {node};")
                self.start_node(node)
        self.ask("scancel", "--me")
        _until(lambda: self.states() == dict.fromkeys(NODES, "idle"), "the nodes")

    @contextmanager
    def without_accounts(self) -> Iterator[None]:
        """Let the cluster have no accounts for a while: its database is stopped."""
        process = self._daemons["slurmdbd"]
        process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            process.send_signal(signal.SIGCONT)

    def states(self) -> dict[str, str]:
        """The state of each node, as `sinfo` says it."""
        lines = self.ask("sinfo", "--noheader", "--Node", "--partition=main", "--format=%N %t")
        return dict(line.split() for line in lines.splitlines())

    def ask(self, *command: str) -> str:
        """The output of one of Slurm's commands; empty when it failed."""
        environ = {**os.environ, **self.environ}
        done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
        return done.stdout or "done" if done.returncode == 0 else ""

    def stop(self) -> None:
        """End everything: the nodes first, so that no job outlives the cluster."""
        for node in NODES:
            _end_all(f"unshare .* slurmd -D -N {node};")
        for process in reversed(self._daemons.values()):
            process.terminate()
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()

    def _daemon(self, *command: str, name: str = "", **extra: str) -> None:
        environ = {**os.environ, **self.environ, **extra}
        environ["PATH"] = f"{environ['PATH']}:/usr/sbin:/sbin"
        name = name or command[0]
        with (self.folder / "log" / f"{name}.out").open("ab") as log:
            self._daemons[name] = subprocess.Popen(
                command, env=environ, stdout=log, stderr=log, start_new_session=True
            )


@contextmanager
def cluster(folder: Path) -> Iterator[Slurm]:
    """A cluster below `folder`, which does not exist yet, until the block is left."""
    slurm = Slurm(folder)
    with ExitStack() as stack:
        stack.callback(slurm.stop)
        slurm.start()
        yield slurm


def _pids(command: str) -> list[int]:
    found = subprocess.run(["pgrep", "-f", f"^{command}"], capture_output=True, text=True)
    return [int(pid) for pid in found.stdout.split()]


def _end_all(command: str) -> None:
    for pid in _pids(command):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _quietly(*command: str) -> None:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _until(ready: Callable[[], bool], name: str) -> None:
    give_up = time.monotonic() + _START_S
    while not ready():
        if time.monotonic() > give_up:
            raise TimeoutError(f"{name} did not start within {_START_S:g} s")
        time.sleep(0.2)


def main(folder: str) -> None:
    """Run a cluster until Ctrl-C."""
    if lacking := missing():
        sys.exit(f"a Slurm cluster needs {', '.join(lacking)}: see the first lines of {__file__}")
    for number in (signal.SIGINT, signal.SIGTERM):  # a shell lets its background ignore Ctrl-C
        signal.signal(number, signal.default_int_handler)
    with contextlib.suppress(KeyboardInterrupt), cluster(Path(folder).absolute()) as slurm:
        print(f"export SLURM_CONF={slurm.environ['SLURM_CONF']}\nCtrl-C ends it", flush=True)
        signal.pause()


if __name__ == "__main__":
    main(*sys.argv[1:])
