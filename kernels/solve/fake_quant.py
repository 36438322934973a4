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
from compress.kernels.rows import FEW, rows_at_once

_AT_THE_END = 2.0**-10
"""In scales: a weight this little beyond an end of the grid, as fp32 rounds, still lies on it."""
_STEEP = 1e30


def fake_quantize(
    weight: Tensor, number_format: NumberFormat, params: Params, reals: Params, in_steps: bool = False
) -> Tensor:
    """The values [rows, columns] fp32 that `weight` has once quantized, differentiable in it and in `reals`.

    `weight` [rows, columns] fp32 goes to the nearest code of `number_format` with `params`, in which `reals` (of the
    shapes of `number_format.reals(params)`, fp32) stand as they are stored. `in_steps`: it counts in steps of the grid
    (`NumberFormat.step`) under the scales of `params`. Where codes span columns no weight is taken for beyond an end.
    """
    return _quantized(_Given(number_format, params, weight=weight, in_steps=in_steps), reals)


def dequantize_trainable(codes: Tensor, number_format: NumberFormat, params: Params, reals: Params) -> Tensor:
    """The values [rows, columns] fp32 of `codes` that stay as they are, differentiable in `reals` (see above)."""
    return _quantized(_Given(number_format, params, codes=codes), reals)


def clipped(scaled: Tensor, number_format: NumberFormat, params: Params) -> tuple[Tensor, Tensor]:
    """`scaled`, (w − m)/s under parameters that broadcast, brought into the grid; and 1 where it was within, else 0."""
    if number_format.ends is None:
        return scaled, torch.ones_like(scaled)
    plain = _unscaled(params)
    like = plain.get("scale", scaled[..., :1])
    low, high = (number_format.value(torch.full_like(like, code), plain) for code in number_format.ends)
    # All in products: comparisons, torch.where and torch.clamp with tensors take 4 to 30 times as long (CPU).
    within = torch.minimum(scaled, high).maximum(low)
    return within, (scaled - within).abs_().sub_(_AT_THE_END).mul_(-_STEEP).clamp_(0, 1)


@dataclass(frozen=True)
class _Given:
    """Some rows, or all: the parameters, and the weight to be rounded or the codes that it has."""

    number_format: NumberFormat
    params: Params
    weight: Tensor | None = None
    codes: Tensor | None = None
    in_steps: bool = False

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
        step = rows_at_once(columns, self.device, FEW)
        if step >= rows or not self.number_format.rows_apart:
            yield slice(0, rows), self, stored
            return
        for start in range(0, rows, step):
            part = slice(start, start + step)
            weight, codes = (tensor if tensor is None else tensor[part] for tensor in (self.weight, self.codes))
            yield part, replace(self, params=_cut(self.params, part), weight=weight, codes=codes), _cut(stored, part)

    @property
    def grouped(self) -> bool:
        """Whether weights are laid out [rows, groups, columns of a group], beside parameters [rows, groups, 1]."""
        return self.number_format.rows_apart and self.number_format.span == 1

    def beside(self, params: Params, reals: Params) -> Params:
        """`params` with `reals`, in a shape that broadcasts with `laid` weights."""
        if not self.grouped:
            return self.number_format.spread(params, reals, self.shape)
        return {name: value.unsqueeze(-1) for name, value in self.number_format.grouped(params, reals).items()}

    def laid(self, matrix: Tensor, spread: Params) -> Tensor:
        """A view of `matrix` [rows, columns] that `spread` broadcasts with."""
        if not self.grouped or "scale" not in spread:
            return matrix
        grouped: Tensor = matrix.unflatten(1, (spread["scale"].shape[1], -1))
        return grouped

    def rounded(self, spread: Params) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Codes fp32 under `spread`; the weight that they are of, and what one of it stands for. All are laid out."""
        if self.weight is None:
            assert self.codes is not None
            return self.laid(self.codes, spread).float(), None, None
        weight, units = self.laid(self.weight, spread), None
        if self.in_steps:
            scales = self.beside(self.params, self.number_format.reals(self.params))["scale"]
            units = scales * self.number_format.step
            weight = weight * units
        return self.number_format.round(weight, spread), weight, units


def _cut(params: Params, part: slice) -> Params:
    return {name: value[part] for name, value in params.items()}


def _unscaled(spread: Params) -> Params:
    """`spread` with scales of 1 and minima of 0."""
    plain = {"scale": torch.ones_like, "minimum": torch.zeros_like}
    return {name: plain[name](value) if name in plain else value for name, value in spread.items()}


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
        number_format = given.number_format
        stored = number_format.stored(given.params, dict(zip(names, reals)))
        values = torch.empty(given.shape, device=given.device)
        for rows, part, params in given.parts(stored):
            spread = part.beside(params, number_format.reals(params))
            part.laid(values[rows], spread).copy_(number_format.value(part.rounded(spread)[0], spread))
        return values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight, *reals = ctx.saved_tensors
        given: _Given = replace(ctx.given, weight=weight)
        stored = given.number_format.stored(given.params, dict(zip(ctx.names, reals)))
        through = torch.empty_like(grad) if ctx.needs_input_grad[0] else None
        parts = [
            _gradients(part, params, grad[rows], None if through is None else through[rows])
            for rows, part, params in given.parts(stored)
        ]
        if not reals:
            return through, None, None
        leaves = {name: real.detach().requires_grad_() for name, real in given.number_format.reals(stored).items()}
        with torch.enable_grad():
            spread = given.beside(stored, leaves)
        learned = [name for name in parts[0] if spread[name].requires_grad]
        upstream = [torch.cat([part[name] for part in parts]) for name in learned]
        moved = torch.autograd.grad([spread[name] for name in learned], list(leaves.values()), upstream)
        return through, None, None, *moved


def _gradients(part: _Given, stored: Params, grad: Tensor, through: Tensor | None) -> dict[str, Tensor]:
    """The gradients of `scale` and `minimum` beside the weight; the weight's is written to `through`, if wanted."""
    number_format = part.number_format
    spread = part.beside(stored, number_format.reals(stored))
    grad = part.laid(grad, spread)
    codes, weight, units = part.rounded(spread)
    slopes, of_minimum = number_format.value(codes, _unscaled(spread)), grad
    if weight is not None:
        within, inside = clipped(to_scales(weight, spread), number_format, spread)
        slopes.addcmul_(within, inside, value=-1)
        inside.mul_(grad)
        of_minimum = grad - inside if "minimum" in spread else grad
        if through is not None:
            part.laid(through, spread).copy_(inside if units is None else inside.mul_(units))
    found = {"scale": slopes.mul_(grad), "minimum": of_minimum}
    return {name: _summed(value, spread[name]) for name, value in found.items() if name in spread}


def to_scales(weight: Tensor, spread: Params) -> Tensor:
    """(w − m)/s; a scale of 0 counts as 1."""
    if "minimum" in spread:
        weight = weight - spread["minimum"]
    return weight / torch.where(spread["scale"] == 0, 1.0, spread["scale"]) if "scale" in spread else weight


def _summed(gradient: Tensor, like: Tensor) -> Tensor:
    """The gradient of what was broadcast: summed over a group."""
    return gradient if gradient.shape == like.shape else gradient.sum(-1, keepdim=True)
