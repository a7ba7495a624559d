"""The hub is asked once for a whole start, and again when it did not answer."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator

import pytest
from huggingface_hub import constants

from rlkit.models.hub import require_reachable


class Hub(http.server.ThreadingHTTPServer):
    """Refuses everything, as a hub may, and counts how often it was asked."""

    asked = 0


class Refuse(http.server.BaseHTTPRequestHandler):
    def do_HEAD(self) -> None:
        assert isinstance(self.server, Hub)
        self.server.asked += 1
        self.send_error(404)

    def log_message(self, *_: object) -> None:
        """Keep the test's output clean."""


@pytest.fixture
def hub() -> Iterator[Hub]:
    server = Hub(("127.0.0.1", 0), Refuse)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_an_answer_counts_for_the_whole_process(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{hub.server_port}")
    for _ in range(4):
        require_reachable("nobody/nothing", revision="main", say=lambda _: None)
    assert hub.asked == 1


def test_silence_is_not_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    free = Hub(("127.0.0.1", 0), Refuse)
    free.server_close()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{free.server_port}")
    for _ in range(2):
        with pytest.raises(ValueError, match=r"does not answer \(.*refused\)"):
            require_reachable("nobody/nothing", revision="main", say=lambda _: None)
