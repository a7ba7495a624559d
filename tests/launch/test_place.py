"""A folder that a run cannot write to is refused before anything is loaded; nothing stays there."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from rlkit.config import ConfigError
from rlkit.launch.place import check_place


def test_a_new_folder_in_a_new_folder_is_fine_and_not_made(tmp_path: Path) -> None:
    check_place(tmp_path / "a/b/c")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("x" * 256, "made of names of <= 255 bytes, got 256 bytes"),
        ("é" * 128, "made of names of <= 255 bytes, got 256 bytes"),
        ("/".join(["y" * 200] * 20), r"a path of <= 3976 bytes, got \d+ bytes"),
        ("a\0b", "a name without NUL characters"),
        ("file/run", r"where a run can write, got .*file: Not a directory"),
        ("/proc/self/run", r"where a run can write, got /proc/self/run \(/proc/self: "),
    ],
)
def test_bad_places_are_named_with_the_rule(tmp_path: Path, name: str, rule: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=f"run_dir must be {rule}"):
        check_place(tmp_path / name)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_the_longest_name_that_a_folder_may_have(tmp_path: Path) -> None:
    check_place(tmp_path / ("x" * 255))


def test_a_folder_that_is_read_only(tmp_path: Path) -> None:
    """For root, permissions say nothing; a file system that is mounted read-only does."""
    place = tmp_path / "place"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "ro,size=64k", "none", str(place)]
    mounted = os.geteuid() == 0 and not subprocess.run(mount, capture_output=True).returncode
    if not mounted:
        if os.geteuid() == 0:
            pytest.skip("root that may not mount can write everywhere")
        place.chmod(0o500)
    try:
        with pytest.raises(ConfigError, match=r"run_dir must be where a run can write, got .*/run"):
            check_place(place / "run")
    finally:
        if mounted:
            subprocess.run(["umount", str(place)], check=True)
        else:
            place.chmod(0o700)
