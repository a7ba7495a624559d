"""The sandbox: what code finds in it, what it cannot reach, and what is left of it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rlkit.runtime.sandbox import Confinement, Isolation, Ran, require, run_python

apart = pytest.mark.skipif(
    subprocess.run(["unshare", "-Urpnf", "true"], capture_output=True).returncode != 0,
    reason="this machine forbids namespaces; tests of isolation=limits run",
)
BARE = Confinement(packages=False)


def run(*lines: str, walls: Confinement = BARE) -> Ran:
    return run_python("\n".join(lines), walls)


@apart
def test_no_file_of_the_machine_is_there_but_pythons_and_the_systems(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("secret")
    here = str(Path(__file__))
    ran = run(
        "import os",
        f"print([os.path.exists(p) for p in ({str(tmp_path / 'mine')!r}, {here!r})])",
        "print(sorted(os.listdir('/etc')), os.path.exists('/proc/self'), os.listdir('/tmp'))",
        "print(os.getcwd(), sorted(set(os.environ) - {'LC_CTYPE'}))",
        "import ssl, sqlite3, decimal, multiprocessing",
    )
    assert ran.errors == ""
    files, system, folder = ran.printed.splitlines()
    assert files == "[False, False]"
    # A virtual environment below /tmp is the one thing that is to be seen there.
    environment = Path(sys.prefix)
    shown = [environment.parts[2]] if environment.is_relative_to("/tmp") else []
    assert "passwd" not in system and system.endswith(f"False {shown}")
    assert folder == "/tmp ['HOME', 'PATH']"


@apart
@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("open('/usr/mine', 'w')", "Read-only file system"),
        ("open('/mine', 'w')", "Read-only file system"),
        ("import sys; open(sys.base_prefix + '/lib/mine', 'w')", "Read-only file system"),
        ("libc.mount(b'x', b'/usr', None, 32 | 4096, None) and fail()", "Operation not permitted"),
        ("libc.umount2(b'/usr', 2) and fail()", "Operation not permitted"),
        ("libc.sethostname(b'x', 1) and fail()", "Operation not permitted"),
        ("os.mknod('disk', 0o60666, os.makedev(254, 0))", "Operation not permitted"),
        ("[open('f%d' % i, 'wb').write(bytes(9 << 20)) for i in range(9)]", "No space left"),
        ("s = __import__('socket').create_connection(('127.0.0.1', 9))", "unreachable"),
        ("os.kill(os.getppid() or 10**6, 9)", "No such process"),
    ],
)
def test_walls_hold_for_code_that_pushes(line: str, error: str) -> None:
    fail = "def fail(): raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))"
    ran = run("import ctypes, os", "libc = ctypes.CDLL(None, use_errno=True)", fail, line)
    assert ran.code == 1
    assert error in ran.errors.splitlines()[-1]


@apart
def test_rights_do_not_come_back_in_a_namespace_of_its_own() -> None:
    """A nested namespace has all rights over itself, and none over the mounts that it was given."""
    ran = run(
        "import ctypes, os",
        "libc = ctypes.CDLL(None, use_errno=True)",
        "print(libc.unshare(0x10000000 | 0x00020000))",
        "print(libc.mount(b'x', b'/usr', None, 32 | 4096, None), libc.umount2(b'/usr', 2))",
        "print(os.path.exists('/root') and os.listdir('/root'))",
        "open('/usr/mine', 'w')",
    )
    assert "Read-only" in ran.errors
    assert ran.printed.splitlines()[1] == "-1 -1"


@apart
def test_only_the_users_own_packages_are_added_on_request() -> None:
    assert run("import numpy").errors.splitlines()[-1].startswith("ModuleNotFoundError")
    ran = run(
        "import numpy; print(numpy.ones(2).sum())",
        walls=Confinement(memory_mb=8192, seconds=20.0),
    )
    assert ran.printed == "2.0\n", ran.errors


@pytest.mark.parametrize(
    ("source", "code", "error"),
    [
        ("raise SystemExit(3)", 3, ""),
        ("raise SystemExit('words')", 1, ""),
        ("import os; os._exit(4)", 4, ""),
        ("1 / 0", 1, "ZeroDivisionError"),
        ("def f(:", 1, "SyntaxError"),
        ("'\\ud800'.encode()", 1, "UnicodeEncodeError"),
        ("while True: pass", 128 + 14, ""),
        ("import os; os.kill(os.getpid(), 9)", 137, ""),
        ("x = 'a' * (1 << 40)", 1, "MemoryError"),
        ("print(input()[::-1])", 0, ""),
    ],
)
@pytest.mark.parametrize("isolation", ["namespaces", "limits"])
def test_the_end_of_a_program_is_told(source: str, code: int, error: str, isolation: str) -> None:
    try:
        require(Isolation(isolation))
    except ValueError as refusal:
        assert "set isolation=limits" in str(refusal)
        return
    walls = Confinement(Isolation(isolation), seconds=1.0, packages=False)
    ran = run_python(source, walls, stdin="abc")
    if "os.kill" in source and isolation == "namespaces":
        code = 0  # the first process of a namespace cannot kill itself
    # The limits of processor and of wall-clock time are the same.
    assert ran.code in {code, 137 if code == 142 else code}
    assert error in ran.errors
    assert ran.printed == ("cba\n" if "input" in source else "")


def test_nothing_is_left_when_the_caller_is_killed(tmp_path: Path) -> None:
    isolation = "namespaces" if not apart.args[0] else "limits"
    before = set(Path("/tmp").glob("rlkit-code-*"))
    program = (
        "from rlkit.runtime.sandbox import *;"
        f"run_python('import time; time.sleep(60) # mark-{os.getpid()}',"
        f" Confinement(Isolation('{isolation}'), seconds=90.0))"
    )
    caller = subprocess.Popen([sys.executable, "-c", program])
    time.sleep(1.5)
    children = _children(caller.pid)
    assert len(children) == 1
    caller.kill()
    caller.wait()
    time.sleep(0.5)
    assert not any(_runs(pid) for pid in children)
    if isolation == "namespaces":
        assert set(Path("/tmp").glob("rlkit-code-*")) == before


def _runs(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


def _children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(word) for word in text.split()]
