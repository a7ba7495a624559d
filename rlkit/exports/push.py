"""Send an export to the Hugging Face hub with its own client, which resumes what was cut off."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from rlkit.exports.formats import CARD
from rlkit.runtime.say import Say

_REPO = re.compile(r"[\w][\w.-]*/[\w][\w.-]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class PushRequest:
    """This record holds what is sent to where."""

    folder: Path
    repo: str
    """The repository, OWNER/NAME."""
    public: bool
    """False = a new repository is private."""
    revision: str | None
    """Branch; None = main."""


class File(NamedTuple):
    """A file that is sent has a path in the repository and a size."""

    path: str
    num_bytes: int


def files_of(folder: Path) -> list[File]:
    """Return the files of an export in order; raises ValueError when the folder is no export.

    Hidden files and folders are left out.
    """
    if not (folder / CARD).is_file():
        raise ValueError(f"--folder must be an export (with {CARD}), got {folder}")
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    kept = [p for p in paths if not any(part.startswith(".") for part in _parts(p, folder))]
    if unfinished := [p for p in paths if p.name.endswith(".partial")]:
        raise ValueError(f"--folder must be a finished export, got {unfinished[0]}")
    return [File(str(p.relative_to(folder)), p.stat().st_size) for p in kept]


def push(request: PushRequest, *, say: Say) -> str:
    """Create the repository if it is not there, send what it lacks, and return its address.

    The token is the client's own: of `hf auth login`, or HF_TOKEN. It is in no file of rlkit. What
    was cut off goes on when this is called again.

    Raises:
        ValueError: There is no token, no export, or the hub refuses; one line.
    """
    import httpx
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import HfHubHTTPError

    files = files_of(request.folder)
    check_repo(request.repo)
    if get_token() is None:
        raise ValueError("--repo must be one that a token may write (hf auth login), got no token")
    api = HfApi()
    say(summary(files, request))
    try:
        url = api.create_repo(request.repo, private=not request.public, exist_ok=True)
        api.upload_folder(
            repo_id=request.repo,
            folder_path=request.folder,
            revision=request.revision,
            ignore_patterns=[".*", "**/.*"],
            commit_message=f"rlkit export of {request.folder.name}",
        )
    except (HfHubHTTPError, httpx.HTTPError, OSError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(
            f"--repo must be one that the hub takes, got {request.repo}: {reason} "
            "(the same command again goes on)"
        ) from error
    return str(url)


def check_repo(repo: str) -> None:
    """Raise ValueError unless `repo` is OWNER/NAME."""
    if not _REPO.fullmatch(repo):
        raise ValueError(f"--repo must be OWNER/NAME, got {repo}")


def summary(files: Sequence[File], request: PushRequest) -> str:
    """Return one line about what is sent."""
    size = sum(file.num_bytes for file in files)
    kind = "public" if request.public else "private"
    return f"{len(files)} files, {size / 1e6:.1f} MB, to {request.repo} ({kind} if it is new)"


def _parts(path: Path, folder: Path) -> tuple[str, ...]:
    return path.relative_to(folder).parts
