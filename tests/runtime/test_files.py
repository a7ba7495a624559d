"""Files and folders appear whole, replace what was there, and leave nothing when writing fails."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rlkit.runtime.files import published, remove_leftovers, remove_litter, scratch_of

HANG = """
import sys, time
from pathlib import Path
from rlkit.runtime.files import published
with published(Path(sys.argv[1])) as scratch:
    scratch.mkdir()
    (scratch / "a").write_text("new")
    print("writing", flush=True)
    time.sleep(60)
"""


def test_a_file_replaces_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text("old")
    with published(path) as scratch:
        scratch.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_replaces_a_folder_with_everything_in_it(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "stale").write_text("old")
    with published(folder) as scratch:
        (scratch / "deep").mkdir(parents=True)
        (scratch / "deep" / "a").write_text("new")
    assert [p.relative_to(folder).as_posix() for p in sorted(folder.rglob("*"))] == [
        "deep",
        "deep/a",
    ]
    assert list(tmp_path.iterdir()) == [folder]


@pytest.mark.parametrize("folder", [False, True])
def test_a_failure_changes_nothing(tmp_path: Path, folder: bool) -> None:
    path = tmp_path / "x"
    with published(path) as scratch:
        scratch.write_text("old")
    with pytest.raises(ZeroDivisionError), published(path) as scratch:
        if folder:
            scratch.mkdir()
        (scratch / "a" if folder else scratch).write_text("half")
        raise ZeroDivisionError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_never_replaces_a_folder(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "kept").write_text("mine")
    with pytest.raises(IsADirectoryError), published(tmp_path / "x") as scratch:
        scratch.write_text("new")
    assert [p.name for p in tmp_path.rglob("*")] == ["x", "kept"]


def test_a_missing_parent_is_an_os_error_that_names_it(tmp_path: Path) -> None:
    path = tmp_path / "no" / "x"
    with pytest.raises(FileNotFoundError), published(path) as scratch:
        scratch.write_text("new")


def test_what_a_killed_process_left_is_removed_and_only_that(tmp_path: Path) -> None:
    path, other = tmp_path / "model", tmp_path / ".models.1.partial"
    other.write_text("another file's")
    (tmp_path / ".model.partial").mkdir()  # an older version's
    command = [sys.executable, "-c", HANG, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        writer.stdout.readline()
        writer.send_signal(signal.SIGKILL)
    assert not path.exists()
    assert len(list(tmp_path.iterdir())) == 3
    remove_leftovers(path)
    assert list(tmp_path.iterdir()) == [other]


def test_what_a_process_of_another_machine_writes_is_litter_only_when_it_is_old(
    tmp_path: Path,
) -> None:
    dead_here = 99999999
    mine = scratch_of(tmp_path / "report.html")
    assert mine.parent == tmp_path and str(os.getpid()) in mine.name
    here = tmp_path / mine.name.replace(str(os.getpid()), str(dead_here))
    fresh = tmp_path / f".report.html.@node7@{dead_here}.partial"
    old = tmp_path / f".curves.png.@node7.cluster.org@{os.getpid()}.partial"
    for file in (here, fresh, old):
        file.write_text("half")
    os.utime(old, (time.time() - 4000,) * 2)
    assert sorted(remove_litter(tmp_path, subfolders=())) == sorted([here, old])
    assert list(tmp_path.iterdir()) == [fresh]
