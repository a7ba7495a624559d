"""This module does the work of `rlkit reward-model`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from rlkit.assembly.device import resolve_device
from rlkit.launch.composing import register
from rlkit.launch.preflight import preflight
from rlkit.models.load import load_model
from rlkit.policy.lora import LoRA
from rlkit.policy.policy import new_policy
from rlkit.reward_models.adapter import SharedBase, save_reward_adapter
from rlkit.reward_models.pairs import read_pairs
from rlkit.reward_models.train import RewardTraining, TrainedReward, train_reward
from rlkit.rewards.judge.check import Rate
from rlkit.schema import content_hash


def lines(
    overrides: Sequence[str],
    pairs: str,
    out: str,
    counts: Mapping[str, int],
    held_out: float,
) -> Iterator[str]:
    """Train on `pairs`, write `out`, and yield what happens.

    Args:
        overrides: Options of the run that the reward model is for, `key=value`.
        pairs: The file of preferences.
        out: The folder to write.
        counts: Whole-number fields of `RewardTraining` that are given.
        held_out: Share of the prompts that is kept for the accuracy, in (0, 1).

    Raises:
        ValueError: An option breaks a rule or a file cannot be read, with one line.
    """
    folder, file = Path(out).expanduser(), Path(pairs).expanduser()
    if folder.exists():
        raise ValueError(f"out must be a new folder, got {folder}")
    preferences = read_pairs("pairs", file)
    register()
    (config, *others) = preflight(overrides)
    if others:
        raise ValueError("rlkit reward-model takes one model, not a sweep")
    options = RewardTraining(
        learning_rate=config.optim.learning_rate,
        max_grad_norm=config.optim.max_grad_norm,
        held_out=held_out,
        seed=config.seed,
    )._replace(**counts)
    device = resolve_device(config.device)
    loaded = load_model(config.model, device=device, say=print, quant=config.memory.quant)
    policy = new_policy(loaded, config.model, seed=config.seed)
    if not isinstance(policy.tuning, LoRA):
        raise ValueError("model.tuning must be lora for a reward model, got full")
    base = SharedBase(
        model=loaded.model,
        lora=policy.tuning,
        tokenizer=loaded.tokenizer,
        location=loaded.location,
    )
    yield f"{len(preferences)} pairs of {file}; base {config.model.source}"
    said: list[str] = []
    trained = train_reward(base, preferences, options, say=said.append)
    yield from said
    record = {
        "base": loaded.location,
        "pairs": str(file),
        "pairs_sha256": content_hash(file),
        **options._asdict(),
        **_numbers(trained),
    }
    save_reward_adapter(folder, trained.found, base, record=record)
    yield f"held-out accuracy {_rate(trained.accuracy)}"
    yield f"the chosen answer is the longer one in {_rate(trained.longer_is_chosen)}"
    yield f"standard deviation of the held-out scores: {trained.std:.3g}"
    yield f"{folder}: +reward.functions.rm.fn=reward_model"
    yield f"  +reward.functions.rm.options.source={folder}"


def _numbers(trained: TrainedReward) -> dict[str, object]:
    return {
        "trained_on": trained.num_trained_on,
        "held_out_pairs": trained.accuracy.total,
        "accuracy": trained.accuracy.share,
        "longer_is_chosen": trained.longer_is_chosen.share,
        "score_std": trained.std,
    }


def _rate(found: Rate) -> str:
    return f"{found.share:.3f} of {found.total} pairs, 95% [{found.low:.2f}, {found.high:.2f}]"
