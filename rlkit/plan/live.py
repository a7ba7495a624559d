"""This module counts bytes of live tensors, and their peak, on any device, meta as well."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from rlkit.runtime.torch_compat import TorchDispatchMode, storage_key, tree_leaves


class LiveBytes(TorchDispatchMode):
    """This counter sees storages that come into being inside; what existed before counts nothing.

    A storage counts once, however many tensors view it, and until its last tensor is gone. What
    kernels allocate for themselves is not seen.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = 0
        """Bytes alive."""
        self.peak = 0
        """Most bytes alive at once since the start or `restart_peak`."""
        self._sizes: dict[int, int] = {}

    def restart_peak(self) -> None:
        """Forget the peak so far."""
        self.peak = self.now

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        for leaf in tree_leaves((args, kwargs)):
            if isinstance(leaf, Tensor):  # there before: an output that views it is not new
                self._note(leaf.untyped_storage(), new=False)
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._note(leaf.untyped_storage(), new=True)
        return out

    def _note(self, storage: torch.UntypedStorage, *, new: bool) -> None:
        key = storage_key(storage)
        if key in self._sizes:
            return
        self._sizes[key] = storage.nbytes() if new else 0
        self.now += self._sizes[key]
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._drop, key)

    def _drop(self, key: int) -> None:
        self.now -= self._sizes.pop(key)
