"""GPTQ (arXiv 2210.17323): round column by column, and let later columns make up for each error.

Solved in the form of LDLQ (arXiv 2307.13304, theorem 6: the same codes). With the columns in the order of
their visit and H = U·D·Uᵀ, U unit upper triangular, D diagonal, column j is rounded at

    w'_j = w_j + Σ_{k<j} (w_k − ŵ_k)·U_kj        and        tr(E·H·Eᵀ) = Σ_j D_j·‖w'_j − ŵ_j‖²,

which needs one Cholesky factor where GPTQ's own equations need two and an inverse.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from compress.kernels.qtensor import NumberFormat, Params, QTensor, quantize

_BLOCK = 64
_RUNGS = 5


@dataclass(frozen=True)
class SolveReport:
    """What became of one weight. `error` is tr(E·H·Eᵀ) with E = W − Ŵ, `relative_error` that over tr(W·H·Wᵀ).

    `damp` is what was added to the diagonal of H, as a part of its mean. `fallback`: no damping made H
    positive definite, and the weight was rounded to nearest.
    """

    damp: float
    fallback: bool
    error: float
    relative_error: float


def gptq_solve(
    weight: Tensor,
    hessian: Tensor,
    number_format: NumberFormat,
    *,
    damp: float = 0.01,
    act_order: bool = True,
    params: Params | None = None,
) -> tuple[QTensor, SolveReport]:
    """Codes for `weight` [rows, columns] fp32 with a small tr(E·H·Eᵀ), H = `hessian` [columns, columns] fp32.

    Groups are static: `params` (by default fitted with importance diag(H)) belong to the original columns and
    do not change; with `act_order` columns are visited in the order of falling H_jj. Rows are solved
    independently: rows that share H may be stacked. Columns with H_jj = 0 (dead inputs) get the weight 0.
    Raises ValueError for NaN or Inf in either matrix.
    """
    if not (bool(weight.isfinite().all()) and bool(hessian.isfinite().all())):
        raise ValueError("the weight or the Hessian holds NaN or Inf")
    diagonal = hessian.diagonal()
    weight = torch.where(diagonal > 0, weight, 0.0)
    if params is None:
        params = number_format.fit(weight, diagonal)
    order = (
        torch.argsort(diagonal, descending=True, stable=True) if act_order else torch.arange(len(diagonal))
    )
    damp_used, factor = _factor(hessian, order, damp)
    energy = float((weight @ hessian).mul_(weight).sum(dtype=torch.float64))
    if factor is None:
        quantized = quantize(weight, number_format, params)
        difference = weight - quantized.dequantize()
        error = float((difference @ hessian).mul_(difference).sum(dtype=torch.float64))
    else:
        quantized, error = _visit(weight, factor, order, number_format, params)
        difference = weight - quantized.dequantize()
        error -= damp_used * _mean(diagonal) * float(difference.square().sum(dtype=torch.float64))
    return quantized, SolveReport(damp_used, factor is None, error, error / energy if energy > 0 else 0.0)


def _mean(diagonal: Tensor) -> float:
    """Mean of the live columns; 1 if there are none."""
    live = diagonal[diagonal > 0]
    return float(live.mean()) if len(live) else 1.0


def _factor(hessian: Tensor, order: Tensor, damp: float) -> tuple[float, Tensor | None]:
    """The damping that was needed, and U·√D of the damped H in visiting order, transposed (lower triangular)."""
    reverse = order.flip(0)
    mean = _mean(hessian.diagonal())
    ladder = [damp, *(max(damp, 1e-4) * 10.0**rung for rung in range(1, _RUNGS))]
    for rung in ladder:
        damped = hessian[reverse][:, reverse]
        diagonal = damped.diagonal()
        diagonal.copy_(torch.where(diagonal > 0, diagonal, mean)).add_(rung * mean)
        lower, info = torch.linalg.cholesky_ex(damped)
        if int(info) == 0 and bool(lower.isfinite().all()):
            return rung, lower.flip(0, 1).T.contiguous()
    return ladder[-1], None


def _visit(
    weight: Tensor, factor: Tensor, order: Tensor, number_format: NumberFormat, params: Params
) -> tuple[QTensor, float]:
    """Visit the columns in `order`. Everything here is transposed, [columns, rows], so that a column is a row."""
    root = factor.diagonal()
    feed = factor / root.unsqueeze(1)
    original = weight.T[order]
    expanded = {name: value.T[order] for name, value in number_format.expand(params, weight.shape[1]).items()}
    errors = torch.empty_like(original)
    codes = torch.empty(original.shape, dtype=torch.uint8, device=weight.device)
    loss = 0.0
    for start in range(0, len(original), _BLOCK):
        stop = min(start + _BLOCK, len(original))
        target = torch.addmm(original[start:stop], feed[start:stop, :start], errors[:start])
        block = errors[start:stop]
        for column in range(stop - start):
            visited, at = target[column], start + column
            if column:
                visited.addmv_(block[:column].T, feed[at, start:at])
            here = {name: value[at] for name, value in expanded.items()}
            chosen = number_format.round(visited, here)
            codes[at] = chosen
            torch.sub(original[at], number_format.value(chosen, here), out=block[column])
        left = target.sub_(original[start:stop]).add_(block).mul_(root[start:stop].unsqueeze(1))
        loss += float(left.square_().sum(dtype=torch.float64))
    restored = torch.empty_like(codes)
    restored[order] = codes
    return QTensor(number_format, restored.T.contiguous(), params), loss
