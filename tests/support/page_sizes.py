"""How a command of a page is made small enough for a test, and what this machine lacks for it."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

from rlkit.cli import COMMANDS

LOADS_A_MODEL = ("judge-check", "quantize", "reward-model")
"""Commands beside training that load `model.source`."""
EXTRAS = {
    "tracker=wandb": "wandb",
    "tracker=trackio": "trackio",
    "tracker=tensorboard": "tensorboard",
    "launcher=ray": "hydra_plugins.hydra_ray_launcher",
    "dataset=gcd": "reasoning_gym",
    "generator=vllm": "vllm",
}
"""A word of a command, and the module that it needs; `make test-pages` installs most of them."""
OF_A_CLUSTER = tuple(
    f"hydra.launcher.{key}" for key in ("partition", "gpus_per_node", "max_num_timeout", "ray.")
)
"""Options that only a cluster understands; `+` may stand before them."""

ONE_OF_A_GRID = ["algorithm=unsloth_2025", "kl.beta=0.04"]
"""They leave two jobs of the grid of `experiment=kl_detach`, which trains models."""


def lacking(words: list[str]) -> str:
    """Return what a command needs and this machine does not have; empty when it can run."""
    line = " ".join(words)
    if "tracker.space_id" in line:
        return "an account of Hugging Face"
    if "tracker=wandb" in line and "tracker.mode=offline" not in line:
        return "an account of Weights & Biases"
    for part, module in EXTRAS.items():
        if part in line and not is_there(module):
            return module
    return ""


def is_there(module: str) -> bool:
    """Return whether a module can be imported, without importing it."""
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def smaller(arguments: list[str], model: Path) -> list[str]:
    """Return the arguments of rlkit at the size of a test.

    Args:
        arguments: The words after `rlkit`, as printed.
        model: The folder of a model that takes the place of every other one.

    Returns:
        The words with this model, few steps and at most two seeds, on this machine alone.
    """
    name = arguments[0] if arguments else ""
    if name in COMMANDS:
        kept = [_with_model(word, model) for word in arguments]
        loads = name in LOADS_A_MODEL or any(w.startswith("--samples=") for w in arguments)
        named = any(w.startswith("model.source=") for w in kept)
        return [*kept, f"model.source={model}"] if loads and not named else kept
    if name.startswith("--") and name != "--config-dir":
        return arguments
    return _small_run(arguments, model)


def _small_run(arguments: list[str], model: Path) -> list[str]:
    tabular = any("tabular" in word for word in arguments)
    kept = [_cut(word) for word in arguments if not word.lstrip("+").startswith(OF_A_CLUSTER)]
    keys = {word.partition("=")[0] for word in kept}
    kept += ["device=cpu"] if "gpus" in keys and "device" not in keys else []
    kept += [] if "steps" in keys else ["steps=2"]
    kept += ["task.path=path/to/gsm8k"] if "task=gsm8k" in kept and "task.path" not in keys else []
    if "-m" in kept and any(word.startswith("experiment=") for word in kept):
        kept += [] if "seed" in keys else ["seed=0,1"]
    kept += ONE_OF_A_GRID if "experiment=kl_detach" in kept else []
    if engine := [word for word in kept if word.startswith("hydra/launcher=")]:
        kept += [f"hydra.sweep.dir=sweeps/{engine[0].partition('=')[2]}"]  # each does all itself
    if not tabular:
        kept = [word for word in kept if not word.startswith(("model=", "model.source="))]
        kept += [f"model.source={model}", "evaluation.num_prompts=4", "memory.torch_threads=1"]
    return kept


def _with_model(word: str, model: Path) -> str:
    if word.startswith(("model=", "model.source=")) and "tabular" not in word:
        return f"model.source={model}"
    return str(model) if word == "starter" else word


def _cut(word: str) -> str:
    key, _, value = word.partition("=")
    if key == "steps":
        return f"steps={2 if int(value) <= 12 else 4}"
    if key == "seed" and re.search(r",|range", value):
        return "seed=0,1"
    return word.replace("submitit_slurm", "submitit_local")  # Slurm's plugin without Slurm
