"""A scale chosen among candidates, each tried: for grids whose best scale has no closed form."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor


def least_error(scales: Iterable[Tensor], error: Callable[[Tensor], Tensor]) -> Tensor:
    """Element by element, of `scales` the one whose error is least; of equals the first.

    All scales, one or more, have one shape and dtype, and `error(scale)` has that shape.
    """
    candidates = iter(scales)
    best = next(candidates)
    least = error(best)
    for scale in candidates:
        reached = error(scale)
        best = torch.where(reached < least, scale, best)
        least = torch.minimum(reached, least)
    return best
