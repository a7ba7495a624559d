"""Replay: gradients against the trainer's own and against algebra; saved batches against damage."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from tiny_run import CPU, flat, tiny_run

from rlkit.algorithms import (
    AlgorithmConfig,
    CorrectionConfig,
    KLConfig,
    Objective,
    RatioConfig,
    build,
)
from rlkit.algorithms.grpo import GRPOConfig
from rlkit.algorithms.objective.advantage import AdvantageConfig, Baseline, Scale
from rlkit.algorithms.objective.aggregation import Aggregation
from rlkit.algorithms.objective.ratio import Clip
from rlkit.algorithms.online_dpo import OnlineDPOConfig
from rlkit.algorithms.ppo import PPOConfig
from rlkit.algorithms.rloo import RLOOConfig
from rlkit.policy.lora import LoRA
from rlkit.policy.policy import Policy, init_critic
from rlkit.tracking.base import StepRecord
from rlkit.training import checkpoint, rollout_files
from rlkit.training.optim import OptimConfig
from rlkit.training.progress import restore
from rlkit.training.replay import Replayed, cosines, replay
from rlkit.training.rollout_files import SavedRollouts
from rlkit.training.stopping import StopRequest
from rlkit.training.update import UpdateSettings
from rlkit.types import Algorithm, Column, KLDirection, Setting

SETTING = Setting(group_size=4, max_completion_length=6, updates_per_batch=1)
NO_KL = KLConfig(direction=KLDirection.none)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of five steps with checkpoints after 2, 4 and 5."""
    return trained(tmp_path_factory.mktemp("run"))[0]


def trained(
    folder: Path, *, num_steps: int = 5, optim: OptimConfig | None = None
) -> tuple[Path, list[StepRecord]]:
    trainer, state, tracker = tiny_run(folder, num_steps=num_steps, optim=optim)
    trainer.fit(state, stop=StopRequest())
    return folder, tracker.steps


def algorithm(
    config: AlgorithmConfig, kl: KLConfig = NO_KL, ratio: RatioConfig | None = None
) -> Algorithm:
    return build(Objective(config, kl, ratio or RatioConfig(), CorrectionConfig()), SETTING)


def settings(tokens_per_microbatch: int = 10_000) -> UpdateSettings:
    return UpdateSettings(
        optim=OptimConfig(),
        total_updates=1,
        temperature=1.0,
        tokens_per_microbatch=tokens_per_microbatch,
    )


def learner_at(run_dir: Path, step: int) -> Policy:
    """The policy that sampled the batch of `step`, from the run's own files."""
    _, state, _ = tiny_run(run_dir)
    if step > 0:
        folder = checkpoint.step_folder(run_dir / "checkpoints", step)
        restore(state, checkpoint.load(folder, device=CPU))
    assert isinstance(state.learner, Policy)
    return state.learner


def replayed(
    run_dir: Path, step: int, algorithms: dict[str, Algorithm], **budget: int
) -> dict[str, Replayed]:
    batch = rollout_files.load(run_dir, step, device=CPU).batch
    return replay(learner_at(run_dir, step), batch, algorithms, settings(**budget))


@pytest.mark.parametrize("step", [0, 2, 4])
def test_the_replayed_gradient_norm_is_the_one_the_trainer_clipped(
    tmp_path: Path, step: int
) -> None:
    run, records = trained(tmp_path, num_steps=step + 1)
    found = replayed(run, step, {"grpo": algorithm(GRPOConfig(group_size=4), KLConfig())})["grpo"]
    recorded = records[step].metrics
    assert recorded["grad_norm"] > 1e-3
    assert found.grad_norm == pytest.approx(recorded["grad_norm"], rel=1e-6)
    assert found.loss == pytest.approx(recorded["loss"], rel=1e-6, abs=1e-9)
    assert found.metrics["kl"] == pytest.approx(recorded["kl"], rel=1e-6)


def test_the_replayed_gradient_is_the_one_the_trainer_applied(tmp_path: Path) -> None:
    """Adam's first moment after one update is (1 - beta1) times the gradient."""
    optim = OptimConfig(learning_rate=0.02, max_grad_norm=1e9)
    run, _ = trained(tmp_path, num_steps=1, optim=optim)
    saved = checkpoint.load(run / "checkpoints/step-000001", device=CPU)
    names = saved.parameters.keys()
    applied = torch.cat([saved.moments[f"{name}/exp_avg"].flatten() for name in names]) / 0.1
    leaves = learner_at(run, 0).adapter
    order = torch.cat([torch.full((leaf.numel(),), i) for i, leaf in enumerate(leaves.values())])
    by_name = {name: i for i, name in enumerate(leaves)}
    found = replayed(run, 0, {"grpo": algorithm(GRPOConfig(group_size=4), KLConfig())})["grpo"]
    gradient = torch.cat([found.gradient[order == by_name[name]] for name in names])
    assert applied.norm() > 1e-3
    assert (gradient - applied).norm() < 1e-6 * applied.norm()


def test_dr_grpo_is_rloo_times_g_minus_1_over_g(run_dir: Path) -> None:
    """mean baseline: A = (G - 1) / G times the leave-one-out advantage, sample by sample."""
    shared = Aggregation.sequence_sum
    mean = GRPOConfig(group_size=4, aggregation=shared, advantage=AdvantageConfig(scale=Scale.none))
    others = RLOOConfig(group_size=4, aggregation=shared)
    assert others.advantage.baseline is Baseline.leave_one_out
    found = replayed(run_dir, 4, {"mean": algorithm(mean), "rloo": algorithm(others)})
    matrix = cosines([found["mean"].gradient, found["rloo"].gradient])
    assert found["rloo"].grad_norm > 1e-3
    assert float(matrix[0, 1]) == pytest.approx(1.0, abs=1e-6)
    assert found["mean"].grad_norm / found["rloo"].grad_norm == pytest.approx(3 / 4, rel=1e-6)


def test_without_detach_the_gradient_is_exactly_zero_and_has_no_direction(run_dir: Path) -> None:
    ratio = RatioConfig(detach=False, clip=Clip.none)
    grpo = GRPOConfig(group_size=4)
    algorithms = {"dead": algorithm(grpo, KLConfig(), ratio), "alive": algorithm(grpo, KLConfig())}
    found = replayed(run_dir, 0, algorithms)
    assert found["dead"].grad_norm == 0.0
    assert found["alive"].grad_norm > 1e-3
    matrix = cosines([result.gradient for result in found.values()])
    assert matrix[0].isnan().all()
    assert float(matrix[1, 1]) == pytest.approx(1.0, abs=1e-12)


def test_cosines_are_those_of_a_plain_loop_and_1_on_the_diagonal(run_dir: Path) -> None:
    algorithms = {
        "grpo": algorithm(GRPOConfig(group_size=4), KLConfig()),
        "rloo": algorithm(RLOOConfig(group_size=4, aggregation=Aggregation.sequence_sum)),
        "pairs": algorithm(OnlineDPOConfig(group_size=4)),
    }
    found = replayed(run_dir, 4, algorithms)
    vectors = [result.gradient.double() for result in found.values()]
    matrix = cosines([result.gradient for result in found.values()])
    for i, a in enumerate(vectors):
        for j, b in enumerate(vectors):
            expected = float(sum(a * b)) / float(sum(a * a) * sum(b * b)) ** 0.5
            assert float(matrix[i, j]) == pytest.approx(expected, abs=1e-10)
    assert torch.allclose(matrix.diagonal(), torch.ones(3, dtype=torch.float64), atol=1e-12)
    assert 0.0 < float(matrix[0, 2]) < 0.999


def test_cosines_of_vectors_longer_than_a_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlkit.training.replay._CHUNK", 3)
    one = torch.tensor([1.0, 0.0, 0.0, 0.0, 2.0, 0.0, 2.0])
    other = torch.tensor([0.0, 0.0, 4.0, 0.0, 0.0, 3.0, 0.0])
    mixed = torch.tensor([0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0])
    root = 2.0**-0.5
    expected = torch.tensor(
        [[1.0, 0.0, 2 / 3 * root], [0.0, 1.0, 0.6 * root], [2 / 3 * root, 0.6 * root, 1.0]],
        dtype=torch.float64,
    )
    assert torch.allclose(cosines([one, other, mixed]), expected, atol=1e-12)


def test_replay_changes_no_parameter_and_leaves_no_gradient(run_dir: Path) -> None:
    learner = learner_at(run_dir, 4)
    batch = rollout_files.load(run_dir, 4, device=CPU).batch
    before = flat(learner.named_parameters()).clone()
    algorithms = {"grpo": algorithm(GRPOConfig(group_size=4), KLConfig())}
    first = replay(learner, batch, algorithms, settings())["grpo"]
    second = replay(learner, batch, algorithms, settings())["grpo"]
    assert torch.equal(flat(learner.named_parameters()), before)
    assert all(leaf.grad is None for leaf in learner.named_parameters().values())
    assert torch.equal(first.gradient, second.gradient)
    assert batch.old_logps is None and batch.ref_logps is None


def test_micro_batches_do_not_matter(run_dir: Path) -> None:
    algorithms = {
        "grpo": algorithm(GRPOConfig(group_size=4), KLConfig()),
        "pairs": algorithm(OnlineDPOConfig(group_size=4)),
    }
    whole = replayed(run_dir, 4, algorithms)
    split = replayed(run_dir, 4, algorithms, tokens_per_microbatch=12)
    for name in algorithms:
        difference = (whole[name].gradient - split[name].gradient).norm()
        assert difference < 1e-5 * whole[name].grad_norm
        assert whole[name].num_tokens == split[name].num_tokens


def test_the_critics_gradient_is_left_out(run_dir: Path) -> None:
    """With values 0 the critic changes no advantage, so value_coef must not show."""
    learner = learner_at(run_dir, 4)
    assert isinstance(learner.tuning, LoRA)
    critic = init_critic(learner.tuning, num_hidden=32, seed=1, device=CPU)
    learner = replace(learner, critic=critic)
    batch = rollout_files.load(run_dir, 4, device=CPU).batch
    algorithms = {
        name: algorithm(PPOConfig(group_size=4, value_coef=value_coef))
        for name, value_coef in {"little": 0.1, "much": 10.0}.items()
    }
    found = replay(learner, batch, algorithms, settings())
    numel = sum(leaf.numel() for leaf in learner.adapter.values())
    assert found["little"].gradient.numel() == numel
    assert found["little"].grad_norm > 1e-3
    assert found["much"].loss > 2 * abs(found["little"].loss)
    # float32: the loss that is added does not touch the adapter.
    assert torch.equal(found["little"].gradient, found["much"].gradient)
    assert Column.values in algorithms["much"].needs


def test_tokens_used_are_those_of_the_loss_mask(run_dir: Path) -> None:
    batch = rollout_files.load(run_dir, 4, device=CPU).batch
    pairs = algorithm(OnlineDPOConfig(group_size=4))
    found = replayed(run_dir, 4, {"grpo": algorithm(GRPOConfig(group_size=4)), "pairs": pairs})
    assert found["grpo"].num_tokens == int(batch.completion_mask.sum())
    lengths, rewards = batch.completion_mask.sum(1).tolist(), batch.rewards.tolist()
    expected = 0
    for start in range(0, len(batch), 4):
        group = list(range(start, start + 4))
        best = max(group, key=lambda i: rewards[i])
        worst = min(group, key=lambda i: rewards[i])
        if rewards[best] > rewards[worst]:
            expected += lengths[best] + lengths[worst]
    assert found["pairs"].num_tokens == expected


def test_a_run_keeps_the_batches_whose_policy_it_can_restore(tmp_path: Path, run_dir: Path) -> None:
    """Checkpoints after 2, 4 and the last step, 5, of which two are kept."""
    assert rollout_files.saved_steps(run_dir) == [0, 4]
    assert not list((run_dir / "rollouts").glob("step-000002*"))
    run, _ = trained(tmp_path, num_steps=4)
    assert rollout_files.saved_steps(run) == [0, 2]


def test_what_is_saved_is_the_batch_the_trainer_saw(tmp_path: Path) -> None:
    run, records = trained(tmp_path, num_steps=3)
    saved = rollout_files.load(run, 2, device=CPU)
    samples = records[2].samples
    assert saved.batch.rewards.tolist() == pytest.approx([row.reward for row in samples])
    assert saved.batch.completion_mask.sum(1).tolist() == [row.num_tokens for row in samples]
    assert set(saved.batch.policy_version.tolist()) == {2}
    assert saved.reward_names == ("letter",)
    assert (saved.group_size, saved.temperature, saved.max_completion_length) == (4, 1.0, 6)


def saved_batch(run_dir: Path) -> SavedRollouts:
    saved = rollout_files.load(run_dir, 4, device=CPU)
    components = saved.batch.reward_components.clone()
    components[1, 0] = torch.nan
    return replace(
        saved, step=7, temperature=0.7, batch=replace(saved.batch, reward_components=components)
    )


def test_saving_and_loading_is_bitwise(run_dir: Path, tmp_path: Path) -> None:
    original = saved_batch(run_dir)
    rollout_files.save(tmp_path, original)
    rollout_files.save(tmp_path, original)
    found = rollout_files.load(tmp_path, 7, device=CPU)
    assert replace(found, batch=original.batch) == original
    for f in fields(original.batch):
        ours, theirs = getattr(found.batch, f.name), getattr(original.batch, f.name)
        if theirs is None:
            assert ours is None
        else:
            assert ours.dtype == theirs.dtype
            assert ours.numpy().tobytes() == theirs.numpy().tobytes()
    names = sorted(path.name for path in (tmp_path / "rollouts").iterdir())
    assert names == ["step-000007.json", "step-000007.safetensors"]


@pytest.mark.parametrize("name", ["step-000007.json", "step-000007.safetensors"])
@pytest.mark.parametrize("damage", ["flipped", "short", "gone"])
def test_a_damaged_file_is_named(run_dir: Path, tmp_path: Path, name: str, damage: str) -> None:
    rollout_files.save(tmp_path, saved_batch(run_dir))
    file = tmp_path / "rollouts" / name
    data = bytearray(file.read_bytes())
    if damage == "gone":
        file.unlink()
    elif damage == "short":
        file.write_bytes(data[: len(data) // 2])
    else:
        data[-3 if file.suffix == ".safetensors" else 0] ^= 1
        file.write_bytes(data)
    with pytest.raises(checkpoint.CheckpointError, match=name):
        rollout_files.load(tmp_path, 7, device=CPU)


def test_a_full_disk_leaves_no_half_written_batch(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_disk(file: Path, tensors: object) -> None:
        file.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(rollout_files, "write_tensors", full_disk)
    with pytest.raises(OSError, match="No space left"):
        rollout_files.save(tmp_path, saved_batch(run_dir))
    assert rollout_files.saved_steps(tmp_path) == []
    assert list((tmp_path / "rollouts").iterdir()) == []
