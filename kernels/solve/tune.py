"""What GPTQ leaves free, tuned in turn: scales in closed form, then codes by coordinate descent.

Both lower tr(E·H·Eᵀ), E = W − Ŵ; but for the rounding of stored scales neither can raise it. GPTQ visits every
column once and knows only the errors of those before it; here each is rounded once more, knowing them all
(arXiv 2406.17542 descends so too).
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from compress.kernels.effort import Effort
from compress.kernels.op import op
from compress.kernels.qtensor import NumberFormat, Params, QTensor
from compress.kernels.solve.gptq import as_rows
from compress.kernels.threads import single_thread

_BLOCK = 64
_CHUNK = 1 << 24
_RIDGE = 1e-4


def tune(
    weight: Tensor,
    hessian: Tensor,
    quantized: QTensor,
    *,
    damp: float = 0.01,
    rounds: int = 2,
    kept: Tensor | None = None,
) -> QTensor:
    """`quantized` with a smaller tr(E·H·Eᵀ), E = `weight` − its values, [rows, columns] fp32.

    H is `hessian` [columns, columns] fp32 with `damp` times its mean added to the diagonal. Each round fits the
    scales to the codes, where the number format has any, and then revisits every code; with `kept` [rows, columns]
    bool only the codes there, and all others stand for 0 as they did.
    """
    damped = hessian.clone()
    damped.diagonal().add_(damp * float(hessian.diagonal().mean()))
    if not bool((damped.diagonal() > 0).all()):
        return quantized
    for _ in range(rounds):
        quantized = fit_scales(weight, damped, quantized)
        quantized = revisit_codes(weight, damped, quantized, kept)
    return quantized


def tune_effort(shape: tuple[int, ...], groups: int, rounds: int = 2) -> Effort:
    """What `tune` takes.

    Counted: the products, and a system of equations for each row. Measured: what it takes to revisit a column, 48
    operators and as much as another one for every 45 rows.
    """
    rows, columns = shape
    scales = Effort(flops=4 * rows * columns**2 + 4 * rows * groups**3, elements=3 * groups * rows * columns)
    codes = Effort(flops=2 * rows * columns**2, elements=6 * columns**2 + 60 * rows * columns)
    return (scales + codes + Effort(calls=columns * (48 + rows / 45))) * rounds


def fit_scales(weight: Tensor, hessian: Tensor, quantized: QTensor) -> QTensor:
    """The scales that are best for the codes as they are: row by row, C·H·Cᵀ·s = C·H·w.

    Scales are what values are linear in (`levers`): of K-quants d, or d and dmin. C [scales, columns] holds the row's
    values for a scale of 1 and all others 0. One that comes out as zero, not finite or of the other sign stays as it
    was.
    """
    levers = quantized.format.levers
    if not levers:
        return quantized
    before = torch.stack([quantized.params[lever].float() for lever in levers], 1)
    units = torch.stack([_unit_values(quantized, lever) for lever in levers], 1)
    step = max(1, _CHUNK // (before[0].numel() * quantized.shape[1]))
    solved = torch.cat([
        _solve_scales(*parts, hessian) for parts in zip(units.split(step), weight.split(step), before.split(step))
    ])  # fmt: skip
    fitted = {lever: _usable(solved[:, at], quantized.params[lever]) for at, lever in enumerate(levers)}
    return replace(quantized, params={**quantized.params, **fitted})


def _unit_values(quantized: QTensor, lever: str) -> Tensor:
    """The values [rows, columns] if one of the format's levers were 1 and the others 0."""
    levers = {name: torch.zeros_like(quantized.params[name]) for name in quantized.format.levers}
    levers[lever] += 1
    return replace(quantized, params={**quantized.params, **levers}).dequantize()


def _usable(fitted: Tensor, before: Tensor) -> Tensor:
    """`fitted` fp32 as the type of `before` holds it; that itself where it is no number, or of another sign."""
    stored = fitted.to(before.dtype)
    return torch.where(stored.isfinite() & (stored * before.sign() > 0), stored, before)


def _solve_scales(units: Tensor, weight: Tensor, before: Tensor, hessian: Tensor) -> Tensor:
    """Scales [rows, levers, groups] for `units` [rows, levers, columns] and `weight` [rows, columns].

    They are near `before` where H leaves a choice.
    """
    shape = (*before.shape, -1)
    normal = torch.stack(
        [
            ((part @ hessian[start : start + part.shape[1]]).unsqueeze(1) * units).view(shape).sum(-1).flatten(1)
            for lever in units.unbind(1)
            for start, part in _column_groups(lever, before.shape[2])
        ],
        1,
    )
    right = ((weight @ hessian).unsqueeze(1) * units).view(shape).sum(-1).flatten(1)
    ridge = _RIDGE * normal.diagonal(dim1=1, dim2=2).mean(1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
    normal.diagonal(dim1=1, dim2=2).add_(ridge)
    solved: Tensor = torch.linalg.solve_ex(normal, right + ridge * before.flatten(1)).result
    return solved.view_as(before)


def _column_groups(matrix: Tensor, groups: int) -> list[tuple[int, Tensor]]:
    size = matrix.shape[1] // groups
    return [(start, matrix[:, start : start + size]) for start in range(0, matrix.shape[1], size)]


def revisit_codes(weight: Tensor, hessian: Tensor, quantized: QTensor, kept: Tensor | None = None) -> QTensor:
    """Each `kept` code once more, in the order of falling H_jj: the nearest to w_j + Σ_{k≠j} (w_k − ŵ_k)·H_kj / H_jj.

    That is the exact minimum over one column with all others as they are. Matrices are transposed here, so
    that a column lies in one piece.
    """
    number_format = quantized.format
    diagonal = hessian.diagonal()
    order = torch.argsort(diagonal, descending=True, stable=True)
    feed = hessian[order][:, order] / diagonal[order].unsqueeze(1)
    spread = number_format.expand(quantized.params, quantized.shape)
    ordered = {name: as_rows(value, order) for name, value in spread.items()}
    codes = as_rows(quantized.codes, order)
    stays = None if kept is None else as_rows(kept, order)
    source = as_rows(weight, order)
    errors = source - number_format.value(codes.float(), ordered)
    for start in range(0, len(source), _BLOCK):
        here = slice(start, start + _BLOCK)
        columns = {name: value[here] for name, value in ordered.items()}
        # What column j should make up for: Σ_k e_k·H_kj/H_jj, less its own e_j.
        owed = torch.mm(feed[here], errors).sub_(errors[here])
        with single_thread():
            mask = None if stays is None else stays[here]
            revisit_block(source[here], owed, errors[here], codes[here], feed[here, here], number_format, columns, mask)
    codes = torch.empty_like(codes).index_copy_(0, order, codes)
    return replace(quantized, codes=codes.T.contiguous())


@op
def revisit_block(
    source: Tensor,
    owed: Tensor,
    errors: Tensor,
    codes: Tensor,
    feed: Tensor,
    number_format: NumberFormat,
    spread: Params,
    kept: Tensor | None,
) -> None:
    """Round the columns of one block again, what is not `kept` to 0; `codes` and `errors` become those that come of it.

    All are [columns, rows], `feed` is [columns, columns] and its strict lower triangle counts. `owed` knows the errors
    as they were before the block.
    """
    changes = torch.zeros_like(errors)
    for at in range(len(source)):
        target = source[at] + owed[at]
        if at:
            target.addmv_(changes[:at].T, feed[at, :at])
        column = {name: value[at] for name, value in spread.items()}
        chosen = number_format.round(target if kept is None else target.where(kept[at], 0.0), column)
        codes[at] = chosen
        error = source[at] - number_format.value(chosen, column)
        torch.sub(error, errors[at], out=changes[at])
        errors[at] = error
