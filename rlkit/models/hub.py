"""Ask once and briefly if the Hugging Face hub answers, before its client asks for long."""

from __future__ import annotations

import os
from functools import cache

import httpx

from rlkit.runtime.say import Say

_WAIT_S = 5.0


class HubIsSilent(Exception):
    """The hub does not answer; the message says why."""


def require_reachable(source: str, *, revision: str, say: Say) -> None:
    """Find out whether the hub has to be asked for `source`, and whether it answers.

    The hub's own client would try six times for every file, cached or not: half a minute each.
    Whatever the hub answers is for that client to read, a refusal as well.

    Args:
        source: The hub id.
        revision: Its branch, tag or commit.
        say: Gets a line when the cached copy is used because the hub does not answer.

    Raises:
        ValueError: `source` is not cached and the hub does not answer; one line.
    """
    from huggingface_hub import constants, try_to_load_from_cache

    if constants.HF_HUB_OFFLINE:
        return
    try:
        _ask(constants.ENDPOINT)
        return
    except HubIsSilent as error:
        reason = error
    if not isinstance(try_to_load_from_cache(source, "config.json", revision=revision), str):
        raise ValueError(
            "model.source must be an existing folder or a hub id that can be reached, got "
            f"{source}: {constants.ENDPOINT} does not answer ({reason})"
        )
    say(
        f"{constants.ENDPOINT} does not answer ({reason}): the cached copy of {source} is used "
        "(HF_HUB_OFFLINE=1 spares the question)"
    )
    # The client reads its variable at import only, and has no other way to say this for all files.
    constants.HF_HUB_OFFLINE = True
    os.environ["HF_HUB_OFFLINE"] = "1"  # an engine in a child process reads it anew


@cache
def _ask(endpoint: str) -> None:
    """Ask `endpoint` for its head; a start asks several times, and an answer counts for all.

    Raises HubIsSilent, which is not remembered: the network may come back.
    """
    try:
        httpx.head(endpoint, timeout=_WAIT_S)
    except httpx.HTTPError as error:
        if "ssl" in str(error).lower():  # that client may know other certificates
            return
        raise HubIsSilent(str(error)) from error
