"""The supported lines of vLLM, the newest first; each file says what its line does otherwise."""

from __future__ import annotations

from rlkit.generation.vllm.compat import v0_24, v0_28, v0_29, v0_31, v0_33
from rlkit.generation.vllm.compat.line import VLLMLine

LINES: tuple[VLLMLine, ...] = (v0_33.LINE, v0_31.LINE, v0_29.LINE, v0_28.LINE, v0_24.LINE)
