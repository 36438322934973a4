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
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from compress.kernels.qtensor import NumberFormat, Params

_CHUNK = {"cpu": 1 << 17}  # what one pass leaves in the processor's cache, the next finds there
_LARGE_CHUNK = 1 << 26
_AT_THE_END = 2.0**-10
"""In scales: a weight this little beyond an end of the grid, as fp32 rounds, still lies on it."""


def fake_quantize(
    weight: Tensor, number_format: NumberFormat, params: Params, reals: Params, in_scales: bool = False
) -> Tensor:
    """The values [rows, columns] fp32 that `weight` has once quantized, differentiable in it and in `reals`.

    `weight` [rows, columns] fp32 goes to the nearest code of `number_format` with `params`, in which `reals` (of the
    shapes of `number_format.reals(params)`, fp32) stand as they are stored. `in_scales`: it counts in the scales of
    `params`. Where codes span columns no weight is taken for beyond an end.
    """
    return _quantized(_Given(number_format, params, weight=weight, in_scales=in_scales), reals)


def dequantize_trainable(codes: Tensor, number_format: NumberFormat, params: Params, reals: Params) -> Tensor:
    """The values [rows, columns] fp32 of `codes` that stay as they are, differentiable in `reals` (see above)."""
    return _quantized(_Given(number_format, params, codes=codes), reals)


def beyond_ends(short: Tensor, codes: Tensor, number_format: NumberFormat) -> Tensor:
    """Where the code is an outermost one and the weight further out, bool; `short` is (ŵ − w)/s, `codes` are fp32."""
    if number_format.ends is None:
        return torch.zeros_like(short, dtype=torch.bool)
    low, high = number_format.ends
    below = (codes == low).logical_and_(short > _AT_THE_END)
    return below.logical_or_((codes == high).logical_and_(short < -_AT_THE_END))


@dataclass(frozen=True)
class _Given:
    """Some rows, or all: the parameters, and the weight to be rounded or the codes that it has."""

    number_format: NumberFormat
    params: Params
    weight: Tensor | None = None
    codes: Tensor | None = None
    in_scales: bool = False

    @property
    def shape(self) -> tuple[int, int]:
        given = self._tensor
        return given.shape[0], given.shape[1] * (self.number_format.span if given is self.codes else 1)

    @property
    def device(self) -> torch.device:
        return self._tensor.device

    @property
    def _tensor(self) -> Tensor:
        (tensor,) = (each for each in (self.weight, self.codes) if each is not None)
        return tensor

    def parts(self, stored: Params) -> Iterator[tuple[slice, _Given, Params]]:
        """Some rows at a time, with what of `stored` is theirs; all rows at once where parameters span them."""
        rows, columns = self.shape
        step = max(1, _CHUNK.get(self.device.type, _LARGE_CHUNK) // columns)
        if step >= rows or not self.number_format.rows_apart:
            yield slice(0, rows), self, stored
            return
        for start in range(0, rows, step):
            part = slice(start, start + step)
            weight, codes = (tensor if tensor is None else tensor[part] for tensor in (self.weight, self.codes))
            yield part, replace(self, params=_cut(self.params, part), weight=weight, codes=codes), _cut(stored, part)

    def units(self) -> Tensor | None:
        """What one of every weight stands for, where that is not 1."""
        return self.number_format.expand(self.params, self.shape)["scale"] if self.in_scales else None


def _cut(params: Params, part: slice) -> Params:
    return {name: value[part] for name, value in params.items()}


def _quantized(given: _Given, reals: Params) -> Tensor:
    apply: Callable[..., Tensor] = _Quantized.apply
    return apply(given.weight, replace(given, weight=None), tuple(reals), *reals.values())


class _Quantized(torch.autograd.Function):
    """Values [rows, columns] of what is given without its weight, which is the first argument, or None."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor | None, given: _Given, names: tuple[str, ...], *reals: Tensor) -> Tensor:
        ctx.save_for_backward(weight, *reals)
        ctx.given, ctx.names = given, names
        given = replace(given, weight=weight)
        stored = given.number_format.stored(given.params, dict(zip(names, reals)))
        values = torch.empty(given.shape, device=given.device)
        for rows, part, params in given.parts(stored):
            spread = given.number_format.expand(params, part.shape)
            values[rows] = given.number_format.value(_round(part, spread)[0], spread)
        return values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight, *reals = ctx.saved_tensors
        given: _Given = replace(ctx.given, weight=weight)
        stored = given.number_format.stored(given.params, dict(zip(ctx.names, reals)))
        through = torch.empty_like(grad) if ctx.needs_input_grad[0] else None
        moved = [_gradients(part, params, grad[rows], None if through is None else through[rows])
                 for rows, part, params in given.parts(stored)]  # fmt: skip
        return through, None, None, *(torch.cat([part[name] for part in moved]) for name in ctx.names)


def _gradients(part: _Given, stored: Params, grad: Tensor, through: Tensor | None) -> dict[str, Tensor]:
    """The gradients of the reals; that of the weight is written to `through`, if it is wanted."""
    number_format = part.number_format
    leaves = {name: real.detach().requires_grad_() for name, real in number_format.reals(stored).items()}
    with torch.enable_grad():
        spread = number_format.spread(stored, leaves, part.shape)
    plain = {name: value.detach() for name, value in spread.items()}
    codes, weight, units = _round(part, plain)
    slopes, beyond = _slopes(weight, codes, number_format, plain)
    if through is not None:
        torch.mul(grad, ~beyond, out=through)
        if units is not None:
            through.mul_(units)
    learned = [name for name in slopes if spread[name].requires_grad]
    if not learned:
        return {}
    upstream = [slopes[name].mul_(grad) for name in learned]
    return torch.autograd.grad([spread[name] for name in learned], leaves, upstream)


def _round(part: _Given, spread: Params) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Codes fp32 under `spread`; the weight that they were rounded from, and its units."""
    if part.weight is None:
        assert part.codes is not None
        return part.codes.float(), None, None
    units = part.units()
    weight = part.weight if units is None else part.weight * units
    return part.number_format.round(weight, spread), weight, units


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
        beyond = beyond_ends(short, codes, number_format)
        slopes = {"scale": torch.where(beyond, by_code, short), "minimum": beyond.float()}
    return {name: slope for name, slope in slopes.items() if name in spread}, beyond
