"""A hub on loopback that takes uploads as the Hugging Face hub does, without Xet."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class FakeHub:
    """The state of the hub: what tests look at."""

    created: list[dict[str, Any]] = field(default_factory=list)
    stored: dict[str, bytes] = field(default_factory=dict)
    """Large files by SHA-256."""
    tree: dict[str, bytes] = field(default_factory=dict)
    """Files of the repository, by path."""
    puts: list[str] = field(default_factory=list)
    tokens: set[str] = field(default_factory=set)
    refuse_put: int = 0
    """The first upload of a large file that is refused, from 1 on; 0 = none."""
    address: str = ""


def start_hub() -> tuple[FakeHub, ThreadingHTTPServer]:
    """Start a hub in a thread; `server.shutdown()` ends it."""
    hub = FakeHub()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def _body(self) -> bytes:
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))

        def _answer(self, value: object, status: int = 200) -> None:
            data = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def do_PUT(self) -> None:
            data = self._body()
            oid = self.path.rsplit("/", 1)[-1]
            hub.puts.append(oid)
            if hub.refuse_put and len(hub.puts) >= hub.refuse_put:
                return self._answer({"error": "cut off"}, 403)
            assert hashlib.sha256(data).hexdigest() == oid
            hub.stored[oid] = data
            return self._answer({})

        def do_POST(self) -> None:
            hub.tokens.add(str(self.headers.get("Authorization")))
            path, body = self.path.split("?")[0], self._body()
            if path == "/api/repos/create":
                hub.created.append(json.loads(body))
                return self._answer({"url": f"{hub.address}/me/model", "name": "me/model"})
            if path == "/api/validate-yaml":
                return self._answer({"errors": [], "warnings": []})
            if "/preupload/" in path:
                files = json.loads(body)["files"]
                return self._answer({"files": [self._mode(file) for file in files]})
            if path.endswith("/info/lfs/objects/batch"):
                objects = json.loads(body)["objects"]
                places = [self._place(item) for item in objects]
                return self._answer({"transfer": "basic", "objects": places})
            if "/commit/" in path:
                self._commit(body)
                return self._answer(
                    {"commitUrl": f"{hub.address}/me/model/commit/1", "commitOid": "1"}
                )
            return self._answer({"error": f"unknown {path}"}, 404)

        def _mode(self, file: dict[str, Any]) -> dict[str, Any]:
            mode = "lfs" if file["path"].endswith((".safetensors", ".gguf")) else "regular"
            return {"path": file["path"], "uploadMode": mode, "shouldIgnore": False}

        def _place(self, item: dict[str, Any]) -> dict[str, Any]:
            if item["oid"] in hub.stored:
                return {"oid": item["oid"], "size": item["size"]}
            upload = {"href": f"{hub.address}/store/{item['oid']}"}
            return {"oid": item["oid"], "size": item["size"], "actions": {"upload": upload}}

        def _commit(self, body: bytes) -> None:
            for line in body.splitlines():
                entry = json.loads(line)
                value = entry["value"]
                if entry["key"] == "file":
                    hub.tree[value["path"]] = base64.b64decode(value["content"])
                elif entry["key"] == "lfsFile":
                    hub.tree[value["path"]] = hub.stored[value["oid"]]

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.address = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return hub, server
