"""The types say what happened (`RolloutBatch`), what to learn of it (`TrainBatch`), and who learns.

Dimensions: B sequences, P prompt tokens (left-padded), C completion tokens (right-padded), K reward
functions. Logps are natural-log probabilities in float32. Masks are bool, True = keep. Every record
is immutable. `rollout` describes single samples, `batch` tensors, `algorithm` pure functions.
"""

from rlkit.types.algorithm import (
    Algorithm,
    FullKL,
    Idle,
    KLDirection,
    Loss,
    LossOutput,
    OutputSpec,
    PolicyOutput,
    Prepare,
    RolloutKind,
    Setting,
    Warmup,
)
from rlkit.types.batch import Column, RolloutBatch, TrainBatch
from rlkit.types.rollout import (
    Completion,
    Episode,
    EpisodeEnd,
    FinishReason,
    Generator,
    GeneratorDied,
    Group,
    Prompt,
    PromptRequest,
    RefillingGenerator,
    RewardFn,
    Rollout,
    SamplingConfig,
    ScoredRollout,
    TurnRecord,
)

__all__ = [
    "Algorithm",
    "Column",
    "Completion",
    "Episode",
    "EpisodeEnd",
    "FinishReason",
    "FullKL",
    "Generator",
    "GeneratorDied",
    "Group",
    "Idle",
    "KLDirection",
    "Loss",
    "LossOutput",
    "OutputSpec",
    "PolicyOutput",
    "Prepare",
    "Prompt",
    "PromptRequest",
    "RefillingGenerator",
    "RewardFn",
    "Rollout",
    "RolloutBatch",
    "RolloutKind",
    "SamplingConfig",
    "ScoredRollout",
    "Setting",
    "TrainBatch",
    "TurnRecord",
    "Warmup",
]
