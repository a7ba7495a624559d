"""LoRA into a running vLLM engine: its own buffers are written in place, without disk or merging.

Each adapter has one integer id and one slot of vLLM, and a name that carries its version. vLLM
finds the slot by the id, which stays. The prefix cache hashes the name, which each load makes new.
So no key-value block of an earlier version is ever reused, and none has to be reset for that.
"""

from __future__ import annotations

import json
import operator
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

if TYPE_CHECKING:
    from vllm import LLM
    from vllm.lora.request import LoRARequest

_IN_MEMORY = "/rlkit/in-memory"
"""A request must name a path; vLLM reads it only when it does not hold the adapter."""


class Mode(StrEnum):
    """An adapter reaches vLLM in one of these ways; the fastest comes first."""

    in_place = "in_place"
    """Copied into vLLM's stacked buffers."""
    tensors = "tensors"
    """Through vLLM's loader, from copies in host memory."""
    disk = "disk"
    """Through vLLM's public API, from safetensors on tmpfs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Injection:
    """This says what one `LoRAInjector.load` did."""

    mode: Mode
    bound_modules: int
    """Adapted layers, as the trainer counts them: q, k and v are three."""
    seconds: float
    rebound: bool
    """Whether vLLM had dropped or moved the adapter, so that its slot was set up again."""


class Injector(Protocol):
    """A generator needs one: `LoRAInjector`, `full.WeightInjector`, or one that is watched."""

    @property
    def request(self) -> LoRARequest | None:
        """Requests must carry this to use the adapter as last loaded; None before the first."""

    def load(self, tensors: Mapping[str, Tensor], version: int) -> object:
        """Sample with `tensors`, which are `version`, from the next request on."""


class LoRAInjector:
    """An injector keeps one adapter of one engine up to date; each has an id of its own."""

    def __init__(
        self,
        llm: LLM,
        layers: Sequence[str],
        *,
        rank: int,
        scale: float,
        key: Callable[[str, str], str],
        name: str = "policy",
        int_id: int = 1,
        verify_every: int = 50,
    ) -> None:
        """`layers`: the adapted layers as the Hugging Face model names them.

        `scale` is s of y = W x + s B (A x); `key(layer, "A" or "B")` names a tensor of `load`, as
        PEFT does. Every `verify_every` loads in place, from the first on, what vLLM holds is
        compared with what it was given, bit for bit; 0 = never. It needs a free LoRA slot.
        """
        self.int_id = int_id
        self.layers = tuple(layers)
        self.rank = rank
        self.scale = scale
        self.mode = Mode.in_place
        self.llm = llm
        self._name = f"{name}{self._call('rlkit_new_user')}"
        self._verify_every = verify_every
        self._num_loads = 0
        self._request: LoRARequest | None = None
        self._keys = [key(layer, factor) for layer in layers for factor in "AB"]
        self._seen: tuple[list[str], list[Tensor]] = ([], [])
        """Keys and tensors of the last load: the same objects need no second look."""
        self._checked: list[Tensor] = []
        """Those tensors, A and B of each layer in turn."""
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    @property
    def request(self) -> LoRARequest | None:
        """Requests must carry this to use the adapter as last loaded; None before the first."""
        return self._request

    def load(self, tensors: Mapping[str, Tensor], version: int) -> Injection:
        """Sample with `tensors` (PEFT's keys), which are `version`, from the next request on.

        Raises ValueError when keys or shapes do not fit and RuntimeError while requests run.
        """
        if self.llm.llm_engine.has_unfinished_requests():
            raise RuntimeError("an adapter must not change while requests that use it are running")
        factors = self._factors(tensors)
        _wait(factors[0].device)
        begin = time.perf_counter()
        request = self._make_request(version)
        rebound = False
        if self.mode is Mode.in_place:
            arguments = (self.int_id, self.layers, factors, self.scale)
            bound, rebound = self._call("rlkit_write", *arguments)
        else:
            # vLLM's own loaders; where its buffers are, an unknown version need not tell.
            bound = len(self.layers)
            if self.mode is Mode.tensors:
                self._call("rlkit_load", self.int_id, self._scaled(factors), self.rank)
            else:
                self._load_from_disk(factors, request)
        _wait(factors[0].device)
        if bound != len(self.layers):
            raise RuntimeError(f"vLLM must hold {len(self.layers)} adapted layers, got {bound}")
        seconds = time.perf_counter() - begin
        in_place = self.mode is Mode.in_place
        if in_place and self._verify_every and self._num_loads % self._verify_every == 0:
            self._verify(tensors)
        self._num_loads += 1
        self._request = request
        return Injection(mode=self.mode, bound_modules=bound, seconds=seconds, rebound=rebound)

    def unload(self) -> None:
        """Free the slot; the next `load` takes one again."""
        self._call("rlkit_drop", self.int_id)
        self._request = None

    def slot(self) -> dict[str, Tensor]:
        """Give views of the adapter in vLLM, the whole slot, as `layer.A` and `layer.B`."""
        views: dict[str, Tensor] = self._call("rlkit_slot", self.int_id)
        return views

    def differences(self, tensors: Mapping[str, Tensor]) -> list[str]:
        """Name the factors in vLLM that are not exactly `tensors`, with zeros beyond its rank.

        Names are `layer.A` and `layer.B`; layers that are not adapted must be zero.
        """
        held = self.slot()
        wrong = []
        shards = self._call("rlkit_shards", self.layers, self._factors(tensors))
        for layer, a, b in zip(self.layers, *_pairs(shards), strict=True):
            for name, value in ((f"{layer}.A", a), (f"{layer}.B", b.float() * self.scale)):
                stack = held.pop(name)
                expected = torch.zeros_like(stack)
                rows, columns = value.shape
                expected[:rows, :columns] = value.to(stack)
                if not torch.equal(stack, expected):
                    wrong.append(name)
        return wrong + [name for name, stack in held.items() if stack.any()]

    def _verify(self, tensors: Mapping[str, Tensor]) -> None:
        if wrong := self.differences(tensors):
            raise RuntimeError(
                f"vLLM must hold the adapter that it was given, got {len(wrong)} tensors that "
                f"differ: {', '.join(wrong[:3])}"
            )

    def _make_request(self, version: int) -> LoRARequest:
        from vllm.lora.request import LoRARequest

        # The count as well: a version may be loaded again with other tensors, after a resume.
        name = f"{self._name}-v{version}.{self._num_loads}"
        return LoRARequest(name, self.int_id, self._path())

    def _path(self) -> str:
        if self.mode is not Mode.disk:
            return _IN_MEMORY
        if self._folder is None:
            memory = Path("/dev/shm")
            parent = str(memory) if memory.is_dir() else None
            self._folder = tempfile.TemporaryDirectory(prefix="rlkit-adapter-", dir=parent)
        return self._folder.name

    def _load_from_disk(self, factors: Sequence[Tensor], request: LoRARequest) -> None:
        from safetensors.torch import save_file
        from vllm.lora.request import LoRARequest

        folder = Path(request.lora_path)
        leaves = sorted({layer.rsplit(".", 1)[-1] for layer in self.layers})
        config = {
            "peft_type": "LORA",
            "r": self.rank,
            "lora_alpha": self.rank,
            "target_modules": leaves,
            "bias": "none",
        }
        (folder / "adapter_config.json").write_text(json.dumps(config))
        save_file(self._scaled(factors), folder / "adapter_model.safetensors")
        self._call("rlkit_drop", self.int_id)
        # The flag reads the files now; on a request it would read them again at every step.
        now = LoRARequest(request.lora_name, self.int_id, request.lora_path, load_inplace=True)
        self.llm.llm_engine.add_lora(now)
        self.llm.llm_engine.pin_lora(self.int_id)

    def _scaled(self, factors: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return PEFT's tensors with the scale folded into B before it is rounded, as in place.

        Copies in host memory: the device may have no room for another adapter.
        """
        copies = [t.detach().to("cpu", torch.float32, copy=True).contiguous() for t in factors]
        torch._foreach_mul_(copies[1::2], self.scale)
        return dict(zip(self._keys, copies, strict=True))

    def _factors(self, tensors: Mapping[str, Tensor]) -> list[Tensor]:
        """List A and B of each layer in turn; raises ValueError unless `tensors` are those."""
        keys, values = list(tensors), list(tensors.values())
        if keys == self._seen[0] and _same(values, self._seen[1]):
            return self._checked
        missing = [key for key in self._keys if key not in tensors]
        unexpected = set(tensors) - set(self._keys)
        if missing or unexpected:
            what, keys = ("is missing", missing) if missing else ("has unexpected", [*unexpected])
            raise ValueError(f"the adapter {what} tensors: {', '.join(keys[:3])} ({len(keys)})")
        factors = [tensors[key] for key in self._keys]
        for layer, a, b in zip(self.layers, *_pairs(factors), strict=True):
            if a.shape[0] != self.rank or b.shape[1] != self.rank:
                raise ValueError(
                    f"A and B of {layer} must have rank {self.rank}, "
                    f"got shapes {tuple(a.shape)} and {tuple(b.shape)}"
                )
        self._seen, self._checked = (keys, values), factors
        return factors

    def _call(self, method: str, *arguments: Any) -> Any:
        return self.llm.collective_rpc(method, args=arguments)[0]


def _pairs(factors: Sequence[Tensor]) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    return factors[::2], factors[1::2]


def _same(left: Sequence[Tensor], right: Sequence[Tensor]) -> bool:
    return len(left) == len(right) and all(map(operator.is_, left, right))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
