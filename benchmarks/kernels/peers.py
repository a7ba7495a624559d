"""The peers that the benchmark measures on the same tensors; each is used if it can be imported.

Every entry takes (hidden, weight, targets, entropy mode, transform) and returns per-row logps,
differentiable in `hidden`, and the entropy if it was asked for and the peer has one; ValueError if
it lacks the transform. Nothing here is needed, or copied, by the kernels themselves.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from rlkit.kernels.logps import EntropyMode, Impl, selected_logps
from rlkit.kernels.tilings import Tiling

Results = tuple[Tensor, Tensor | None]


class Transform(NamedTuple):
    """From h W^T to the logits: softcap(h W^T) / temperature."""

    temperature: float = 1.0
    softcap: float | None = None


Entry = Callable[[Tensor, Tensor, Tensor, EntropyMode, Transform], Results]


def rlkit_entry(impl: Impl, tiling: Tiling | None = None) -> Entry:
    """Return a path of rlkit's own, with the card's tiling or a forced one."""

    def run(
        hidden: Tensor, weight: Tensor, targets: Tensor, entropy: EntropyMode, transform: Transform
    ) -> Results:
        return selected_logps(
            hidden,
            weight,
            targets,
            temperature=transform.temperature,
            softcap=transform.softcap,
            entropy=entropy,
            impl=impl,
            tiling=tiling,
        )

    return run


def eager(
    hidden: Tensor, weight: Tensor, targets: Tensor, entropy: EntropyMode, transform: Transform
) -> Results:
    """All logits in memory."""
    logits = (hidden @ weight.T).float()
    if transform.softcap is not None:
        logits = transform.softcap * torch.tanh(logits / transform.softcap)
    logits = logits / transform.temperature
    logps = -cross_entropy(logits, targets, reduction="none")
    if entropy == EntropyMode.none:
        return logps, None
    with torch.set_grad_enabled(torch.is_grad_enabled() and entropy == EntropyMode.differentiable):
        p = logits.log_softmax(-1)
        return logps, -(p.exp() * p).sum(-1)


def _trl() -> Entry:
    from trl.kernels.chunked_logprob import ChunkedLogProbFunction

    def run(
        hidden: Tensor, weight: Tensor, targets: Tensor, entropy: EntropyMode, transform: Transform
    ) -> Results:
        outputs = () if entropy == EntropyMode.none else ("entropy",)
        out = ChunkedLogProbFunction.apply(
            hidden,
            weight,
            None,
            targets,
            transform.temperature,
            32768,
            transform.softcap,
            1.0,
            outputs,
        )
        return out[0], out[1]

    return run


def _liger() -> Entry:
    from liger_kernel.ops import LigerFusedLinearCrossEntropyFunction as Function

    def run(
        hidden: Tensor, weight: Tensor, targets: Tensor, entropy: EntropyMode, transform: Transform
    ) -> Results:
        _no_temperature(transform)
        nll: Tensor = Function.apply(
            hidden, weight, targets, None, None, -100, 0.0, 0.0, "none", transform.softcap
        )[0]
        return -nll, None

    return run


def _liger_chunked() -> Entry:
    from liger_kernel.chunked_loss.fused_linear_ppo import _ChunkedSelectiveLogProbFunction as F

    def run(
        hidden: Tensor, weight: Tensor, targets: Tensor, entropy: EntropyMode, transform: Transform
    ) -> Results:
        _no_softcap(transform)
        return F.apply(hidden, weight, targets, None, transform.temperature, 4096), None

    return run


def _cce() -> Entry:
    from cut_cross_entropy import linear_cross_entropy

    def run(
        hidden: Tensor, weight: Tensor, targets: Tensor, entropy: EntropyMode, transform: Transform
    ) -> Results:
        _no_temperature(transform)
        nll: Tensor = linear_cross_entropy(
            hidden, weight, targets, softcap=transform.softcap, reduction="none", impl="cce"
        )
        return -nll, None

    return run


def _unsloth() -> Entry:
    """Its one file alone: the package insists on being imported through `unsloth`."""
    package = importlib.util.find_spec("unsloth_zoo")
    if package is None or package.submodule_search_locations is None:
        raise ImportError("unsloth_zoo is not installed")
    path = Path(package.submodule_search_locations[0]) / "fused_losses" / "fused_linear.py"
    function = _load("unsloth_fused_linear", path).fused_linear_logprobs

    def run(
        hidden: Tensor, weight: Tensor, targets: Tensor, entropy: EntropyMode, transform: Transform
    ) -> Results:
        found = function(
            hidden,
            weight,
            targets,
            temperature=transform.temperature,
            logit_softcapping=transform.softcap or 0.0,
            return_entropy=entropy != EntropyMode.none,
            entropy_requires_grad=entropy == EntropyMode.differentiable,
        )
        return (found, None) if entropy == EntropyMode.none else found[:2]

    return run


def _quack() -> Entry:
    """Its gradient is that of a plain sum over the rows: less than a policy gradient needs."""
    from quack.linear_cross_entropy import chunked_linear_cross_entropy

    def run(
        hidden: Tensor, weight: Tensor, targets: Tensor, entropy: EntropyMode, transform: Transform
    ) -> Results:
        _no_temperature(transform)
        _no_softcap(transform)
        return -chunked_linear_cross_entropy(hidden, weight, targets, reduction="sum"), None

    return run


def _no_temperature(transform: Transform) -> None:
    if transform.temperature != 1.0:
        raise ValueError("has no temperature")


def _no_softcap(transform: Transform) -> None:
    if transform.softcap is not None:
        raise ValueError("has no softcap")


def _load(name: str, path: Path) -> ModuleType:
    import sys

    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"no module at {path}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


_PEERS: dict[str, tuple[str, Callable[[], Entry], bool]] = {
    "Unsloth": ("unsloth_zoo", _unsloth, True),
    "TRL": ("trl", _trl, True),
    "cut-cross-entropy": ("cut-cross-entropy", _cce, False),
    "Liger FLCE": ("liger-kernel", _liger, False),
    "Liger chunked": ("liger-kernel", _liger_chunked, False),
    "quack (sum)": ("quack-kernels", _quack, False),
}


def load_peers() -> tuple[dict[str, Entry], dict[str, str], set[str]]:
    """Entries by name, versions (or why a peer is missing), and which can give an entropy."""
    entries: dict[str, Entry] = {
        "rlkit triton": rlkit_entry(Impl.triton),
        "rlkit torch": rlkit_entry(Impl.torch),
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
