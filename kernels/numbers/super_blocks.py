"""What K-quants share: super-blocks of 256 neighbouring weights of a row."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from compress.kernels.qtensor import Params
from compress.kernels.rows import rows_at_once
from compress.kernels.search.integers import FloatParams

SUPER_BLOCK = 256
_HALVES = ("d", "dmin")


def super_blocks_misfit(name: str, columns: int) -> str | None:
    """Why a row of so many columns has no super-blocks, or None if it has."""
    if columns % SUPER_BLOCK == 0:
        return None
    return f"{columns} columns do not divide into super-blocks of {SUPER_BLOCK}, which is what {name} has"


def fit_super_blocks(
    weight: Tensor, importance: Tensor | None, group: int, fit: Callable[[Tensor, Tensor], FloatParams], whole: str
) -> dict[str, Tensor]:
    """What `fit` finds for `weight` [rows, columns], some rows at a time; whole numbers [rows, groups] as type `whole`.

    `fit` takes weights [rows, super-blocks, groups, group] and importances [1, …]; 1 where there is none. Raises
    ValueError where float16 does not reach.
    """
    shape = (-1, weight.shape[1] // SUPER_BLOCK, SUPER_BLOCK // group, group)
    spread = torch.ones(weight.shape[1], device=weight.device) if importance is None else importance
    parts = [
        fit(part.reshape(shape), spread.view(shape))
        for part in weight.split(rows_at_once(weight.shape[1], weight.device))
    ]
    found = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    if not all(bool(found[name].isfinite().all()) for name in _HALVES if name in found):
        raise ValueError("the weight is too large: float16 cannot hold the scale of a super-block")
    dtype: torch.dtype = getattr(torch, whole)
    return {name: value if name in _HALVES else value.flatten(1).to(dtype) for name, value in found.items()}


def scaled_super_blocks(params: Params, factors: Tensor) -> Params | None:
    """`params` with row i of the float16 scales times `factors[i]`; None where that leaves their range."""
    scaled = dict(params)
    for name in _HALVES:
        if name in params:
            scaled[name] = (params[name].float() * factors.unsqueeze(1)).half()
            if not bool(scaled[name].isfinite().all()):
                return None
    return scaled
