"""rlkit against OpenRLHF 0.11, from rewards to the gradient of the loss."""

from __future__ import annotations

import pytest
from peers.ledger import Ledger
from peers.openrlhf_peer import OpenRLHF, OpenRLHFOptions
from peers.ours import Objective, random_case

pytestmark = pytest.mark.peers
every_seed = pytest.mark.parametrize("seed", range(5))
PEER = "OpenRLHF"

EPS = "kl=none algorithm.advantage.eps=1e-9"
TOKENS = f"{EPS} algorithm.aggregation=token_mean"
PLAIN_WHITENING = "algorithm.advantage.eps=0 algorithm.advantage.bessel=false"

# What it is, how rlkit is told, how OpenRLHF is told.
CASES: dict[str, tuple[str, OpenRLHFOptions]] = {
    "PPO clip": (TOKENS, OpenRLHFOptions()),
    "clip-higher": (f"{TOKENS} ratio=clip_higher", OpenRLHFOptions(clip_eps_high=0.28)),
    "sequence mean": (EPS, OpenRLHFOptions(token_level_loss=False)),
    "dual clip": (f"{TOKENS} ratio=dual_clip", OpenRLHFOptions(dual_clip=3.0)),
    "GSPO": (
        f"algorithm=gspo {EPS} ratio.clip_low=0.2 ratio.clip_high=0.2",
        OpenRLHFOptions(policy_loss_type="gspo"),
    ),
    "token weights, truncated": (
        f"{TOKENS} correction=token_tis",
        OpenRLHFOptions(
            is_correction_level="token",
            is_correction_mode="clip",
            is_correction_threshold=(0.0, 2.0),
        ),
    ),
    "token weights, masked": (
        f"{TOKENS} correction=token_mask",
        OpenRLHFOptions(is_correction_level="token", is_correction_threshold=(0.5, 2.0)),
    ),
    "soft overlong penalty": (
        f"{TOKENS} algorithm.overlong_fraction=0.25 algorithm.overlong_scale=0.5",
        OpenRLHFOptions(overlong_buffer_len=4, overlong_penalty_factor=0.5),
    ),
    "group_norm, k1 in the reward": (
        "kl=reverse_k1_advantage algorithm.advantage.eps=1e-9 algorithm.aggregation=token_mean",
        OpenRLHFOptions(kl_coef=0.04),
    ),
    "dr_grpo, k1 in the reward": (
        "kl=reverse_k1_advantage algorithm.advantage.scale=none algorithm.aggregation=token_mean",
        OpenRLHFOptions(estimator="dr_grpo", kl_coef=0.04),
    ),
    "rloo, k1 in the reward": (
        "algorithm=rloo kl=reverse_k1_advantage ratio=token algorithm.aggregation=token_mean",
        OpenRLHFOptions(estimator="rloo", kl_coef=0.04),
    ),
    "reinforce (REINFORCE++)": (
        f"algorithm=reinforce_pp {PLAIN_WHITENING}",
        OpenRLHFOptions(estimator="reinforce", kl_coef=0.04),
    ),
    "reinforce_baseline": (
        f"algorithm=reinforce_pp algorithm.advantage.baseline=group_mean {PLAIN_WHITENING}",
        OpenRLHFOptions(estimator="reinforce_baseline", kl_coef=0.04),
    ),
    "gae, value loss": (
        "algorithm=ppo algorithm.whiten=false",
        OpenRLHFOptions(estimator="gae", kl_coef=0.04, value_coef=0.1),
    ),
    "gae, value loss not clipped, gamma 0.9": (
        "algorithm=ppo algorithm.whiten=false algorithm.gamma=0.9 algorithm.lam=0.8"
        " algorithm.value_clip=null kl=none",
        OpenRLHFOptions(estimator="gae", value_coef=0.1, gamma=0.9, lambd=0.8, value_clip=None),
    ),
}

# The KL alone: its term in the loss is what is left when the policy loss is taken away.
KL_CASES = {
    ("k1", False): "kl=reverse_k1",
    ("k2", False): "kl=reverse_k2",
    ("k3", False): "kl=reverse_k3",
    ("k1", True): "kl=reverse_k1 kl.gradient=straight_through",
    ("k2", True): "kl=reverse_k2 kl.gradient=straight_through",
    ("k3", True): "kl=reverse_k3_straight",
}


@every_seed
@pytest.mark.parametrize("quantity", CASES)
def test_advantages_and_losses(
    quantity: str, seed: int, openrlhf: OpenRLHF, ledger: Ledger
) -> None:
    """OpenRLHF adds 1e-8 to the length of a row in sequence means: rows are long there."""
    switches, options = CASES[quantity]
    case = random_case(seed, shortest=1 if options.token_level_loss else 10)
    ours = Objective(*switches.split())
    batch, mask = ours.prepare(case), case.mask
    ledger.same_values(
        PEER,
        f"{quantity}, advantages",
        switches,
        batch.advantages,
        lambda: openrlhf.advantages(options, case)[0] * mask,
    )
    theirs = openrlhf.loss(options, case)
    ledger.agree(PEER, quantity, switches, ours.loss(case), theirs, case.leaves)


@every_seed
@pytest.mark.parametrize(("estimator", "unbiased"), KL_CASES)
def test_kl_in_the_loss(
    estimator: str, unbiased: bool, seed: int, openrlhf: OpenRLHF, ledger: Ledger
) -> None:
    """OpenRLHF cuts k3 at 10, which log-ratios of at most 2.3 do not reach."""
    switches = f"{KL_CASES[estimator, unbiased]} algorithm.aggregation=token_mean kl.beta=0.5"
    case, ours = random_case(seed).within(2.3), Objective(*switches.split())
    theirs = openrlhf.kl_loss(
        case, estimator=estimator, unbiased=unbiased, off_policy=False, beta=0.5
    )
    quantity = f"{estimator}, unbiased gradient" if unbiased else estimator
    without_rewards = case.with_rewards(case.rollout.rewards * 0.0)
    ledger.agree(PEER, quantity, switches, ours.loss(without_rewards), theirs, case.leaves)


@every_seed
@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_gradient_of_an_off_policy_kl(
    estimator: str, seed: int, openrlhf: OpenRLHF, ledger: Ledger
) -> None:
    """OpenRLHF weights the gradient by policy/old and leaves the value alone; rlkit weights both.
    Its cap of 10 on the weight is not reached."""
    switches = (
        f"{KL_CASES[estimator, True]} kl.weight=old kl.beta=0.5 algorithm.aggregation=token_mean"
    )
    case, ours = random_case(seed).within(2.3), Objective(*switches.split())
    theirs = openrlhf.kl_loss(case, estimator=estimator, unbiased=True, off_policy=True, beta=0.5)
    without_rewards = case.with_rewards(case.rollout.rewards * 0.0)
    quantity = f"{estimator}, unbiased gradient, off-policy"
    ledger.same_gradients(PEER, quantity, switches, ours.loss(without_rewards), theirs, case.leaves)


@every_seed
@pytest.mark.parametrize(
    ("quantity", "switches", "smoothing", "ipo"),
    [
        ("DPO", "", 0.0, False),
        ("DPO, label smoothing", "algorithm.label_smoothing=0.1", 0.1, False),
        ("IPO", "algorithm.loss=ipo", 0.0, True),
    ],
)
def test_dpo(
    quantity: str,
    switches: str,
    smoothing: float,
    ipo: bool,
    seed: int,
    openrlhf: OpenRLHF,
    ledger: Ledger,
) -> None:
    case = random_case(seed, group=2)
    switches = f"algorithm=online_dpo algorithm.pairs=neighbours {switches}".strip()
    ours = Objective(*switches.split(), group=2)
    theirs = openrlhf.dpo_loss(case, beta=0.1, label_smoothing=smoothing, ipo=ipo)
    ledger.agree(PEER, quantity, switches, ours.loss(case), theirs, case.leaves)
