"""FP4 weights in blocks, E2M1 (0, ½, 1, 1½, 2, 3, 4, 6 and their negatives), as current GPUs multiply them.

    mxfp4    ŵ = 2^(e − 127)·fp4        32 columns share an exponent e, E8M0 (OCP Microscaling Formats 1.0)
    nvfp4    ŵ = t·s·fp4                16 columns share s, FP8 E4M3; all of the tensor t (NVIDIA's NVFP4)

Codes are bit patterns. t is fitted as a power of two: so every product is exact even in bfloat16, and containers
that store t and those that store 1/t hold the same numbers. Files of others may have any t > 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
from torch import Tensor

from compress.kernels.numbers.bounds import sign_kept
from compress.kernels.numbers.float import FP8_MAX, fp8_codes, fp8_values
from compress.kernels.numbers.steps import Steps, looked_up
from compress.kernels.qtensor import NumberFormat, Params
from compress.kernels.search.scales import least_error

Scheme = Literal["mxfp4", "nvfp4"]

_BLOCKS: dict[Scheme, int] = {"mxfp4": 32, "nvfp4": 16}
_VALUES = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])
_LARGEST = 6.0
_BORDERS = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5])
# A border belongs to the even code: that below it at first, then that above, and so on in turn.
_BORDERS[1::2] = torch.nextafter(_BORDERS[1::2], torch.zeros(()))
_SIGNED = torch.cat([_VALUES, -_VALUES])
_SMALLEST_FP8 = 2.0**-9
_SUBNORMAL = 1 << 22
"""The bit pattern of 2^-127."""
TOP_EXPONENT = 252
"""The largest exponent whose 6 is still a float32."""
_STEPS: dict[Scheme, tuple[int, ...]] = {"mxfp4": (-1, 1), "nvfp4": (-4, -3, -2, -1, 1, 2)}
"""Other scales that the search tries, in steps of the scale's own bit pattern."""


@dataclass(frozen=True)
class Float4Format(NumberFormat):
    """E2M1 in blocks of one row.

    mxfp4: `scale` uint8 [rows, columns / 32], exponents 1 … 252, in files of others 0 as well. nvfp4: `scale` uint8
    [rows, columns / 16], bit patterns of positive E4M3 numbers, and `tensor_scale` float32 [rows, 1], which says the
    same number in every row. It is one for all linears that are quantized together (q/k/v): engines that fuse them
    want so.
    """

    scheme: Scheme

    def __post_init__(self) -> None:
        if self.scheme not in _BLOCKS:
            raise ValueError(f"FP4 formats are {', '.join(_BLOCKS)}, not {self.scheme!r}")

    @property
    def name(self) -> str:
        return self.scheme

    @property
    def levels(self) -> int:
        return 16

    @property
    def block(self) -> int:
        """Columns that share a scale."""
        return _BLOCKS[self.scheme]

    def columns_misfit(self, columns: int) -> str | None:
        if columns % self.block:
            return f"{columns} columns do not divide into blocks of {self.block}, which is what {self.name} has"
        return None

    def param_shapes(self, shape: tuple[int, ...]) -> dict[str, tuple[tuple[int, ...], str]]:
        shapes: dict[str, tuple[tuple[int, ...], str]] = {"scale": ((shape[0], shape[1] // self.block), "uint8")}
        if self.scheme == "nvfp4":
            shapes["tensor_scale"] = ((shape[0], 1), "float32")
        return shapes

    def _fit(self, weight: Tensor, importance: Tensor | None) -> Params:
        plain = self._plain(weight)
        return plain if importance is None else self._searched(weight, importance, plain)

    def _plain(self, weight: Tensor) -> dict[str, Tensor]:
        largest = weight.abs().unflatten(1, (-1, self.block)).amax(-1)
        if self.scheme == "mxfp4":
            return {"scale": torch.where(largest > 0, _exponent(largest), 127).byte()}
        whole = largest.amax() / (_LARGEST * FP8_MAX)
        tensor_scale = _power_of_two(whole).expand(len(weight), 1).contiguous()
        wanted = largest / _LARGEST / tensor_scale
        return {"scale": fp8_codes(wanted.clamp(min=_SMALLEST_FP8)), "tensor_scale": tensor_scale}

    def _searched(self, weight: Tensor, importance: Tensor, plain: dict[str, Tensor]) -> Params:
        """Of `plain` and its neighbours, block by block, the scale of the least weighted error."""
        unit = self.expand(plain, tuple(weight.shape))["scale"]
        ceiling = TOP_EXPONENT if self.scheme == "mxfp4" else 0x7E

        def error(scale: Tensor) -> Tensor:
            spread = self.expand({**plain, "scale": scale}, tuple(weight.shape))
            # Relative to the plain scale, no square leaves the range of float32.
            difference = self.value(self.round(weight, spread), spread).sub_(weight).div_(unit)
            blocks: Tensor = difference.square_().mul_(importance).unflatten(1, (-1, self.block))
            return blocks.sum(-1)

        moved = ((plain["scale"].int() + step).clamp_(1, ceiling).byte() for step in _STEPS[self.scheme])
        return {**plain, "scale": least_error([plain["scale"], *moved], error)}

    def reals(self, params: Params) -> dict[str, Tensor]:
        if self.scheme == "mxfp4":
            return {"scale": _two_to(params["scale"].int())}
        return {"scale": fp8_values(params["scale"]) * params["tensor_scale"]}

    def stored(self, params: Params, reals: Params) -> Params:
        """A power of two is the nearest by ratio; of nvfp4's two factors `tensor_scale` stays."""
        if self.scheme == "mxfp4":
            return {"scale": _nearest_exponent(reals["scale"])}
        steps = reals["scale"] / params["tensor_scale"]
        return {**params, "scale": fp8_codes(sign_kept(steps, fp8_values(params["scale"]), _SMALLEST_FP8))}

    def round(self, weight: Tensor, expanded: Params) -> Tensor:
        scaled = weight / expanded["scale"]
        return _steps(scaled.device).below(scaled.abs()).add_(scaled.signbit(), alpha=8)

    def value(self, codes: Tensor, expanded: Params) -> Tensor:
        return looked_up(_SIGNED.to(codes.device), codes) * expanded["scale"]

    def bits_per_weight(self, shape: tuple[int, ...]) -> float:
        whole = 32 / (shape[0] * shape[1]) if self.scheme == "nvfp4" else 0
        return 4 + 8 / self.block + whole


@cache
def _steps(device: torch.device) -> Steps:
    return Steps(_BORDERS.to(device))


def _exponent(largest: Tensor) -> Tensor:
    """The E8M0 exponents int32 of blocks whose largest value is `largest` > 0: it comes to lie in 3.5 … 7.

    From 7 on the next exponent is taken: saturating at 6 would cost more than the coarser steps.
    """
    mantissa, exponent = torch.frexp(largest)  # largest = mantissa·2^exponent, ½ ≤ mantissa < 1
    return (exponent - 3 + (mantissa >= 0.875) + 127).clamp_(1, TOP_EXPONENT)


def _nearest_exponent(scale: Tensor) -> Tensor:
    """The E8M0 exponents uint8 of the powers of two nearest to `scale` by ratio; the smallest for what is ≤ 0."""
    mantissa, exponent = torch.frexp(scale)  # ½ ≤ |mantissa| < 1
    exponent = exponent - (mantissa < 0.5**0.5).int() + 127
    return torch.where(scale > 0, exponent, 1).clamp_(1, TOP_EXPONENT).byte()


def _power_of_two(least: Tensor) -> Tensor:
    """The smallest power of two ≥ `least` [] fp32, within the normal numbers; 1 for 0."""
    mantissa, exponent = torch.frexp(least)
    exponent = exponent - (mantissa == 0.5).int()
    return torch.where(least > 0, _two_to((exponent + 127).clamp(1, 254)), 1.0)


def _two_to(biased: Tensor) -> Tensor:
    """2^(e − 127) fp32 of exponents e int32, 0 … 254: their place in the bit pattern, so nothing is rounded."""
    return torch.where(biased == 0, _SUBNORMAL, biased << 23).view(torch.float32)
