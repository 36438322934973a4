"""How far a quantized weight is from its original: in its outputs, and in itself."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from compress.kernels.effort import Effort

_BLOCK = 256


def output_energy(matrix: Tensor, hessian: Tensor) -> float:
    """tr(M·H·Mᵀ): the squared outputs of `matrix` [rows, columns] over the inputs that H = XᵀX sums over.

    For M = W − Ŵ it is the squared error of a layer's outputs, what GPTQ (arXiv 2210.17323) minimises. H is
    symmetric: its upper triangle is enough, and half the work.
    """
    total = torch.zeros((), dtype=torch.float64, device=matrix.device)
    for start in range(0, matrix.shape[1], _BLOCK):
        stop = start + _BLOCK
        product = (matrix[:, start:stop] @ hessian[start:stop, start:]).mul_(matrix[:, start:])
        total += product[:, :_BLOCK].sum(dtype=torch.float64) + 2 * product[:, _BLOCK:].sum(dtype=torch.float64)
    return float(total)


def relative_error(weight: Tensor, approximation: Tensor, hessian: Tensor) -> float:
    """Error energy over output energy of a linear layer; 0 where the layer has no output."""
    energy = output_energy(weight, hessian)
    return output_energy(weight - approximation, hessian) / energy if energy > 0 else 0.0


def error_effort(shape: tuple[int, ...]) -> Effort:
    """What `relative_error` takes: two products with the upper triangle of H."""
    rows, columns = shape
    return Effort(flops=2 * rows * columns * (columns + _BLOCK), elements=20 * rows * columns)


def sqnr(weight: Tensor, approximation: Tensor) -> float:
    """10·log₁₀(‖W‖² / ‖W − Ŵ‖²), the signal to quantization noise ratio of the weight itself, in dB."""
    noise = float((weight - approximation).square().sum(dtype=torch.float64))
    signal = float(weight.square().sum(dtype=torch.float64))
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal > 0 else -math.inf
