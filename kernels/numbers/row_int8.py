"""LLM.int8() (arXiv 2208.07339): eight bits a weight, and each row's largest |w| in float32.

    ŵ = q·s/127,   q = −127 … 127

Not an IntFormat: its scale is a float16, and s/127 seldom is one. Codes and values are those of bitsandbytes
0.50.2 (int8_vectorwise_quant and int8_vectorwise_dequant), which takes weights in float16.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from compress.kernels.numbers.bounds import held, sign_kept
from compress.kernels.qtensor import NumberFormat, Params
from compress.kernels.search.scales import least_error

_ORIGIN = 128
_STEP = 7.874015718698502e-3  # 1/127, which bitsandbytes multiplies with in float32
_SMALLEST = 1e-36
_SHRINKS = tuple(1 - step / 50 for step in range(1, 8))


@dataclass(frozen=True)
class RowInt8Format(NumberFormat):
    """Codes are q + 128. `scale` float32 [rows, 1]: the largest |w| of a row."""

    @property
    def name(self) -> str:
        return "int8 per row absmax"

    @property
    def levels(self) -> int:
        return 256

    def param_shapes(self, shape: tuple[int, ...]) -> dict[str, tuple[tuple[int, ...], str]]:
        return {"scale": ((shape[0], 1), "float32")}

    def _fit(self, weight: Tensor, importance: Tensor | None) -> Params:
        plain = weight.abs().amax(1, keepdim=True)
        return {"scale": plain if importance is None else self._searched(weight, importance, plain)}

    def _searched(self, weight: Tensor, importance: Tensor, plain: Tensor) -> Tensor:
        """Of `plain` and parts of it, row by row, the scale of the least weighted error."""

        def error(scale: Tensor) -> Tensor:
            difference = self.value(self.round(weight, {"scale": scale}), {"scale": scale}).sub_(weight)
            return difference.square_().mul_(importance).sum(1, keepdim=True)

        return least_error([plain, *(plain * shrink for shrink in _SHRINKS)], error)

    def reals(self, params: Params) -> dict[str, Tensor]:
        return {"scale": params["scale"].float()}

    def stored(self, params: Params, reals: Params) -> Params:
        return {"scale": held(sign_kept(reals["scale"], params["scale"], _SMALLEST), torch.float32)}

    def round(self, weight: Tensor, expanded: Params) -> Tensor:
        # 127/s must not overflow; a row that small becomes zero.
        steps = weight * (127.0 / torch.where(expanded["scale"] > _SMALLEST, expanded["scale"], 1.0))
        return steps.round_().clamp_(-127, 127).add_(_ORIGIN)

    def value(self, codes: Tensor, expanded: Params) -> Tensor:
        return (codes - _ORIGIN).mul_(expanded["scale"]).mul_(_STEP)

    def bits_per_weight(self, shape: tuple[int, ...]) -> float:
        return 8 + 32 / shape[1]
