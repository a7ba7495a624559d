"""This module makes the rewards of a run: processes for functions, and scorers of whole batches."""

from __future__ import annotations

import torch

from rlkit.assembly.targets import specs_of
from rlkit.config import Config
from rlkit.models.load import BaseModel
from rlkit.policy.lora import LoRA
from rlkit.policy.policy import Policy
from rlkit.reward_models.adapter import SharedBase
from rlkit.reward_models.options import Placement
from rlkit.reward_models.scorer import RewardModelScorer
from rlkit.reward_models.worker import IsolatedRewardModel
from rlkit.rewards import RewardSpec
from rlkit.rewards.judge.scorer import JudgeScorer
from rlkit.rewards.pool import RewardPool
from rlkit.rewards.scorers import BatchScorer
from rlkit.tasks import PromptStyle, Task


def reward_pool(config: Config, task: Task, device: torch.device) -> RewardPool:
    """Return the reward functions of a run, their workers started.

    Raises ValueError with one line when an option of a judge or a reward model breaks a rule.
    """
    specs = specs_of(config, task)
    is_chat = task.style is PromptStyle.chat
    scorers: dict[str, BatchScorer] = {}
    for spec in specs:
        if spec.fn == "judge":
            scorers[spec.name] = JudgeScorer(spec)
        elif spec.fn == "reward_model":
            scorers[spec.name] = _reward_model(spec, device, is_chat=is_chat)
    return RewardPool(specs, config.reward, scorers)


def start_rewards(pool: RewardPool, policy: Policy, base: BaseModel) -> None:
    """Load the reward models, those on the policy's base with its help.

    Raises ValueError with one line when a reward model does not fit or cannot be loaded.
    """
    for scorer in pool.scorers:
        if isinstance(scorer, RewardModelScorer) and scorer.shares_base:
            if not isinstance(policy.tuning, LoRA):
                raise ValueError(
                    f"{scorer.key}.source must be a classifier with model.tuning=full, got "
                    f"{scorer.options.source}, which needs the policy's frozen base"
                )
            scorer.bind(
                SharedBase(
                    model=base.model,
                    lora=policy.tuning,
                    tokenizer=base.tokenizer,
                    location=base.location,
                )
            )
    pool.start()


def _reward_model(spec: RewardSpec, device: torch.device, *, is_chat: bool) -> BatchScorer:
    scorer = RewardModelScorer(spec, device=device, is_chat=is_chat)
    if scorer.options.device is Placement.process and not scorer.shares_base:
        return IsolatedRewardModel(scorer, spec, is_chat=is_chat)
    return scorer
