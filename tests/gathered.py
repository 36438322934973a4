"""Statistics as if they had been gathered."""

from __future__ import annotations

import torch
from torch import Tensor

from compress.passes.forward.linear_stats import LinearStats
from compress.passes.forward.statistics import Energy, Hessian, Statistic


def stats_of(hessian: Tensor, *kinds: type[Statistic]) -> LinearStats:
    """As of inputs that have this Hessian [in, in]."""
    stats = LinearStats(frozenset(kinds), len(hessian), torch.device("cpu"))
    for kind in kinds:
        stats[kind].tokens = 600
    if Hessian in stats:
        stats[Hessian].matrix.copy_(hessian)
    if Energy in stats:
        stats[Energy].total.copy_(hessian.diagonal())
    return stats
