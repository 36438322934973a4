"""How far a weight's values Ŵ are from W, as its layer's output sees it."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def output_energy(difference: Tensor, hessian: Tensor) -> float:
    """tr(E·H·Eᵀ): the squared output that `difference` E [rows, columns] makes; H [columns, columns]."""
    return float((difference @ hessian).mul_(difference).sum(dtype=torch.float64))


def relative_error(weight: Tensor, values: Tensor, hessian: Tensor | None) -> float:
    """tr(E·H·Eᵀ) / tr(W·H·Wᵀ) with E = W − Ŵ; H is taken to be the identity if there is none."""
    difference = weight - values
    if hessian is None:
        error, energy = (float(x.square().sum(dtype=torch.float64)) for x in (difference, weight))
    else:
        error, energy = output_energy(difference, hessian), output_energy(weight, hessian)
    return error / energy if energy > 0 else 0.0


def sqnr_db(weight: Tensor, values: Tensor) -> float:
    """Signal to quantization noise in dB: 10·log10(Σw² / Σ(w − ŵ)²)."""
    noise = float((weight - values).square().sum(dtype=torch.float64))
    signal = float(weight.square().sum(dtype=torch.float64))
    return 10 * math.log10(signal / noise) if noise > 0 and signal > 0 else math.inf
