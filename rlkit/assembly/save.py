"""This module writes what a run learnt into its folder."""

from __future__ import annotations

from pathlib import Path

from rlkit.models.load import BaseModel
from rlkit.models.save import MODEL_FOLDER, save_model
from rlkit.policy.full_weights import FullWeights
from rlkit.policy.lora import LoRA
from rlkit.policy.lora_files import ADAPTER_FOLDER, save_adapter
from rlkit.policy.policy import Policy


def save_trained(
    run_dir: Path, policy: Policy, base: BaseModel, *, rope_length: int | None
) -> None:
    """Write `adapter/` in PEFT's format, or the whole `model/` where all weights train.

    Args:
        run_dir: The run's folder.
        policy: What was trained.
        base: The model that it was trained on.
        rope_length: The run's `model.rope_length`.
    """
    tuning = policy.tuning
    if isinstance(tuning, LoRA):
        folder = run_dir / ADAPTER_FOLDER
        save_adapter(folder, tuning, policy.adapter, base_model=base.location)
    elif isinstance(tuning, FullWeights):
        weights = tuning.copies(policy.adapter)
        save_model(
            run_dir / MODEL_FOLDER, base.model, base.tokenizer, weights, rope_length=rope_length
        )
