"""`VLLMServerGenerator` samples with a running `vllm serve`, on another device or machine.

The server must have been started with

    VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 vllm serve MODEL --enable-lora --max-lora-rank RANK \\
        --max-loras 2 --logprobs-mode processed_logprobs

Every version of the adapter is a new one to the server, loaded under a new name before the old one
is dropped. The server's prefix cache tells them apart by name, and a name cannot mean two things.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import shutil
import tempfile
import time
import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from rlkit.generation.base import Progress, ProgressCallback, check_request, check_sampling
from rlkit.generation.batching import SamplingRow, make_rows
from rlkit.generation.vllm.config import VLLMServerConfig
from rlkit.generation.vllm.server_check import check_server
from rlkit.generation.vllm.server_client import ServerClient, ServerError, ServerGone
from rlkit.runtime.redact import resolved
from rlkit.types import FinishReason, Prompt, Rollout, SamplingConfig

_LOOK_SECONDS = 0.2
"""Between two calls of the progress callback while nothing finishes."""
_RETURN_SECONDS = 300.0
"""A server that died has so long to be there again."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterFiles:
    """A folder in PEFT's format says this beside the tensors."""

    rank: int
    scale: float
    modules: tuple[str, ...]
    """Last parts of the names of the adapted layers."""
    base_model: str

    def write(self, folder: Path, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> None:
        """Write `tensors` (PEFT's keys) and their configuration to `folder`, which must exist."""
        config = {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": self.base_model,
            "r": self.rank,
            # PEFT's scale is alpha / r; rank-stabilised LoRA comes out the same this way.
            "lora_alpha": self.scale * self.rank,
            "target_modules": list(self.modules),
            "bias": "none",
        }
        (folder / "adapter_config.json").write_text(json.dumps(config))
        plain = {k: t.detach().to("cpu", dtype).contiguous() for k, t in tensors.items()}
        save_file(plain, folder / "adapter_model.safetensors")


class VLLMServerGenerator:
    """Implements `rlkit.types.Generator` over HTTP: one request a sample, each with its own seed.

    Sampling logps are those of the distribution defined in `rlkit.generation.sampling`.
    """

    def __init__(
        self,
        config: VLLMServerConfig,
        files: AdapterFiles,
        *,
        stop_token_ids: frozenset[int],
        progress: ProgressCallback | None = None,
    ) -> None:
        """Sample with the server at `config.url`; raises ValueError when there is none.

        `progress` is called as samples arrive, and a few times a second; what it raises ends the
        call of `generate`.
        """
        self._config = config
        self._files = files
        self._stop_token_ids = sorted(stop_token_ids)
        self._progress = progress
        self._model, self._context = check_server(config)
        self._run = uuid.uuid4().hex[:8]
        self._adapter: str | None = None
        self._version = 0
        self._num_loads = 0
        self._client = ServerClient(
            resolved(config.url, key="generator.url"), timeout_s=config.timeout_s
        )
        self._temporary: Path | None = None
        if not config.adapter_folder:
            self._temporary = Path(tempfile.mkdtemp(prefix="rlkit-adapters-"))
        self._folder = self._temporary or Path(config.adapter_folder)

    def load_adapter(self, tensors: Mapping[str, Tensor], version: int) -> None:
        """Write `tensors` to a folder, let the server load it, then drop the one before."""
        self._num_loads += 1
        name = f"rlkit-{self._run}-{self._num_loads}-v{version}"
        folder = self._folder / name
        folder.mkdir(parents=True)
        self._files.write(folder, tensors, torch.float32)
        try:
            self._client.post(
                "/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(folder.resolve())}
            )
        except ServerError as error:
            raise RuntimeError(
                f"the server at {self._config.url} must load adapters (start it with "
                f"--enable-lora, --max-lora-rank >= {self._files.rank} and "
                f"VLLM_ALLOW_RUNTIME_LORA_UPDATING=1, and let it see {folder}): {error}"
            ) from error
        self._drop_adapter()
        self._adapter, self._version = name, version

    def close(self) -> None:
        """Drop the adapter from the server and delete its files; idempotent."""
        self._drop_adapter()
        self._client.close()
        if self._temporary is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)

    def generate(
        self,
        prompts: Sequence[Prompt],
        *,
        num_samples: int,
        sampling: SamplingConfig,
        seeds: Sequence[Sequence[int]],
    ) -> list[list[Rollout]]:
        """Sample completions of each prompt under the policy that was loaded last.

        Args:
            prompts: The prompts.
            num_samples: Samples of each prompt, >= 1.
            sampling: The sampling options.
            seeds: The seed of each sample: [prompt][sample].

        Returns:
            The rollouts: [prompt][sample].

        Raises:
            ValueError: `check_request` refuses the request.
            RuntimeError: The server fails.
        """
        check_sampling(sampling)
        check_request(prompts, num_samples, sampling, seeds, context=self._context)
        rows = make_rows(prompts, num_samples=num_samples, seeds=seeds)
        try:
            self._sample_twice(rows, sampling)
        except ServerError as error:
            raise RuntimeError(f"the server at {self._config.url} failed: {error}") from error
        rollouts: list[list[Rollout]] = [[] for _ in prompts]
        for row in rows:
            rollouts[row.prompt_number].append(row.rollout(self._version))
        return rollouts

    def _sample_twice(self, rows: Sequence[SamplingRow], sampling: SamplingConfig) -> None:
        """Sample; a server that dies meanwhile may come back once, and goes on where it was.

        Each sample has its seed, so those that were lost come out as they would have.
        """
        try:
            self._sample(rows, sampling)
        except ServerGone as error:
            self._wait_until_back(error)
            left = [row for row in rows if row.finish_reason is None]
            for row in left:
                row.ids.clear()
                row.logps.clear()
            self._sample(left, sampling)

    def _wait_until_back(self, error: ServerGone) -> None:
        """Wait for the server and give it the adapter again; raise `error` when it stays away."""
        patience = min(self._config.timeout_s, _RETURN_SECONDS)
        _log.warning(
            "the server at %s is gone (%s): it has %.0f s to come back, once",
            *(self._config.url, error, patience),
        )
        give_up = time.monotonic() + patience
        while True:
            if self._progress is not None:
                self._progress(Progress(0, 1, 0))
            try:
                self._client.get("/v1/models")
                break
            except ServerError:
                if time.monotonic() > give_up:
                    raise error from None
                time.sleep(_LOOK_SECONDS)
        if self._adapter is not None:
            again = f"{self._adapter}-again"
            folder = (self._folder / self._adapter).rename(self._folder / again)
            self._adapter = again
            self._client.post(
                "/v1/load_lora_adapter", {"lora_name": again, "lora_path": str(folder.resolve())}
            )
        _log.warning("the server at %s is back", self._config.url)

    def _sample(self, rows: Sequence[SamplingRow], sampling: SamplingConfig) -> None:
        num_done = num_tokens = 0
        pool = ThreadPoolExecutor(min(self._config.connections, max(len(rows), 1)))
        try:
            pending: set[Future[int]] = {
                pool.submit(self._sample_row, row, sampling) for row in rows
            }
            while pending:
                done, pending = wait(pending, _LOOK_SECONDS, return_when=FIRST_COMPLETED)
                num_done += len(done)
                num_tokens += sum(future.result() for future in done)
                if self._progress is not None:
                    self._progress(Progress(num_done, len(rows), num_tokens))
        except ServerGone:
            # Requests in flight fail as well; none may write to a row that is sampled again.
            pool.shutdown(wait=True, cancel_futures=True)
            raise
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _sample_row(self, row: SamplingRow, sampling: SamplingConfig) -> int:
        """Sample one row to its end; return the number of its tokens."""
        body = self._request(row, sampling)
        (choice,) = self._client.post("/v1/completions", body)["choices"]
        row.ids += choice["token_ids"]
        row.logps += choice["logprobs"]["token_logprobs"]
        row.finish_reason = FinishReason(choice["finish_reason"])
        if not all(isinstance(p, float) and math.isfinite(p) for p in row.logps):
            raise FloatingPointError(
                f"logits must be finite, got NaN or inf in sample {row.sample_index} of prompt "
                f"{row.prompt.index} ({row.prompt.text[-60:]!r})"
            )
        return len(row.ids)

    def _request(self, row: SamplingRow, sampling: SamplingConfig) -> dict[str, Any]:
        extra = dict(self._config.sampling.extra)
        stops = [] if extra.pop("ignore_eos", False) else self._stop_token_ids
        return {
            "model": self._adapter or self._model,
            "prompt": list(row.prompt.ids),
            "seed": row.seed,
            "max_tokens": row.most_tokens(sampling.max_completion_length),
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            "min_p": sampling.min_p,
            "stop": list(sampling.stop),
            "include_stop_str_in_output": True,
            "ignore_eos": True,
            "stop_token_ids": stops,
            "logprobs": 0,
            "return_token_ids": True,
            **extra,
        }

    def _drop_adapter(self) -> None:
        name, self._adapter = self._adapter, None
        if name is None:
            return
        # A server that is gone, or that dropped the adapter itself, holds it no longer.
        with contextlib.suppress(ServerError):
            self._client.post("/v1/unload_lora_adapter", {"lora_name": name})
        shutil.rmtree(self._folder / name, ignore_errors=True)
