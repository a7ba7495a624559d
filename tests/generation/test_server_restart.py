"""A sampling server that dies is waited for once; what it had not sampled comes out the same.

The server is a stand-in that speaks the protocol: its tokens are a function of the seed.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

from rlkit.generation import VLLMServerConfig
from rlkit.generation.vllm.server import AdapterFiles, VLLMServerGenerator
from rlkit.types import Prompt, Rollout, SamplingConfig

PROMPTS = [Prompt(index=n, ids=(1, 2), text="") for n in range(3)]
SEEDS = [[10 * n + i for i in range(4)] for n in range(3)]


class Server(ThreadingHTTPServer):
    """It dies after `answers` completions, connections in flight included."""

    daemon_threads = True
    allow_reuse_address = True
    answers: int
    adapters: dict[str, str]

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing."""


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.answer({"data": [{"id": "tiny", "max_model_len": 64}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/v1/load_lora_adapter":
            self.server.adapters[body["lora_name"]] = body["lora_path"]
            self.answer({})
        elif self.path == "/v1/unload_lora_adapter":
            self.server.adapters.pop(body["lora_name"], None)
            self.answer({})
        elif "seed" not in body:  # the check of processed logps
            self.answer({"choices": [{"logprobs": {"token_logprobs": [0.0]}}]})
        else:
            self.complete(body)

    def complete(self, body: dict[str, Any]) -> None:
        self.server.answers -= 1
        if self.server.answers < 0:
            self.connection.close()
            self.server.socket.close()
            return
        assert body["model"] in self.server.adapters, "the adapter must be there again"
        ids = [body["seed"] % 7, body["seed"] % 5]
        choice = {"token_ids": ids, "logprobs": {"token_logprobs": [-1.0, -0.5]}}
        self.answer({"choices": [{**choice, "finish_reason": "stop"}]})

    def answer(self, content: object) -> None:
        data = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@contextmanager
def serving(port: int, *, answers: int) -> Iterator[Server]:
    server = Server(("127.0.0.1", port), Handler)
    server.answers, server.adapters = answers, {}
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def generator(port: int, *, timeout_s: float = 20.0) -> VLLMServerGenerator:
    files = AdapterFiles(rank=1, scale=1.0, modules=("q",), base_model="tiny")
    url = f"http://127.0.0.1:{port}"
    config = VLLMServerConfig(url=url, timeout_s=timeout_s, connections=2)
    return VLLMServerGenerator(config, files, stop_token_ids=frozenset({0}))


def sample(generator: VLLMServerGenerator) -> list[list[Rollout]]:
    sampling = SamplingConfig(max_completion_length=4)
    return generator.generate(PROMPTS, num_samples=4, sampling=sampling, seeds=SEEDS)


def test_a_server_that_comes_back_goes_on_with_the_same_samples() -> None:
    with serving(0, answers=10**6) as whole:
        port = whole.server_address[1]
        undisturbed = generator(port)
        undisturbed.load_adapter({"a": torch.zeros(1)}, 3)
        expected = sample(undisturbed)
        undisturbed.close()
    with serving(port, answers=5):
        disturbed = generator(port)
        disturbed.load_adapter({"a": torch.zeros(1)}, 3)
        found: list[list[list[Rollout]]] = []
        thread = threading.Thread(target=lambda: found.append(sample(disturbed)))
        thread.start()
        time.sleep(1.0)
        assert thread.is_alive() and not found, "it waits"
    with serving(port, answers=10**6) as back:
        thread.join(15)
        assert found == [expected]
        (path,) = back.adapters.values()
        assert Path(path, "adapter_model.safetensors").exists()
        disturbed.close()
        assert back.adapters == {} and not Path(path).exists()


def test_a_server_that_stays_away_ends_the_run_by_name() -> None:
    with serving(0, answers=2) as server:
        port = server.server_address[1]
        sampler = generator(port, timeout_s=1.0)
        sampler.load_adapter({"a": torch.zeros(1)}, 1)
        begun = time.monotonic()
        with pytest.raises(RuntimeError, match=rf"the server at http://127.0.0.1:{port} failed"):
            sample(sampler)
        assert time.monotonic() - begun < 10
    sampler.close()
