"""AWQ (arXiv 2306.00978): scale input channels so that rounding spares those that carry large activations.

With x/s into W·diag(s), channel i is rounded s_i times as finely as its neighbours in the group. Scales are
scored by what they are for, the error of the layer's outputs over the calibration data, in closed form:
tr(E·H·Eᵀ), E = W − Q(W·diag(s))·diag(1/s), H = XᵀX. No forward runs, however many scales are tried.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from compress.kernels.effort import Effort
from compress.kernels.measure.error import error_effort, output_energy
from compress.kernels.qtensor import NumberFormat, Params, quantize

_GRID = 20
_CLIPS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.55, 0.5)
_SMALLEST = 1e-4


def power_scale(magnitude: Tensor, gamma: float, share: Tensor | None = None) -> Tensor:
    """s = m^γ, or m^γ / w^(1−γ) with w = `share`: [in] fp32 > 0, with the geometric mean 1.

    `magnitude` m = mean|x| [in] (equation 5); `share` [in] is `weight_share` (AutoAWQ's duo scaling). Channels
    that are always zero get 1.
    """
    live = magnitude > 0
    logs = gamma * magnitude.clamp(min=torch.finfo(torch.float32).tiny).log()
    if share is not None:
        logs = logs - (1 - gamma) * share.clamp(min=_SMALLEST).log()
    logs = logs - logs[live].mean() if bool(live.any()) else logs
    return torch.where(live, logs, 0.0).exp().clamp(_SMALLEST, 1 / _SMALLEST)


def weight_share(weights: Iterable[Tensor], groups: int) -> Tensor:
    """How much of its group's range each input channel uses on average, 0 … 1: [in], over weights [out, in].

    `groups` are those of a row: columns that lie side by side and share a scale.
    """
    weight = torch.cat(list(weights)).abs()
    split = weight.view(len(weight), groups, -1)
    return (split / split.amax(-1, keepdim=True).clamp(min=1e-30)).mean(0).flatten()


def grid(magnitude: Tensor, share: Tensor) -> Iterator[Tensor]:
    """The scales to try: γ = 0 … 1 in 20 steps, without the weight term and with it. The first is 1 everywhere."""
    for term in (None, share):
        for step in range(_GRID):
            yield power_scale(magnitude, step / (_GRID - 1), term)


def scaled_error(weight: Tensor, hessian: Tensor, number_format: NumberFormat, scale: Tensor) -> float:
    """tr(E·H·Eᵀ) of `weight` [out, in] rounded to nearest with its inputs scaled; H is of the unscaled inputs."""
    scaled = weight * scale
    rounded = number_format.search(scaled).dequantize()
    return output_energy(weight - rounded.div_(scale), hessian)


def scale_effort(shape: tuple[int, ...], number_format: NumberFormat) -> Effort:
    """What it takes to score the scales of `grid` by `scaled_error`."""
    return (number_format.effort(shape, searched=False) + error_effort(shape) * 0.5) * (2 * _GRID)


def clip_effort(shape: tuple[int, ...], number_format: NumberFormat) -> Effort:
    """What `clipped_params` takes."""
    rows, columns = shape
    blocks = Effort(flops=2 * rows * columns**2 / max(1, number_format.groups(shape)), elements=4 * rows * columns)
    cuts = (number_format.effort(shape, searched=False) + blocks) * (len(_CLIPS) + 1)
    return number_format.effort(shape, searched=True) + cuts


def clipped_params(weight: Tensor, hessian: Tensor, number_format: NumberFormat) -> Params:
    """Parameters of `weight` [out, in] fp32, each group's range cut where its outputs err least.

    The error of a group g is e·H_gg·eᵀ, e its row of W − Ŵ: exact but for what groups do to each other. Tried are
    the range cut to 100 … 50 %, and what the number format finds for the importance diag(H). Formats that have
    other parameters than one per group keep the best of these for the whole weight.
    """
    best = number_format.fit(weight, hessian.diagonal())
    groups = number_format.groups(tuple(weight.shape))
    apart = all(value.shape == (len(weight), groups) for value in best.values())
    blocks = _diagonal_blocks(hessian, groups)
    least = _block_errors(weight, blocks, number_format, best)
    low, high = (extreme.unsqueeze(-1) for extreme in weight.view(len(weight), groups, -1).aminmax(dim=-1))
    for part in _CLIPS:
        cut = weight.view(len(weight), groups, -1).clamp(low * part, high * part).view_as(weight)
        params = number_format.fit(cut)
        errors = _block_errors(weight, blocks, number_format, params)
        better = errors < least if apart else errors.sum() < least.sum()
        least = torch.where(better, errors, least)
        best = {name: torch.where(better, value, best[name]) for name, value in params.items()}
    return best


def clip(weight: Tensor, number_format: NumberFormat, params: Params) -> Tensor:
    """`weight` [out, in] brought into the range of its grid, not rounded."""
    spread = number_format.expand(params, tuple(weight.shape))

    def reached(far: float) -> Tensor:
        return number_format.value(number_format.round(torch.full_like(weight, far), spread), spread)

    return torch.minimum(torch.maximum(weight, reached(-torch.inf)), reached(torch.inf))


def _diagonal_blocks(hessian: Tensor, groups: int) -> Tensor:
    """H_gg of each group: [groups, n, n]."""
    each = torch.arange(groups, device=hessian.device)
    size = len(hessian) // groups
    return hessian.view(groups, size, groups, size)[each, :, each]


def _block_errors(weight: Tensor, blocks: Tensor, number_format: NumberFormat, params: Params) -> Tensor:
    """e·H_gg·eᵀ of every row and group: [rows, groups]."""
    difference = quantize(weight, number_format, params).dequantize().sub_(weight)
    split = difference.view(len(weight), len(blocks), -1).transpose(0, 1)
    return (split @ blocks).mul_(split).sum(-1).T
