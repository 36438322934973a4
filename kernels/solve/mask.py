"""Which weights stay: how much a weight matters, and masks that keep those that matter most.

With H = Σ xᵀx over the inputs of a layer a weight's score is

    magnitude   |w_ij|
    wanda       |w_ij|·‖x_j‖, with ‖x_j‖² = H_jj                    arXiv 2306.11695, equation 1
    obd         w_ij²·H_jj / 2, what the output loses without it    LeCun et al. 1989, equation 7

Within a row the last two are of one order; `obd` is meant to compare weights of different rows, too. A mask is bool
[rows, columns], True where a weight stays. Of equal scores the weight further left stays.
"""

from __future__ import annotations

from math import prod
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

Score = Literal["magnitude", "wanda", "obd"]


def scores(weight: Tensor, energy: Tensor, kind: Score) -> Tensor:
    """How much each weight of `weight` [rows, columns] fp32 matters; `energy` is diag(H) [columns] fp32."""
    if kind == "magnitude":
        return weight.abs()
    return weight.abs() * energy.sqrt() if kind == "wanda" else weight.square() * energy / 2


def keep_share(score: Tensor, sparsity: float) -> Tensor:
    """The mask [rows, columns] that keeps, of each row of `score`, all but the part `sparsity`, rounded to a count."""
    return keep_most(score, kept_of(score.shape[1], sparsity))


def keep_share_of_all(score: Tensor, sparsity: float) -> Tensor:
    """As `keep_share`, but of all rows together: rows keep more where scores are higher."""
    return keep_most_of_all(score, kept_of(score.numel(), sparsity))


def keep_most_of_all(score: Tensor, kept: int) -> Tensor:
    """The mask [rows, columns] that keeps the `kept` largest of all."""
    gone = score.numel() - kept
    if not gone:
        return torch.ones_like(score, dtype=torch.bool)
    mask = score > score.flatten().kthvalue(gone).values  # a tenth of the time of sorting all
    return mask if int(mask.sum()) == kept else keep_most(score.flatten(), kept).view_as(score)


def kept_of(count: int, sparsity: float) -> int:
    """How many of `count` weights stay: all but the part `sparsity`, rounded."""
    return count - round(count * sparsity)


def keep_groups(score: Tensor, kept: int, group: int) -> Tensor:
    """The mask [rows, columns] that keeps `kept` of every `group` neighbouring columns (n:m), which divide them."""
    return keep_most(score.unflatten(1, (-1, group)), kept).flatten(1)


def keep_most(score: Tensor, kept: int) -> Tensor:
    """The mask that keeps the `kept` largest along the last dimension of `score`."""
    order = torch.argsort(score, dim=-1, descending=True, stable=True)
    return torch.zeros_like(score, dtype=torch.bool).scatter_(-1, order[..., :kept], True)


def packed(mask: Tensor) -> Tensor:
    """`mask` bool as bits: uint8 [⌈n / 8⌉], the first weight in the lowest bit of the first."""
    bits = pad(mask.flatten().byte(), (0, -mask.numel() % 8)).view(-1, 8)
    return (bits << torch.arange(8, dtype=torch.uint8, device=mask.device)).sum(1, dtype=torch.uint8)


def unpacked(bits: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The mask of that shape which `packed` made `bits` of."""
    flat = bits.unsqueeze(1) >> torch.arange(8, dtype=torch.uint8, device=bits.device) & 1
    return flat.bool().flatten()[: prod(shape)].view(shape)
