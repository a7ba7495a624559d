"""Each rank keeps a part of the masters and of the optimiser's state when all weights train."""

from __future__ import annotations

from functools import partial

from rlkit.policy.full_weights import FullWeights
from rlkit.policy.policy import Policy
from rlkit.ranks import Ranks
from rlkit.ranks.deal import deal
from rlkit.training.sharded import Shares


def shares_of(policy: Policy, ranks: Ranks) -> Shares | None:
    """Return who keeps which tensor that trains; None where every rank keeps all.

    An adapter's are small: to hold them all saves messages in each update.
    """
    tuning = policy.tuning
    if ranks.size == 1 or not isinstance(tuning, FullWeights):
        return None
    owners = deal([master.numel() for master in tuning.masters.values()], ranks.size)
    named = dict(zip(tuning.masters, owners, strict=True))
    return Shares(ranks, named, partial(tuning.copies, tuning.masters))


def keep_own_share(policy: Policy, ranks: Ranks) -> Policy:
    """Return `policy` without the masters that other ranks keep."""
    shares, tuning = shares_of(policy, ranks), policy.tuning
    if shares is not None and isinstance(tuning, FullWeights):
        tuning.keep({name for name, owner in shares.owners.items() if owner == ranks.rank})
    return policy
