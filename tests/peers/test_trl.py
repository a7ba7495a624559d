"""rlkit against TRL 1.16, from rewards to the gradient of the loss."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from peers.ledger import Ledger
from peers.ours import WIDTH, Case, Objective, random_case
from peers.trl_peer import TRL, GRPOOptions, OnlineDPOOptions

from rlkit.functional import overlong_penalty

pytestmark = pytest.mark.peers
every_seed = pytest.mark.parametrize("seed", range(5))
PEER = "TRL"

# What it is, how rlkit is told, how TRL is told.
GRPO_CASES: dict[str, tuple[str, GRPOOptions]] = {
    "GRPO": ("kl=none", GRPOOptions()),
    "GRPO, one update": ("kl=none", GRPOOptions(num_iterations=1)),
    "GRPO, k3": ("", GRPOOptions(beta=0.04, use_bias_correction_kl=False)),
    "GRPO, k3, bias-corrected": ("kl=reverse_k3_corrected", GRPOOptions(beta=0.04)),
    "GRPO, k3, bias-corrected, one update": (
        "kl=reverse_k3_corrected",
        GRPOOptions(beta=0.04, num_iterations=1),
    ),
    "GRPO, no scale": ("kl=none algorithm.advantage.scale=none", GRPOOptions(scale_rewards="none")),
    "GRPO, batch scale": (
        "kl=none algorithm.advantage.scale=batch_std",
        GRPOOptions(scale_rewards="batch"),
    ),
    "GDPO": (
        "kl=none algorithm.advantage.combine=normalize_each",
        GRPOOptions(multi_objective_aggregation="normalize_then_sum"),
    ),
    "two-sided clip": ("kl=none ratio=two_sided", GRPOOptions(delta=4.0)),
    "entropy bonus": ("kl=none algorithm.entropy_coef=0.01", GRPOOptions(entropy_coef=0.01)),
    "entropy mask": (
        "kl=none algorithm.entropy_fraction=0.2",
        GRPOOptions(top_entropy_quantile=0.2),
    ),
    "bnpo": ("algorithm=bnpo kl=none", GRPOOptions(loss_type="bnpo")),
    "bnpo, k3": (
        "algorithm=bnpo",
        GRPOOptions(loss_type="bnpo", beta=0.04, use_bias_correction_kl=False),
    ),
    "Unsloth, February 2025": (
        "algorithm=unsloth_2025",
        GRPOOptions(loss_type="bnpo", beta=0.04, use_bias_correction_kl=False, num_iterations=1),
    ),
    "Dr. GRPO": (
        "algorithm=dr_grpo",
        GRPOOptions(loss_type="dr_grpo", scale_rewards="none"),
    ),
    "Dr. GRPO, k3, bias-corrected": (
        "algorithm=dr_grpo kl=reverse_k3_corrected",
        GRPOOptions(loss_type="dr_grpo", scale_rewards="none", beta=0.04),
    ),
    "DAPO": (
        "algorithm=dapo algorithm.overlong_fraction=0",
        GRPOOptions(loss_type="dapo", epsilon_high=0.28),
    ),
    "DAPO, k3, bias-corrected": (
        "algorithm=dapo algorithm.overlong_fraction=0 kl=reverse_k3_corrected",
        GRPOOptions(loss_type="dapo", epsilon_high=0.28, beta=0.04),
    ),
    "DAPO, overlong filtering": (
        "algorithm=dapo algorithm.overlong_fraction=0 algorithm.mask_truncated=true",
        GRPOOptions(loss_type="dapo", epsilon_high=0.28, mask_truncated_completions=True),
    ),
    "CISPO": ("algorithm=cispo", GRPOOptions(loss_type="cispo", epsilon_high=5.0)),
    "CISPO, k3": (
        "algorithm=cispo kl=reverse_k3",
        GRPOOptions(loss_type="cispo", epsilon_high=5.0, beta=0.04, use_bias_correction_kl=False),
    ),
    "SAPO": (
        "kl=none ratio=sapo ratio.tau_negative=1.25",
        GRPOOptions(loss_type="sapo", sapo_temperature_neg=1.25),
    ),
    "SAPO, k3, bias-corrected": (
        "kl=reverse_k3_corrected ratio=sapo ratio.tau_negative=1.25",
        GRPOOptions(loss_type="sapo", beta=0.04, sapo_temperature_neg=1.25),
    ),
    "GSPO": (
        "algorithm=gspo",
        GRPOOptions(importance_sampling_level="sequence", epsilon=3e-4, epsilon_high=4e-4),
    ),
    "GSPO, wide clip, k3": (
        "algorithm=gspo kl=reverse_k3 ratio.clip_low=0.2 ratio.clip_high=0.2",
        GRPOOptions(importance_sampling_level="sequence", beta=0.04, use_bias_correction_kl=False),
    ),
}

# `correction` options, and bounds that the random weights do cross.
CORRECTIONS: dict[str, tuple[str, GRPOOptions]] = {
    "token weights, truncated": (
        "correction=token_tis",
        GRPOOptions(is_mode="token_truncate", is_max=2.0),
    ),
    "token weights, truncated at both ends": (
        "correction=token_tis correction.low=0.5",
        GRPOOptions(is_mode="token_truncate", is_min=0.5, is_max=2.0),
    ),
    "token weights, masked": (
        "correction=token_mask",
        GRPOOptions(is_mode="token_mask", is_min=0.5, is_max=2.0),
    ),
    "sequence weights, truncated": (
        "correction=sequence_tis",
        GRPOOptions(is_mode="sequence_truncate", is_max=2.0),
    ),
    "sequence weights, masked": (
        "correction=sequence_mask",
        GRPOOptions(is_mode="sequence_mask", is_max=3.0),
    ),
    "sequence weights, no bound": (
        "correction=sequence_is",
        GRPOOptions(is_mode="sequence_truncate", is_max=float("inf")),
    ),
}


def with_missing_rewards(case: Case) -> Case:
    """Some reward functions do not apply to some rows, and none to a few."""
    components = case.rollout.reward_components.clone()
    components[1::5, 0] = torch.nan
    components[2::7, 1] = torch.nan
    components[::9] = torch.nan
    rewards = (components * case.rollout.reward_weights).nansum(dim=1)
    rewards = rewards.masked_fill(components.isnan().all(dim=1), torch.nan)
    rollout = replace(case.rollout, reward_components=components)
    return replace(case, rollout=rollout).with_rewards(rewards)


def with_missing_sampling_logps(case: Case) -> Case:
    """The generator did not report the probability of some tokens."""
    logps = case.rollout.sampling_logps.clone()
    logps[::3, ::4] = torch.nan
    return replace(case, rollout=replace(case.rollout, sampling_logps=logps))


def objective_of(switches: str, options: GRPOOptions) -> Objective:
    return Objective(*switches.split(), updates=options.num_iterations)


@every_seed
@pytest.mark.parametrize("quantity", GRPO_CASES)
def test_grpo(quantity: str, seed: int, trl: TRL, ledger: Ledger) -> None:
    switches, options = GRPO_CASES[quantity]
    case, ours = random_case(seed), objective_of(switches, options)
    theirs = trl.grpo_loss(options, case)
    ledger.agree(PEER, quantity, switches, ours.loss(case), theirs, case.leaves)


@every_seed
@pytest.mark.parametrize("loss", ["GRPO", "DAPO", "CISPO", "SAPO", "GSPO, wide clip, k3"])
@pytest.mark.parametrize("weights", CORRECTIONS)
def test_sampler_correction(loss: str, weights: str, seed: int, trl: TRL, ledger: Ledger) -> None:
    (base, options), (correction, bounds) = GRPO_CASES[loss], CORRECTIONS[weights]
    switches = f"{base} {correction}"
    options = replace(options, is_mode=bounds.is_mode, is_min=bounds.is_min, is_max=bounds.is_max)
    case = with_missing_sampling_logps(random_case(seed))
    ours, theirs = objective_of(switches, options), trl.grpo_loss(options, case)
    ledger.agree(PEER, f"{loss}, {weights}", switches, ours.loss(case), theirs, case.leaves)


@every_seed
@pytest.mark.parametrize(
    "quantity", ["GRPO, k3", "GRPO, no scale", "GRPO, batch scale", "GDPO", "DAPO"]
)
def test_missing_rewards(quantity: str, seed: int, trl: TRL, ledger: Ledger) -> None:
    switches, options = GRPO_CASES[quantity]
    case = with_missing_rewards(random_case(seed))
    ours, theirs = objective_of(switches, options), trl.grpo_loss(options, case)
    name = f"{quantity}, missing rewards"
    ledger.agree(PEER, name, switches, ours.loss(case), theirs, case.leaves)


@every_seed
@pytest.mark.parametrize("quantity", ["GRPO, k3", "DAPO", "bnpo, k3", "Dr. GRPO", "CISPO", "GSPO"])
def test_micro_batches(quantity: str, seed: int, trl: TRL, ledger: Ledger) -> None:
    """Gradients accumulated over 4 micro-batches of equal size but unequal numbers of tokens."""
    switches, options = GRPO_CASES[quantity]
    case, ours = random_case(seed), objective_of(switches, options)
    theirs = trl.grpo_loss(options, case, splits=4)
    name = f"{quantity}, 4 micro-batches"
    ledger.agree(PEER, name, switches, ours.loss(case, splits=4), theirs, case.leaves)


@every_seed
@pytest.mark.parametrize("beta", [0.0, 0.04])
def test_gmpo(beta: float, seed: int, trl: TRL, ledger: Ledger) -> None:
    switches = "algorithm=gmpo" if beta == 0.0 else "algorithm=gmpo kl=reverse_k3"
    options = GRPOOptions(epsilon=0.4, epsilon_high=0.4, beta=beta)
    case, ours = random_case(seed), objective_of(switches, options)
    theirs = trl.grpo_loss(options, case, gmpo=True)
    quantity = "GMPO" if beta == 0.0 else "GMPO, k3"
    ledger.agree(PEER, quantity, switches, ours.loss(case), theirs, case.leaves)


@every_seed
@pytest.mark.parametrize(
    ("quantity", "switches", "beta", "whiten"),
    [
        ("RLOO, k1 in the reward", "algorithm=rloo kl.beta=0.05", 0.05, False),
        ("RLOO", "algorithm=rloo kl=none", 0.0, False),
        ("RLOO, whitened", "algorithm=rloo kl=none algorithm.advantage.scale=whiten", 0.0, True),
    ],
)
@pytest.mark.parametrize("missing", [False, True])
def test_rloo(
    quantity: str,
    switches: str,
    beta: float,
    whiten: bool,
    missing: bool,
    seed: int,
    trl: TRL,
    ledger: Ledger,
) -> None:
    case = with_missing_rewards(random_case(seed)) if missing else random_case(seed)
    name = f"{quantity}, missing rewards" if missing else quantity
    ours, theirs = (
        Objective(*switches.split()),
        trl.rloo_loss(case, beta=beta, normalize_advantages=whiten),
    )
    ledger.agree(PEER, name, switches, ours.loss(case), theirs, case.leaves)


@every_seed
@pytest.mark.parametrize(
    ("quantity", "switches", "options"),
    [
        ("online DPO", "", OnlineDPOOptions()),
        ("online DPO, neighbours", "algorithm.pairs=neighbours", OnlineDPOOptions()),
        ("online DPO, IPO", "algorithm.loss=ipo", OnlineDPOOptions(loss_type="ipo")),
        (
            "online DPO, missing-EOS penalty",
            "algorithm.missing_eos_penalty=0.7 algorithm.beta=0.3",
            OnlineDPOOptions(missing_eos_penalty=0.7, beta=0.3),
        ),
    ],
)
def test_online_dpo(
    quantity: str,
    switches: str,
    options: OnlineDPOOptions,
    seed: int,
    trl: TRL,
    ledger: Ledger,
) -> None:
    """Two completions a prompt; every third pair is a tie, which TRL trains on."""
    case = random_case(seed, group=2)
    rewards = case.rollout.rewards.clone()
    rewards[1::6] = rewards[0::6]
    case = case.with_rewards(rewards)
    switches = f"algorithm=online_dpo algorithm.ties=first {switches}".strip()
    ours, theirs = Objective(*switches.split(), group=2), trl.online_dpo_loss(options, case)
    ledger.agree(PEER, quantity, switches, ours.loss(case), theirs, case.leaves)


@every_seed
def test_overlong_penalty(seed: int, trl: TRL, ledger: Ledger) -> None:
    mask = random_case(seed).rollout.completion_mask
    ours = overlong_penalty(mask, max_length=WIDTH, buffer=4.0, scale=1.0)
    ids = [[0] * int(n) for n in mask.sum(dim=1)]
    ledger.same_values(
        PEER,
        "soft overlong penalty",
        "overlong_penalty()",
        ours,
        lambda: torch.tensor(trl.overlong(WIDTH, 4)(ids)),
    )


@every_seed
@pytest.mark.parametrize("quantity", ["GRPO, k3", "DAPO", "two-sided clip"])
def test_metrics_under_trls_names(quantity: str, seed: int, trl: TRL) -> None:
    """TRL casts what it counts to float32."""
    switches, options = GRPO_CASES[quantity]
    case = random_case(seed)
    ours = objective_of(switches, options).run(case, case.leaves).metrics
    theirs = trl.grpo_metrics(options, case)
    shared = set(ours) & set(theirs)
    assert {"entropy", "clip_ratio/low_mean", "clip_ratio/high_mean"} <= shared
    for name in shared:
        assert float(ours[name]) == pytest.approx(theirs[name], abs=1e-6), name
