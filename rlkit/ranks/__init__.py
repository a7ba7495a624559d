"""This room lets one run use several processes, each of which has a device of its own.

Every process is a rank. All ranks hold the same batch, and each computes its share of the rows.
"""

from __future__ import annotations

from rlkit.ranks.base import ALONE as ALONE
from rlkit.ranks.base import RankError as RankError
from rlkit.ranks.base import Ranks as Ranks
