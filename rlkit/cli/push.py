"""`rlkit push` sends an export to the Hugging Face hub."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

SUMMARY = "send an export to the Hugging Face hub, private unless you say otherwise"


def run(arguments: Sequence[str]) -> int:
    """Send the files, or list them."""
    from rlkit.cli import UsageError
    from rlkit.exports.push import PushRequest, check_repo, files_of, push, summary

    parser = argparse.ArgumentParser(prog="rlkit push", description=SUMMARY)
    parser.add_argument("--folder", type=Path, required=True, help="the folder of an export")
    parser.add_argument("--repo", required=True, help="OWNER/NAME")
    parser.add_argument("--public", action="store_true", help="make a new repository public")
    parser.add_argument("--revision", help="branch (default: main)")
    parser.add_argument("--dry-run", action="store_true", help="list the files and send nothing")
    options = parser.parse_args(arguments)
    request = PushRequest(
        folder=options.folder,
        repo=options.repo,
        public=options.public,
        revision=options.revision,
    )
    try:
        if options.dry_run:
            check_repo(request.repo)
            files = files_of(request.folder)
            for file in files:
                print(f"{file.num_bytes:>14,}  {file.path}")
            print(summary(files, request))
            return 0
        print(f"pushed to {push(request, say=print)}")
    except ValueError as error:
        raise UsageError(str(error)) from error
    return 0
