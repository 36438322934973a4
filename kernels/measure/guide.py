"""What each token counts for: the squared gradients of the end loss at a linear's outputs.

An error e of output j at token t costs about ½·(∂ℓ/∂z_tj)²·e² of the end loss. With the square averaged over some
neighbouring rows, a part, H of all rows of the part is Σ_t a_t·x_tᵀx_t (GuidedQuant, arXiv 2505.07004).
"""

from __future__ import annotations

import torch
from torch import Tensor


def part_energies(gradient: Tensor, parts: int) -> Tensor:
    """The mean square in each part of the columns of `gradient` [tokens, rows of the weight]: [tokens, parts] fp32.

    Parts are those of `Tensor.tensor_split`, and no more than there are columns.
    """
    columns = gradient.float().tensor_split(min(parts, gradient.shape[1]), 1)
    return torch.stack([part.square().mean(1) for part in columns], 1)


def token_weights(energies: Tensor, reached: Tensor) -> Tensor:
    """Weights [tokens, parts] float16 in proportion to `energies` [tokens, parts] fp32 ≥ 0, on average 1.

    The average is over the tokens that were `reached` [tokens] bool. Others, and parts without a gradient anywhere,
    weigh 1: nothing is known of them.
    """
    mean = energies[reached].double().mean(0) if bool(reached.any()) else energies.new_zeros(energies.shape[1])
    known = reached[:, None] & (mean > 0)
    weights = torch.where(known, energies / mean.clamp(min=torch.finfo(torch.float64).tiny), 1.0)
    return weights.clamp(max=torch.finfo(torch.float16).max).half()
