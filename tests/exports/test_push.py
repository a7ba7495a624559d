"""`rlkit push` against a hub on loopback: private, resumable, and the token stays where it is."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_process import environment
from fake_hub import FakeHub, start_hub

TOKEN = "hf_a_token_of_nobody"


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    state, server = start_hub()
    yield state
    server.shutdown()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    out = tmp_path / "export"
    out.mkdir()
    (out / "README.md").write_text("# card\n")
    (out / "a.gguf").write_bytes(b"a" * 1000)
    (out / "b.gguf").write_bytes(b"b" * 2000)
    (out / ".cache").mkdir()
    (out / ".cache/secret").write_text("not for the hub")
    return out


def push(
    hub: FakeHub, folder: Path, *more: str, token: str = TOKEN
) -> subprocess.CompletedProcess[str]:
    home = folder.parent / "home"
    home.mkdir(exist_ok=True)
    if token:
        (home / "token").write_text(token)
    arguments = ["push", "--folder", str(folder), "--repo", "me/model", *more]
    return subprocess.run(
        [sys.executable, "-m", "rlkit", *arguments],
        capture_output=True,
        text=True,
        env={
            **environment(),
            "HF_ENDPOINT": hub.address,
            "HF_HUB_DISABLE_XET": "1",  # a protocol of its own, which the client chooses itself
            "HF_HUB_OFFLINE": "0",
            "HF_HOME": str(home),
            "HF_TOKEN": "",
        },
    )


def test_files_arrive_in_a_private_repository_and_go_on_where_they_were_cut_off(
    hub: FakeHub, folder: Path
) -> None:
    hub.refuse_put = 2
    first = push(hub, folder)
    assert first.returncode == 2
    assert "rlkit: --repo must be one that the hub takes, got me/model: " in first.stderr
    assert "the same command again goes on" in first.stderr and "Traceback" not in first.stderr
    assert hub.tree == {} and len(hub.stored) == 1
    hub.refuse_put, hub.puts = 0, []
    again = push(hub, folder)
    assert again.returncode == 0, again.stderr
    assert len(hub.puts) == 1, "the file that had arrived is not sent twice"
    assert hub.tree == {
        "README.md": b"# card\n",
        "a.gguf": b"a" * 1000,
        "b.gguf": b"b" * 2000,
    }
    assert [c["visibility"] for c in hub.created] == ["private", "private"]
    assert hub.tokens == {f"Bearer {TOKEN}"}
    assert all(TOKEN not in text for r in (first, again) for text in (r.stdout, r.stderr))


def test_a_dry_run_lists_the_files_and_asks_nobody(hub: FakeHub, folder: Path) -> None:
    done = push(hub, folder, "--dry-run", token="")
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert lines[:3] == [["7", "README.md"], ["1,000", "a.gguf"], ["2,000", "b.gguf"]]
    assert done.stdout.splitlines()[3] == "3 files, 0.0 MB, to me/model (private if it is new)"
    assert not hub.created and not hub.tokens


def test_what_cannot_be_sent_is_one_line(hub: FakeHub, folder: Path) -> None:
    done = push(hub, folder, token="")
    assert done.returncode == 2
    assert done.stderr == (
        "rlkit: --repo must be one that a token may write (hf auth login), got no token\n"
    )
    done = push(hub, folder, "--repo", "nothing")
    assert "rlkit: --repo must be OWNER/NAME, got nothing" in done.stderr
    (folder / "README.md").unlink()
    done = push(hub, folder)
    assert "rlkit: --folder must be an export (with README.md), got" in done.stderr
    assert not hub.created
