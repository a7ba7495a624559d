"""This is the part of Weights & Biases' protocol that its client needs to begin and end a run."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from typing import Any

_ENTITY = {"id": "RTox", "name": "me"}
_PROJECT = {"id": "UDox", "name": "faults", "entity": _ENTITY}
_RUN = {
    **{"id": "UnVuOjE=", "displayName": "run", "description": "", "config": "{}"},
    **{"sweepName": None, "project": _PROJECT, "historyLineCount": 0},
}
_VIEWER = {
    **{"id": "VTox", "entity": "me", "username": "me", "email": "", "flags": "{}"},
    "teams": {"edges": []},
}


def is_graphql(path: str) -> bool:
    """Return whether a request is one that `answer` knows."""
    return path.endswith("/graphql")


def answer(body: bytes, *, encoding: str, address: str) -> bytes:
    """Return the answer to a GraphQL request, whose files go to `address`."""
    query: Mapping[str, Any] = json.loads(gzip.decompress(body) if encoding == "gzip" else body)
    name, given = query.get("operationName"), query.get("variables") or {}
    data: dict[str, object] = {}
    if name == "Viewer":
        data = {"viewer": _VIEWER}
    elif name == "RunResumeStatus":
        data = {"model": {**_PROJECT, "bucket": None}}
    elif name == "UpsertBucket":
        data = {"upsertBucket": {"bucket": {**_RUN, "name": given.get("name")}, "inserted": True}}
    elif name == "CreateRunFiles":
        files = [{"name": f, "uploadUrl": f"{address}/upload"} for f in given.get("files", ())]
        data = {"createRunFiles": {"runID": _RUN["id"], "uploadHeaders": [], "files": files}}
    return json.dumps({"data": data}).encode()


def is_data(path: str) -> bool:
    """Return whether a request carries metrics."""
    return path.endswith("/file_stream")


def is_end(body: bytes, *, encoding: str) -> bool:
    """Return whether a request says that the run is over."""
    text = gzip.decompress(body) if encoding == "gzip" else body
    return b'"complete":true' in text or b"CreateRunFiles" in text
