"""Ask once and briefly if the Hugging Face hub answers, before its client asks for long."""

from __future__ import annotations

import ssl
import urllib.error
import urllib.request

_WAIT_S = 5.0


def require_reachable(source: str, *, revision: str) -> None:
    """Raise ValueError with one line when `source` is not cached and the hub does not answer.

    The hub's own client would try six times, in half a minute and as many lines. Whatever the hub
    answers is for that client to read, a refusal as well.
    """
    from huggingface_hub import constants, try_to_load_from_cache

    cached = try_to_load_from_cache(source, "config.json", revision=revision)
    if constants.HF_HUB_OFFLINE or isinstance(cached, str):
        return
    request = urllib.request.Request(constants.ENDPOINT, method="HEAD")
    try:
        with urllib.request.urlopen(request, timeout=_WAIT_S):
            return
    except urllib.error.HTTPError:
        return
    except OSError as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        if isinstance(reason, ssl.SSLError):  # that client may know other certificates
            return
        raise ValueError(
            "model.source must be an existing folder or a hub id that can be reached, got "
            f"{source}: {constants.ENDPOINT} does not answer ({reason})"
        ) from error
