"""Quantization that gradients pass through: for training with the very values that are written in the end.

    w    straight-through within the grid, 0 beyond its ends (arXiv 1308.3432; 1902.08153, equation 5)
    s    (ŵ − w)/s within the grid, (ŵ − m)/s beyond (LSQ, arXiv 1902.08153, equation 3)
    m    0 within the grid, 1 beyond (LSQ+, arXiv 2004.09576, equation 6)

ŵ = s·u + m, u what the code stands for. That a scale or a minimum is rounded as it is stored (float16, a power of
two, …) is passed by straight through. Nothing of the size of the weight is kept for the backward: it rounds again,
some rows at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from compress.kernels.qtensor import NumberFormat, Params

_CHUNK = {"cpu": 1 << 17}  # what one pass leaves in the processor's cache, the next finds there
_LARGE_CHUNK = 1 << 26
_AT_THE_END = 2.0**-10
"""In scales: a weight this little beyond an end of the grid, as fp32 rounds, still lies on it."""


def fake_quantize(weight: Tensor, number_format: NumberFormat, params: Params, reals: Params) -> Tensor:
    """The values [rows, columns] fp32 that `weight` has once quantized, differentiable in it and in `reals`.

    `weight` [rows, columns] fp32 goes to the nearest code of `number_format` with `params`, in which `reals` (of the
    shapes of `number_format.reals(params)`, fp32) stand as they are stored. Where codes span columns no weight is
    beyond an end.
    """
    return _quantized(weight, None, number_format, params, reals)


def dequantize_trainable(codes: Tensor, number_format: NumberFormat, params: Params, reals: Params) -> Tensor:
    """The values [rows, columns] fp32 of `codes` that stay as they are, differentiable in `reals` (see above)."""
    return _quantized(None, codes, number_format, params, reals)


def _quantized(
    weight: Tensor | None, codes: Tensor | None, number_format: NumberFormat, params: Params, reals: Params
) -> Tensor:
    apply: Callable[..., Tensor] = _Quantized.apply
    return apply(weight, codes, number_format, params, tuple(reals), *reals.values())


class _Quantized(torch.autograd.Function):
    """Of weight and codes one is None: codes are those nearest to the weight, or given."""

    @staticmethod
    def forward(
        ctx: Any,
        weight: Tensor | None,
        codes: Tensor | None,
        number_format: NumberFormat,
        params: Params,
        names: tuple[str, ...],
        *reals: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(weight, codes, *reals)
        ctx.number_format, ctx.params, ctx.names = number_format, params, names
        stored = number_format.stored(params, dict(zip(names, reals)))
        values = _empty(weight, codes, number_format)
        for rows, part, moved in _parts(number_format, stored, values):
            spread = number_format.spread(part, moved, tuple(values[rows].shape))
            chosen = _codes(weight, codes, rows, number_format, spread)
            values[rows] = number_format.value(chosen, spread)
        return values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        weight, codes, *reals = ctx.saved_tensors
        (grad,) = grads
        number_format: NumberFormat = ctx.number_format
        stored = number_format.stored(ctx.params, dict(zip(ctx.names, reals)))
        through = torch.empty_like(grad) if ctx.needs_input_grad[0] else None
        found: list[list[Tensor]] = []
        for rows, part, moved in _parts(number_format, stored, grad):
            leaves = [moved[name].detach().requires_grad_() for name in ctx.names]
            with torch.enable_grad():
                spread = number_format.spread(part, dict(zip(ctx.names, leaves)), tuple(grad[rows].shape))
            plain = {name: value.detach() for name, value in spread.items()}
            chosen = _codes(weight, codes, rows, number_format, plain)
            slopes, beyond = _slopes(None if weight is None else weight[rows], chosen, number_format, plain)
            if through is not None:
                torch.mul(grad[rows], ~beyond, out=through[rows])
            if leaves:
                learned = [name for name in slopes if spread[name].requires_grad]
                pulled = [slopes[name].mul_(grad[rows]) for name in learned]
                found.append(list(torch.autograd.grad([spread[name] for name in learned], leaves, pulled)))
        return (through, None, None, None, None, *(torch.cat(parts) for parts in zip(*found)))


def _slopes(
    weight: Tensor | None, codes: Tensor, number_format: NumberFormat, spread: Params
) -> tuple[dict[str, Tensor], Tensor]:
    """How values go with the `scale` and `minimum` of `spread`, and where the weight is beyond the grid."""
    values = number_format.value(codes, spread)
    scale = spread.get("scale", torch.ones((), device=codes.device))
    scale = torch.where(scale == 0, 1.0, scale)
    by_code = (values - spread["minimum"] if "minimum" in spread else values) / scale
    if weight is None:
        beyond = torch.ones_like(values, dtype=torch.bool)  # their codes do not move with the scale either
        slopes = {"scale": by_code, "minimum": beyond.float()}
    else:
        short = (values - weight).div_(scale)
        beyond = _beyond(short, codes, number_format)
        slopes = {"scale": torch.where(beyond, by_code, short), "minimum": beyond.float()}
    return {name: slope for name, slope in slopes.items() if name in spread}, beyond


def _beyond(short: Tensor, codes: Tensor, number_format: NumberFormat) -> Tensor:
    """Where the code is an outermost one and the weight further out; `short` is (ŵ − w)/s."""
    if number_format.ends is None:
        return torch.zeros_like(short, dtype=torch.bool)
    low, high = number_format.ends
    below = (codes == low).logical_and_(short > _AT_THE_END)
    return below.logical_or_((codes == high).logical_and_(short < -_AT_THE_END))


def _codes(
    weight: Tensor | None, codes: Tensor | None, rows: slice, number_format: NumberFormat, spread: Params
) -> Tensor:
    if weight is not None:
        return number_format.round(weight[rows], spread)
    assert codes is not None
    return codes[rows].float()


def _empty(weight: Tensor | None, codes: Tensor | None, number_format: NumberFormat) -> Tensor:
    if weight is not None:
        return torch.empty_like(weight, dtype=torch.float32)
    assert codes is not None
    shape = (codes.shape[0], codes.shape[1] * number_format.span)
    return torch.empty(shape, dtype=torch.float32, device=codes.device)


def _parts(number_format: NumberFormat, stored: Params, like: Tensor) -> Iterator[tuple[slice, Params, Params]]:
    """Some rows of a matrix like `like` at a time, with their parameters and reals; all rows where those span them."""
    reals = number_format.reals(stored)
    rows, columns = like.shape
    step = max(1, _CHUNK.get(like.device.type, _LARGE_CHUNK) // columns) if number_format.rows_apart else rows
    for start in range(0, rows, step):
        part = slice(start, start + step)
        if step >= rows:
            yield part, stored, reals
        else:
            yield part, _cut(stored, part), _cut(reals, part)


def _cut(params: Params, part: slice) -> Params:
    return {name: value[part] for name, value in params.items()}
