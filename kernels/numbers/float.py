"""FP8 weights, E4M3FN (arXiv 2209.05433): sign, 4 bits of exponent, 3 of mantissa; ±448 at most, no infinities.

    ŵ = s·fp8(w/s)

Codes are the bit patterns. Scales are float32: one per tensor, per row (a channel), or per block of 128×128 as
DeepSeek-V3 has it (arXiv 2412.19437, 3.3); blocks at the right and lower edge may be partial.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from compress.kernels.numbers.bounds import held, sign_kept
from compress.kernels.qtensor import NumberFormat, Params
from compress.kernels.search.scales import least_error

Region = Literal["tensor", "channel", "block"]

FP8_MAX = torch.finfo(torch.float8_e4m3fn).max
BLOCK = 128
_SMALLEST = torch.finfo(torch.float32).tiny
_FACTORS = (0.9, 0.95, *(2 ** (step / 8) for step in range(1, 8)))
"""Scales to try, as parts of max|w|/448: one octave, for twice the scale is the same grid, moved by a bit."""


def fp8_codes(x: Tensor) -> Tensor:
    """Bit patterns uint8 of x, floating-point and not NaN: nearest, ties to even, ±448 at most."""
    return x.clamp(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn).view(torch.uint8)


def fp8_values(codes: Tensor) -> Tensor:
    """The fp32 values of bit patterns uint8; 0x7f and 0xff, which `fp8_codes` never gives, are NaN."""
    return codes.view(torch.float8_e4m3fn).float()


@dataclass(frozen=True)
class FloatFormat(NumberFormat):
    """FP8 E4M3FN. `scale` float32, finite and positive: [row regions, column regions].

    That is [1, 1] per tensor, [rows, 1] per channel, [⌈rows/128⌉, ⌈columns/128⌉] per block.
    """

    per: Region = "channel"

    def __post_init__(self) -> None:
        if self.per not in ("tensor", "channel", "block"):
            raise ValueError(f"an FP8 scale is one per tensor, channel or block, not per {self.per!r}")

    @property
    def name(self) -> str:
        return f"fp8 per {self.per}"

    @property
    def levels(self) -> int:
        return 256

    @property
    def rows_apart(self) -> bool:
        return self.per == "channel"

    def param_shapes(self, shape: tuple[int, ...]) -> dict[str, tuple[tuple[int, ...], str]]:
        height, width = self._region(shape)
        return {"scale": ((-(-shape[0] // height), -(-shape[1] // width)), "float32")}

    def _fit(self, weight: Tensor, importance: Tensor | None) -> Params:
        largest = self._regions(weight.abs()).amax((1, 3))
        plain = torch.where(largest > 0, (largest / FP8_MAX).clamp(min=_SMALLEST), 1.0)
        return {"scale": plain if importance is None else self._searched(weight, importance, plain)}

    def _searched(self, weight: Tensor, importance: Tensor, plain: Tensor) -> Tensor:
        """Of `plain` and its multiples, region by region, the scale of the least weighted error."""
        unit = self.expand({"scale": plain}, tuple(weight.shape))["scale"]

        def error(scale: Tensor) -> Tensor:
            spread = self.expand({"scale": scale}, tuple(weight.shape))
            # Relative to the plain scale, no square leaves the range of float32.
            difference = self.value(self.round(weight, spread), spread).sub_(weight).div_(unit)
            return self._regions(difference.square_().mul_(importance)).sum((1, 3))

        return least_error([plain, *((plain * factor).clamp(min=_SMALLEST) for factor in _FACTORS)], error)

    def reals(self, params: Params) -> dict[str, Tensor]:
        return {"scale": params["scale"].float()}

    def stored(self, params: Params, reals: Params) -> Params:
        return {"scale": held(sign_kept(reals["scale"], params["scale"], _SMALLEST), torch.float32)}

    def spread(self, params: Params, reals: Params, shape: tuple[int, ...]) -> Params:
        height, width = self._region(shape)
        rows = reals["scale"].repeat_interleave(height, 0)[: shape[0]]
        return {"scale": rows.repeat_interleave(width, 1)[:, : shape[1]]}

    def round(self, weight: Tensor, expanded: Params) -> Tensor:
        return fp8_codes(weight / expanded["scale"]).float()

    def value(self, codes: Tensor, expanded: Params) -> Tensor:
        return fp8_values(codes.byte()) * expanded["scale"]

    def times_rows(self, params: Params, factors: Tensor) -> Params | None:
        if self.per != "channel":
            return None
        scale = params["scale"] * factors.unsqueeze(1)
        return {"scale": scale} if bool((scale.isfinite() & (scale >= _SMALLEST)).all()) else None

    def bits_per_weight(self, shape: tuple[int, ...]) -> float:
        rows, columns = self.param_shapes(shape)["scale"][0]
        return 8 + 32 * rows * columns / (shape[0] * shape[1])

    def _region(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Rows and columns that share a scale."""
        return {"tensor": (shape[0], shape[1]), "channel": (1, shape[1]), "block": (BLOCK, BLOCK)}[self.per]

    def _regions(self, matrix: Tensor) -> Tensor:
        """[row regions, height, column regions, width], filled up with zeros."""
        height, width = self._region(tuple(matrix.shape))
        rows, columns = matrix.shape
        filled = pad(matrix, (0, -columns % width, 0, -rows % height))
        return filled.view(filled.shape[0] // height, height, filled.shape[1] // width, width)
