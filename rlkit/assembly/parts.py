"""What a run needs before it has a folder: the expensive and the checked, in one place."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from rlkit.algorithms import Warmup
from rlkit.config import Config
from rlkit.models.load import BaseModel
from rlkit.models.save import MODEL_FOLDER, save_model
from rlkit.plan.device import Meter
from rlkit.plan.of_config import Planned
from rlkit.policy.full_weights import FullWeights
from rlkit.policy.lora import LoRA
from rlkit.policy.lora_files import ADAPTER_FOLDER, save_adapter
from rlkit.policy.policy import Policy
from rlkit.rewards.pool import RewardPool
from rlkit.tasks import Split, Task, train_indices
from rlkit.tasks.render import render_all
from rlkit.types import Algorithm, Prompt, SamplingConfig, Setting

if TYPE_CHECKING:
    from rlkit.generation.vllm.engine import Engine
    from rlkit.generation.vllm.lora import Injector


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """The expensive and the checked: what a run needs before it has a folder."""

    config: Config
    """As the user wrote it, `auto` resolved: the run's identity."""
    planned: Planned
    """The memory plan, and the configuration that asks for exactly what it gives."""
    meter: Meter
    """Measures what the run takes of the device."""
    device: torch.device
    base: BaseModel
    policy: Policy
    task: Task
    rewards: RewardPool
    engine: Engine | None
    """The generator's own engine, started before the model whose weights it may share."""
    injector: Injector | None
    """Hands the adapter to `engine`."""
    resources: ExitStack
    """Ends reward processes, engine and generator, the last started first."""
    algorithm: Algorithm
    warmup: Warmup | None
    setting: Setting
    sampling: SamplingConfig
    train: Split
    """The task's training split, without prompts that are too long if those are dropped."""
    eval_prompts: Sequence[Prompt]

    def close(self) -> None:
        """End the generator, its engine and the reward processes; idempotent."""
        self.resources.close()

    def save(self, run_dir: Path) -> None:
        """Write what was learnt: `adapter/` in PEFT's format, or the whole `model/`."""
        tuning, base = self.policy.tuning, self.base
        if isinstance(tuning, LoRA):
            folder = run_dir / ADAPTER_FOLDER
            save_adapter(folder, tuning, self.policy.adapter, base_model=base.location)
        elif isinstance(tuning, FullWeights):
            weights = tuning.copies(self.policy.adapter)
            save_model(run_dir / MODEL_FOLDER, base.model, base.tokenizer, weights)

    def algorithm_at(self, step: int) -> Algorithm:
        """The algorithm of a step: the warm-up's at first, if there is one."""
        warming_up = self.warmup is not None and step < self.warmup.num_steps
        return self.warmup.algorithm if self.warmup and warming_up else self.algorithm

    def decode(self, ids: Sequence[int]) -> str:
        """Token ids to text without special tokens."""
        # Without clean-up: it would drop spaces before punctuation, which the model did sample.
        return str(
            self.base.tokenizer.decode(
                list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
        )

    def prompts(self, *, step: int, attempt: int) -> list[Prompt]:
        """The training prompts of a step."""
        config = self.config
        indices = train_indices(
            config.seed, step, config.prompts_per_step, self.train.size, attempt=attempt
        )
        return render_prompts(self.task, self.train, indices, self.base, config)


def render_prompts(
    task: Task, split: Split, indices: Iterable[int], base: BaseModel, config: Config
) -> list[Prompt]:
    """Examples `indices` of `split` as the model sees them."""
    return render_all(
        split,
        indices,
        base.tokenizer,
        max_length=task.max_prompt_length,
        overlong=config.task.overlong_prompts,
    ).prompts
