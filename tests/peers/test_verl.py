"""rlkit against verl 0.9, from rewards to the gradient of the loss."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from peers.ledger import Ledger
from peers.ours import Case, Objective, random_case
from peers.verl_peer import Verl, VerlOptions

from rlkit.algorithms.objective.correction import correction_weights

pytestmark = pytest.mark.peers
every_seed = pytest.mark.parametrize("seed", range(5))
PEER = "verl"
WHITENED = 1e3
"""Scale of rewards and values where verl whitens: it adds 1e-8 to the variance, rlkit to the
standard deviation or nothing, which cannot be told apart at this scale."""

EPS = "kl=none algorithm.advantage.eps=1e-6"
TOKENS = f"{EPS} algorithm.aggregation=token_mean"

# What it is, how rlkit is told, how verl is told.
CASES: dict[str, tuple[str, VerlOptions]] = {
    "PPO clip": (TOKENS, VerlOptions()),
    "clip-higher": (f"{TOKENS} ratio=clip_higher", VerlOptions(clip_high=0.28)),
    "dual clip": (f"{TOKENS} ratio=dual_clip", VerlOptions(clip_c=3.0)),
    "GSPO": (
        f"algorithm=gspo {EPS}",
        VerlOptions(loss="gspo", aggregation="seq-mean-token-mean", clip_low=3e-4, clip_high=4e-4),
    ),
    "GSPO, token mean": (
        f"algorithm=gspo {TOKENS} ratio=gspo_token ratio.clip_low=0.2 ratio.clip_high=0.2",
        VerlOptions(loss="gspo"),
    ),
    "CISPO": (
        f"algorithm=cispo {EPS}",
        VerlOptions(loss="cispo", clip_low=1.0, clip_high=4.0),
    ),
    "CISPO, both bounds": (
        f"algorithm=cispo {EPS} ratio.clip_low=0.2 ratio.clip_high=0.2",
        VerlOptions(loss="cispo"),
    ),
    "GMPO": (f"algorithm=gmpo {EPS}", VerlOptions(loss="geo_mean", clip_low=0.4, clip_high=0.4)),
    "Dr. GRPO advantage": (f"{TOKENS} algorithm.advantage.scale=none", VerlOptions(scale=False)),
    "RLOO advantage": (
        "algorithm=rloo kl=none ratio=token algorithm.aggregation=token_mean",
        VerlOptions(advantage="rloo"),
    ),
    "RLOO advantage, k1 in the reward": (
        "algorithm=rloo ratio=token algorithm.aggregation=token_mean",
        VerlOptions(advantage="rloo", reward_kl=True),
    ),
    "sequence mean of token means": (EPS, VerlOptions(aggregation="seq-mean-token-mean")),
    "sequence mean of token sums": (
        f"{EPS} algorithm.aggregation=sequence_sum",
        VerlOptions(aggregation="seq-mean-token-sum"),
    ),
    "constant length": (
        f"{EPS} algorithm.aggregation=constant_length",
        VerlOptions(aggregation="seq-mean-token-sum-norm"),
    ),
}

KL_CASES = {
    "k1": "kl=reverse_k1",
    "k2": "kl=reverse_k2",
    "k3": "kl=reverse_k3",
    "k1+": "kl=reverse_k1 kl.gradient=straight_through",
    "k2+": "kl=reverse_k2 kl.gradient=straight_through",
    "k3+": "kl=reverse_k3_straight",
}

CORRECTIONS: dict[str, tuple[str, VerlOptions]] = {
    "token, truncated": ("correction=token_tis", VerlOptions(weights="token", threshold=2.0)),
    "token, masked": ("correction=token_mask", VerlOptions(weights="token", threshold="0.5_2.0")),
    "sequence, truncated": (
        "correction=sequence_tis",
        VerlOptions(weights="sequence", threshold=2.0),
    ),
    "sequence, masked": (
        "correction=sequence_mask correction.low=0.1",
        VerlOptions(weights="sequence", threshold="0.1_3.0"),
    ),
    "sequence, no bound": (
        "correction=sequence_is",
        VerlOptions(weights="sequence", threshold=float("inf")),
    ),
}

WHITENED_CASES: dict[str, tuple[str, VerlOptions]] = {
    "REINFORCE++": (
        "algorithm=reinforce_pp algorithm.advantage.eps=0",
        VerlOptions(advantage="reinforce_plus_plus", reward_kl=True),
    ),
    "REINFORCE++ with group baseline": (
        "algorithm=reinforce_pp kl=none algorithm.advantage.baseline=group_mean"
        " algorithm.advantage.eps=0",
        VerlOptions(advantage="reinforce_plus_plus_baseline"),
    ),
    "PPO": (
        "algorithm=ppo kl=none",
        VerlOptions(advantage="gae", value_coef=0.1),
    ),
    "PPO, k1 in the reward, gamma 0.9": (
        "algorithm=ppo algorithm.gamma=0.9 algorithm.lam=0.8 algorithm.value_clip=0.5",
        VerlOptions(
            advantage="gae", value_coef=0.1, reward_kl=True, gamma=0.9, lam=0.8, value_clip=0.5
        ),
    ),
}


def case_for(options: VerlOptions, seed: int) -> Case:
    """verl adds 1e-8 to the length of a row: 1e-9 of the loss, unless rows are long."""
    by_rows = options.loss in ("sapo", "geo_mean") or options.aggregation == "seq-mean-token-mean"
    return random_case(seed, shortest=10 if by_rows else 1)


@every_seed
@pytest.mark.parametrize("quantity", CASES)
def test_losses_and_aggregations(quantity: str, seed: int, verl: Verl, ledger: Ledger) -> None:
    switches, options = CASES[quantity]
    case, ours = case_for(options, seed), Objective(*switches.split())
    theirs = verl.loss(options, case)
    ledger.agree(PEER, quantity, switches, ours.loss(case), theirs, case.leaves)


def test_sapo_at_its_default_temperatures(verl: Verl) -> None:
    switches = f"{EPS} ratio=sapo"
    options = VerlOptions(loss="sapo", aggregation="seq-mean-token-mean")
    case, ours = case_for(options, seed=0), Objective(*switches.split())
    theirs = verl.loss(options, case)
    Ledger().agree(PEER, "SAPO", switches, ours.loss(case), theirs, case.leaves)


@every_seed
def test_sapo(seed: int, verl: Verl, ledger: Ledger) -> None:
    switches = f"{EPS} ratio=sapo ratio.tau_negative=1.25"
    options = VerlOptions(loss="sapo", aggregation="seq-mean-token-mean", tau_neg=1.25)
    case, ours = case_for(options, seed), Objective(*switches.split())
    theirs = verl.loss(options, case)
    ledger.agree(PEER, "SAPO", switches, ours.loss(case), theirs, case.leaves)


@every_seed
@pytest.mark.parametrize("aggregation", ["token-mean", "seq-mean-token-mean"])
@pytest.mark.parametrize("penalty", KL_CASES)
def test_kl_in_the_loss(
    penalty: str, aggregation: str, seed: int, verl: Verl, ledger: Ledger
) -> None:
    """verl cuts k3 at 10, which log-ratios of at most 2.3 do not reach."""
    ours_of = {"token-mean": "token_mean", "seq-mean-token-mean": "sequence_mean"}
    kl = KL_CASES[penalty]
    switches = f"{kl} algorithm.advantage.eps=1e-6 algorithm.aggregation={ours_of[aggregation]}"
    options = VerlOptions(kl_penalty=penalty, aggregation=aggregation)
    case, ours = case_for(options, seed).within(2.3), Objective(*switches.split())
    theirs = verl.loss(options, case)
    quantity = f"PPO clip and {penalty}, {aggregation}"
    ledger.agree(PEER, quantity, switches, ours.loss(case), theirs, case.leaves)


@every_seed
@pytest.mark.parametrize("loss", ["PPO clip", "dual clip", "CISPO", "GSPO, token mean"])
@pytest.mark.parametrize("weights", CORRECTIONS)
def test_rollout_correction(loss: str, weights: str, seed: int, verl: Verl, ledger: Ledger) -> None:
    (base, options), (correction, bounds) = CASES[loss], CORRECTIONS[weights]
    switches = f"{base} {correction}"
    options = replace(options, weights=bounds.weights, threshold=bounds.threshold)
    case, ours = case_for(options, seed), Objective(*switches.split())
    theirs = verl.loss(options, case)
    quantity = f"{loss}, weights: {weights}"
    ledger.agree(PEER, quantity, switches, ours.loss(case), theirs, case.leaves)


@every_seed
@pytest.mark.parametrize("quantity", WHITENED_CASES)
def test_from_rewards_through_whitening(
    quantity: str, seed: int, verl: Verl, ledger: Ledger
) -> None:
    """Advantages, returns and the loss that they make, value loss included."""
    switches, options = WHITENED_CASES[quantity]
    case = random_case(seed, reward_scale=WHITENED)
    ours = Objective(*switches.split())
    batch, mask = ours.prepare(case), case.mask
    name = f"{quantity}, advantages"
    ledger.same_values(
        PEER, name, switches, batch.advantages, lambda: verl.advantages(options, case)[0] * mask
    )
    if batch.returns is not None:
        name = f"{quantity}, returns"
        ledger.same_values(
            PEER, name, switches, batch.returns, lambda: verl.advantages(options, case)[1] * mask
        )
    ledger.agree(PEER, quantity, switches, ours.loss(case), verl.loss(options, case), case.leaves)


@every_seed
@pytest.mark.parametrize("weights", CORRECTIONS)
def test_correction_weights(weights: str, seed: int, verl: Verl, ledger: Ledger) -> None:
    """The weights themselves, token by token."""
    switches, options = CORRECTIONS[weights]
    case = random_case(seed)
    config = Objective(*switches.split()).correction
    old, mask = case.rollout.old_logps, case.rollout.completion_mask
    assert old is not None
    ours = correction_weights(config, old, case.rollout.sampling_logps, mask) * case.mask

    def theirs() -> torch.Tensor:
        found = verl.weights(options, case)
        assert found is not None
        return found

    ledger.same_values(PEER, f"weights: {weights}", switches, ours, theirs)
