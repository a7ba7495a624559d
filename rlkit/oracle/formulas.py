"""This module has formulas and prose of `docs/objective.md`; the numbers come from `measure`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Formula(NamedTuple):
    """A switch adds this term to a token's loss; its coefficient multiplies grad log pi."""

    loss: str
    coefficient: str
    source: str
    """The source of the formula, not of the number; bare numbers are arXiv's."""


KL: Mapping[str, Formula] = {
    "none": Formula("0", "0", ""),
    "reverse_k1": Formula("q - p", "1", "Schulman 2020"),
    "reverse_k2": Formula("(q - p)²/2", "q - p", "Schulman 2020"),
    "reverse_k3": Formula("u - 1 - log u", "1 - u", "DeepSeekMath eq. 4; unsloth-zoo 6819f190"),
    "reverse_k3_corrected": Formula(
        "w (u - 1 - log u)", "w (q - p)", "DeepSeek-V3.2; TRL 1.16 `use_bias_correction_kl`"
    ),
    "reverse_k3_straight": Formula(
        "value of k3, gradient of k2", "q - p", "verl `k3+`; OpenRLHF `unbiased_gradient`"
    ),
    "reverse_k1_reward": Formula(
        "R -= Σ (o - p)", "w Σ_all (o - p)", "InstructGPT; RLOO 2402.14740"
    ),
    "reverse_k2_reward": Formula("R -= Σ (o - p)²/2", "w Σ_all (o - p)²/2", "Schulman 2020"),
    "reverse_k3_reward": Formula(
        "R -= Σ (u - 1 - log u)", "w Σ_all (u - 1 - log u)", "OpenRLHF `kl_estimator=k3`"
    ),
    "reverse_k1_advantage": Formula(
        "A_t -= Σ_(t' ≥ t) (o - p)", "w Σ_(t' ≥ t) (o - p)", "REINFORCE++ 2501.03262"
    ),
    "reverse_exact": Formula("Σ_v Q (log Q - log P)", "full vocabulary", "definition"),
    "reverse_exact_sequence": Formula(
        "as exact, + sg(Σ_(t' > t) KL_t') q",
        "full vocabulary + later KLs",
        "Tang and Munos 2506.09477",
    ),
    "reverse_top_k": Formula(
        "top k words of P + rest (here k = 1)", "k + 1 outcomes", "definition, binned"
    ),
    "forward_k1": Formula("r u log u", "-u", "importance sampling"),
    "forward_k3": Formula("r (u log u - u + 1)", "1 - u", "k3 of the forward direction"),
    "forward_exact": Formula("Σ_v P (log P - log Q)", "full vocabulary", "definition"),
    "unsloth_full_reverse": Formula("exp(q) (u - 1 - log u)", "Q (q - p)", "unsloth-zoo 581496dc"),
    "unsloth_forward": Formula("exp(p) (p - q)", "-P", "unsloth-zoo 46ce30f0"),
    "unsloth_log_weighted": Formula("q (u - 1 - log u)", "k3 + q (1 - u)", "unsloth-zoo a5370e55"),
}

RATIO: Mapping[str, Formula] = {
    "on_policy": Formula("-exp(q - sg q) A", "-A", "unsloth-zoo 6819f190"),
    "no_detach": Formula("-exp(q - q) A", "0", "unsloth-zoo da822ecf"),
    "probability": Formula("-exp(q) A", "-Q A", "unsloth-zoo 70f22bc6"),
    "no_clip": Formula("-w A", "-w A", "importance sampling"),
    "token": Formula("-min(w A, clip(w, 0.8, 1.2) A)", "-w A, 0 where clipped", "PPO 1707.06347"),
    "clip_higher": Formula(
        "-min(w A, clip(w, 0.8, 1.28) A)", "-w A, 0 where clipped", "DAPO 2503.14476"
    ),
    "two_sided": Formula(
        "-min(min(w, 4) A, clip(w, 0.8, 1.2) A)",
        "also 0 for A < 0, w > 4",
        "INTELLECT-2 2505.07291",
    ),
    "dual_clip": Formula(
        "as token, at most -3 A for A < 0", "also 0 for A < 0, w > 3", "1912.09729"
    ),
    "sequence": Formula(
        "-min(W A, clip(W, 0.8, 1.2) A)", "-W A, 0 where clipped", "RLOO 2402.14740, TRL"
    ),
    "gspo": Formula(
        "-min(S A, clip(S, 1 ∓ ..) A), S = exp(mean(q - o))", "-S A", "GSPO 2507.18071"
    ),
    "gspo_token": Formula("S_t = sg(S) exp(q - sg q)", "-S A", "GSPO 2507.18071"),
    "cispo": Formula("-sg(min(w, 5)) A q", "-min(w, 5) A", "MiniMax-M1 2506.13585"),
    "gmpo": Formula(
        "-exp(mean(clip(q - o, ∓0.4))) A", "-S A over unclipped tokens", "GMPO 2507.20673"
    ),
    "sapo": Formula("-A 4/τ sigmoid(τ (w - 1))", "-4 σ'(τ (w - 1)) w A", "SAPO 2511.20347"),
}

OPENING = """# The objective, switch by switch

What does each switch of the loss do to the gradient, and is it the gradient that its name promises?
Often it is not: the k3 of GRPO has the value of one KL divergence and the gradient of another. The
tables say for every switch how far its expected gradient is from each exact one.

## In two minutes

Training makes completions with a high reward likelier. The loss has three parts, and each can go
wrong without a sound. Its value stays plausible, while its gradient is that of something else.

1. **The policy term** multiplies each sampled word's log-probability by an *advantage*. That is how
   much better the completion was than its group. It does so through a *ratio*, whose denominator
   must be detached: its value counts, and its gradient does not.
2. **The KL term** holds the policy to the *reference*, the model from before training. *Beta* says
   how strongly. There are several *estimators* of it, and right values do not mean right gradients.
3. **Weights and clips** correct for samples that come from an older policy, or from an engine that
   computes otherwise.

This page measures all of them where nothing is uncertain, in a language so small that every
completion can be listed. [The interactive page](objective/explore.html) has the figures below with
a slider for beta and a choice for every switch. It is one file and opens from the disk.

### Which KL gradient am I using?

![eight KL terms are compared with three divergences](objective/kl.svg)

A bar says how far the expected gradient is from that of a divergence. `exact` means that it is that
gradient. The k3 of GRPO is named after the reverse KL and has its value. Yet its gradient is that
of the **forward** KL. In the loss, k1 has no gradient at all. In the reward, it is the only one
here that has the gradient of the KL of whole completions.

### What does my loss do at this beta?

![the step of six losses is compared with the wanted step](objective/beta.svg)

The wanted step raises the reward minus beta times the KL of completions. At beta 0.04 all losses
with a detached ratio take nearly that step, so an experiment at this beta cannot tell them apart.
At beta 2 it can. Without the detach the reward has no gradient.

### What happens when the samples are old?

![six ratios are compared on fresh, older and old samples](objective/ratio.svg)

With fresh samples all ratios here but `no_detach` are the policy gradient. With old ones none is,
and clips that leave much out can turn the gradient round.

<iframe src="objective/explore.html" title="The figures, with a slider for beta"
style="width: 100%; height: 1900px; border: 0"></iframe>

"""

INTRODUCTION = """## How to read the tables

Generated by `python -m rlkit.oracle.table`; do not edit. Every number is an expectation over ALL
15 completions of a small language of 3 words, of which a completion has at most 3. It is computed
in float64 with the shipped loss functions, without sampling noise. There are two policies: `tab`,
one row of logits per prefix, and `tied`, a two-layer network whose parameters all prefixes share.
Cells read `tab ; tied`. `0` means zero to 1e-10.

For each sampled token q, p and o are the log-probabilities under the policy, the reference and the
old policy, which is the one that sampled. Q, P and O are their exponentials; u = P/Q and w = Q/O.
W is the product of w over the completion. r = exp(q - sg q) has the value 1, and sg is the
stop-gradient. A is the advantage and R the reward.
Losses are minimised, KL terms are multiplied by `kl.beta`.
"""

NOTES: Mapping[str, str] = {
    "kl": """
The first column is the value bias = E[value]/KL - 1, with the KL of the option's direction per
token. Then comes the relative error |E[g] - t|/|t| of the expected gradient against the gradient t
of three divergences. These are the reverse KL of whole completions, and the reverse and the forward
KL per token at prefixes held fixed. The last, sd, is the standard deviation of the gradient of one
completion over the length of the first of these.

- The value of an estimator says nothing about its gradient. k3 in the loss, the default of GRPO
  and of `unsloth_2025`, has the reverse KL's value and the **forward** KL's gradient. k1 in the
  loss has the right value and no gradient at all, only noise.
- Times the live ratio, k1 and k3 have the gradient of their own direction.
- A KL in the loss sees prefixes as given. The KL of whole completions has a second part, the effect
  of a token on later prefixes: `reverse_k1_reward`, `reverse_k1_advantage` and, with the smallest
  spread, `reverse_exact_sequence` (`kl.horizon=sequence`).
- The three `unsloth_*` options are what was published, and no divergence at all. `unsloth_forward`
  is a fixed bonus beta P on each token, with nothing that pulls back to the reference. Summed over
  the vocabulary, Q k3 is the reverse KL: use `reverse_exact`.
- Rest points on a bandit (tests/algorithms/test_fixed_points.py): reverse-gradient options rest at
  P exp(R/beta)/Z, forward-gradient options at beta P/(lambda - R), k1 in the loss nowhere.
""",
    "kl_off_policy": """
Completions come from another policy O (KL(Q || O) = 0.20 ; 0.24); divergences per token are
taken at its prefixes. `kl.weight=old`, part of `reverse_k3_corrected`, makes it exact; added to
`reverse_k2`, `reverse_k3`, `reverse_k3_straight`, `forward_k1` and `forward_k3` it gives each of
them its on-policy divergence back. Full-vocabulary terms need no weight.
""",
    "ratio": """
Against -grad E[R], rewards 0 or 1 without a baseline, aggregation sequence_sum (sequence_mean for
`sequence`, which counts a row once). On-policy every ratio but `no_detach` and `probability` is the
policy gradient. Off-policy, token ratios ignore how likely the prefix is; only W without a clip is
unbiased (`ratio=sequence ratio.clip=none`, error 0 in the tests). `no_detach` is Unsloth's broken
run: gradient 0.0 in every coordinate, for every completion.
""",
    "correction": """
The trainer takes one step on completions of a generator that is far away, KL(Q || O) = 1.21 ; 0.76;
raw rewards, no baseline. Only uncut sequence weights are unbiased; cuts trade that for less spread,
which grows with the length of completions.
""",
    "groups": """
The table has length and cosine of E[g] relative to -grad E[R], for 0/1 rewards, eps 0 and the
population standard deviation. `group_mean` shrinks by (G-1)/G and nothing else. With `group_std`,
E[g] = c_G(p) grad p: prompts are reweighted by their success rate p (G = 8: 2.61 at p = 0.01, 1.86
at 0.5), the direction within a prompt is kept for binary rewards only. `sequence_mean` turns the
gradient, `token_mean` by less, `sequence_sum` and `constant_length` not at all.
""",
}


TURN_NOTES: Mapping[str, str] = {
    "world": """
An environment takes part here. A turn is at most W words, and one that begins with the end word
ends the episode. To any other the environment says one of two replies, of one or two words. Their
probabilities depend on every word before. Each turn earns a reward in [0, 1] that depends on all
that was said. Everything is enumerated as above. The truth is the gradient of the expected sum of
rewards. The environment's words are context and have no gradient of their own.
""",
    "credit": """
The table measures `algorithm.advantage.turns` against -grad E[R], with the aggregation sequence_sum
and eps 0. W is 1, and there are three turns for G = 2 and two for G = 3. The column sd is the
standard deviation of a pair's gradient over the length of the truth.

- `trajectory` and `to_go` are unbiased without a baseline and with `leave_one_out`. `to_go`
  compares a turn with the same turn of those samples that reached it. A sample that reaches a turn
  alone keeps its reward: an advantage of 0 there would be a bias.
- `group_mean` shrinks `trajectory` by (G-1)/G and nothing else. In `to_go` it shrinks late turns
  more than early ones, because fewer samples reach them. So it turns the gradient.
- `centred_to_go` (rewards centred per turn, then summed to go) is biased: the samples that reach a
  later turn are a choice that the policy made. `own_turn` forgets what a turn leads to.
""",
    "kl": """
There are two turns of at most two words here, on-policy, and the columns are those of the first
table. The environment's probabilities cancel in log pi/ref, so the KL of whole episodes is a sum
over sampled words. Every option has the gradient here that it has in a single turn.
""",
    "ratio": """
Rewards are raw here, and there are two turns of at most two words. Lengths and products run over
sampled words only, so the table says what the one of single turns says. On-policy all but
`no_detach` and `probability` are exact. Off-policy only W without a clip is, as the tests show.
""",
}
