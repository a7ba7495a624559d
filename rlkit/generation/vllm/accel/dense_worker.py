"""vLLM's worker with dense products for the adapter; vLLM imports it by name (`worker_cls`)."""

from __future__ import annotations

import logging
from typing import Any

from rlkit.generation.vllm import life
from rlkit.generation.vllm.accel import dense, dense_norm, dense_rotary
from rlkit.generation.vllm.worker import WorkerExtension
from rlkit.runtime.distribution import lacks

try:
    from vllm.platforms import current_platform
except ModuleNotFoundError as error:
    raise lacks("vllm", __name__) from error

_log = logging.getLogger(__name__)
_Worker: Any
if current_platform.is_cpu():
    from vllm.v1.worker.cpu_worker import CPUWorker as _Worker
else:
    from vllm.v1.worker.gpu_worker import Worker as _Worker


class DenseWorker(_Worker, WorkerExtension):  # type: ignore[misc]
    """It installs `dense` right after loading, before vLLM warms up and captures graphs."""

    def load_model(self, *arguments: Any, **options: Any) -> None:
        """Load the model; in vLLM's own memory pool, which sleeping needs, also install."""
        runner = self.model_runner
        load = runner.load_model

        def load_and_install(*inner: Any, **named: Any) -> None:
            load(*inner, **named)
            self._rlkit_state().punica_because = _install(self._rlkit_manager())

        runner.load_model = load_and_install
        try:
            super().load_model(*arguments, **options)
        finally:
            runner.load_model = load


def _install(manager: Any) -> str | None:
    """Install plain products; say why Punica stays in place, or None when it does not."""
    fused = not current_platform.is_cpu()
    try:
        layers = dense.install(manager, fused=fused)
    except Exception as error:  # an unknown vLLM may fail in any way: Punica always works
        return life.reason(error)
    if fused:
        try:
            dense_norm.install_norms(manager.model, layers)
        except Exception as error:  # likewise, and the layers work without
            _log.warning("vLLM's norms stay as they are: they need %s", life.reason(error))
        try:
            dense_rotary.install_rotary(manager.model, layers)
        except Exception as error:  # likewise
            _log.warning("vLLM's rotations stay as they are: they need %s", life.reason(error))
    return None
