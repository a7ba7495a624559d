"""The peers that the benchmark measures on the same tensors; each is used if it can be imported.

Every entry takes (hidden, weight, targets, entropy) and returns per-row logps that are
differentiable in `hidden`. Nothing here is needed, or copied, by the kernels themselves.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from rlkit.kernels.logps import EntropyMode, Impl, selected_logps

Logps = Callable[[Tensor, Tensor, Tensor, bool], Tensor]


def rlkit_fused(hidden: Tensor, weight: Tensor, targets: Tensor, entropy: bool) -> Tensor:
    mode = EntropyMode.value if entropy else EntropyMode.none
    return selected_logps(hidden, weight, targets, entropy=mode, impl=Impl.triton).logps


def rlkit_torch(hidden: Tensor, weight: Tensor, targets: Tensor, entropy: bool) -> Tensor:
    mode = EntropyMode.value if entropy else EntropyMode.none
    return selected_logps(hidden, weight, targets, entropy=mode, impl=Impl.torch).logps


def eager(hidden: Tensor, weight: Tensor, targets: Tensor, entropy: bool) -> Tensor:
    """All logits; the entropy, where asked for, without gradient."""
    logits = (hidden @ weight.T).float()
    if entropy:
        with torch.no_grad():
            logps = logits.log_softmax(-1)
            logps.mul_(logps.exp()).sum(-1)
    return -cross_entropy(logits, targets, reduction="none")


def _trl() -> Logps:
    from trl.kernels.chunked_logprob import ChunkedLogProbFunction

    def run(hidden: Tensor, weight: Tensor, targets: Tensor, entropy: bool) -> Tensor:
        outputs = ("entropy",) if entropy else ()
        out = ChunkedLogProbFunction.apply(
            hidden, weight, None, targets, 1.0, 32768, None, 1.0, outputs
        )
        logps: Tensor = out[0]
        return logps

    return run


def _liger() -> Logps:
    from liger_kernel.ops import LigerFusedLinearCrossEntropyFunction as Function

    def run(hidden: Tensor, weight: Tensor, targets: Tensor, entropy: bool) -> Tensor:
        nll: Tensor = Function.apply(hidden, weight, targets, None, None, -100, 0.0, 0.0, "none")[0]
        return -nll

    return run


def _liger_chunked() -> Logps:
    from liger_kernel.chunked_loss.fused_linear_ppo import _ChunkedSelectiveLogProbFunction as F

    def run(hidden: Tensor, weight: Tensor, targets: Tensor, entropy: bool) -> Tensor:
        logps: Tensor = F.apply(hidden, weight, targets, None, 1.0, 4096)
        return logps

    return run


def _cce() -> Logps:
    from cut_cross_entropy import linear_cross_entropy

    def run(hidden: Tensor, weight: Tensor, targets: Tensor, entropy: bool) -> Tensor:
        nll: Tensor = linear_cross_entropy(hidden, weight, targets, reduction="none", impl="cce")
        return -nll

    return run


def _unsloth() -> Logps:
    """Its one file alone: the package insists on being imported through `unsloth`."""
    package = importlib.util.find_spec("unsloth_zoo")
    if package is None or package.submodule_search_locations is None:
        raise ImportError("unsloth_zoo is not installed")
    path = Path(package.submodule_search_locations[0]) / "fused_losses" / "fused_linear.py"
    module = _load("unsloth_fused_linear", path)

    def run(hidden: Tensor, weight: Tensor, targets: Tensor, entropy: bool) -> Tensor:
        if not entropy:
            logps: Tensor = module.fused_linear_logprobs(hidden, weight, targets)
            return logps
        logps = module.fused_linear_logprobs(
            hidden, weight, targets, return_entropy=True, entropy_requires_grad=False
        )[0]
        return logps

    return run


def _load(name: str, path: Path) -> ModuleType:
    import sys

    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"no module at {path}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


_PEERS: dict[str, tuple[str, Callable[[], Logps], bool]] = {
    "Unsloth": ("unsloth_zoo", _unsloth, True),
    "TRL": ("trl", _trl, True),
    "cut-cross-entropy": ("cut-cross-entropy", _cce, False),
    "Liger FLCE": ("liger-kernel", _liger, False),
    "Liger chunked": ("liger-kernel", _liger_chunked, False),
}


def load_peers() -> tuple[dict[str, Logps], dict[str, str], set[str]]:
    """Entries by name, versions (or why a peer is missing), and which can give an entropy."""
    entries: dict[str, Logps] = {
        "rlkit triton": rlkit_fused,
        "rlkit torch": rlkit_torch,
        "eager": eager,
        "torch.compile": torch.compile(eager),
    }
    versions = {"torch": str(torch.__version__)}
    with_entropy = set(entries)
    for name, (package, load, has_entropy) in _PEERS.items():
        try:
            entries[name] = load()
            versions[name] = version(package)
        except (ImportError, PackageNotFoundError) as error:
            versions[name] = f"not measured: {error}"
            continue
        if has_entropy:
            with_entropy.add(name)
    return entries, versions, with_entropy
