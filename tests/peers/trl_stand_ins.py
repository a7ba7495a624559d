"""Stand-ins for what TRL's trainers are made of: one process, no model, a generator that knows."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from peers.ours import END, GROUP, WORD, Case
from torch import Tensor

from rlkit.types import RolloutBatch

PAD = 0
POLICY, REFERENCE = "policy", "reference"


class OneProcess:
    """What the trainers use of accelerate's Accelerator, for one process."""

    num_processes, process_index = 1, 0
    sync_gradients = is_main_process = True
    device = torch.device("cpu")

    def gather(self, x: Tensor) -> Tensor:
        return x

    gather_for_metrics = gather

    def reduce(self, x: Tensor, reduction: str = "sum") -> Tensor:
        return x

    def pad_across_processes(self, x: Tensor, dim: int = 0, pad_index: float = 0) -> Tensor:
        return x


class Model:
    """A model that is only ever asked whether it trains."""

    training = True
    is_gradient_checkpointing = False

    def __init__(self, name: str) -> None:
        self.name = name

    def train(self) -> None:
        pass


def trainer_state(case: Case, *, splits: int = 1, **attributes: object) -> SimpleNamespace:
    """The attributes that GRPOTrainer and RLOOTrainer share, and `attributes`."""
    rollout = case.rollout
    logps = {POLICY: rollout.old_logps, REFERENCE: rollout.ref_logps}
    return SimpleNamespace(
        **{"mask_truncated_completions": False} | attributes,
        accelerator=OneProcess(),
        model=Model(POLICY),
        ref_model=Model(REFERENCE),
        args=SimpleNamespace(
            per_device_train_batch_size=len(rollout),
            steps_per_generation=splits,
            gradient_accumulation_steps=splits,
            gradient_checkpointing_kwargs=None,
        ),
        num_generations=GROUP,
        reward_funcs=[None, None],
        reward_func_names=["a", "b"],
        reward_weights=rollout.reward_weights,
        environment_factories=None,
        environments=None,
        tools=None,
        pad_to_multiple_of=None,
        _tokenizer=SimpleNamespace(pad_token_id=PAD),
        eos_token_ids=[END],
        aux_loss_enabled=False,
        _metrics={"train": defaultdict(list)},
        _logs={
            "prompt": [],
            "completion": [],
            "rewards": defaultdict(list),
            "advantages": [],
            "extra": defaultdict(list),
        },
        _pending_extra_logs=defaultdict(list),
        _pending_metrics=defaultdict(list),
        _calculate_rewards=answers(rollout.reward_components.clone()),
        _get_per_token_logps_and_entropies=lambda model, *_, **__: (logps[model.name], None, None),
    )


def prompts(rollout: RolloutBatch) -> list[dict[str, str]]:
    """One data set row per completion."""
    return [{"prompt": ""} for _ in range(len(rollout))]


def generated(rollout: RolloutBatch) -> tuple[list[list[int]], list[list[int]]]:
    """Prompt ids and completion ids as lists without padding."""
    return [[WORD]] * len(rollout), ragged(rollout.completion_ids, rollout)


def ragged(x: Tensor, rollout: RolloutBatch) -> list[list[Any]]:
    """Rows of `x` without padding."""
    return [row[mask].tolist() for row, mask in zip(x, rollout.completion_mask, strict=True)]


def answers(result: object) -> Callable[..., Any]:
    """A function of anything that always returns `result`."""
    return lambda *args, **kwargs: result
