"""Number formats of what flows at run time: the inputs of linears, and the key/value cache.

An artifact names them beside its weights, and an engine rounds to them as it computes. They hold no data
themselves: a static one reads its scale from a tensor of the checkpoint. `grid_values` and `round_input`
compute what such an engine computes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from compress.kernels.numbers.float import FP8_MAX, fp8_codes, fp8_values

Grid = Literal["int8", "fp8"]
"""int8: scales put the largest value at 127; beyond it, −128 … 127. fp8: E4M3FN, ±448 (arXiv 2209.05433)."""

LARGEST: dict[Grid, float] = {"int8": 127.0, "fp8": FP8_MAX}
GROUP = 128
_SMALLEST = torch.finfo(torch.float32).tiny


@dataclass(frozen=True)
class ActivationFormat:
    """How the input x [tokens, in] of a linear layer is rounded: x̂ = s·round(x/s).

    Dynamic: s is computed from x at run time, for each token (`token`), for each 128 columns of a token
    (`group`, as DeepSeek-V3 has it beside weights in blocks) or for all of x (`tensor`).
    Static: one s for the layer, stored as the tensor `<module>.input_scale`, float32 of shape [1].
    """

    grid: Grid
    dynamic: bool
    per: Literal["token", "group", "tensor"] = "token"

    def __post_init__(self) -> None:
        if not self.dynamic and self.per != "tensor":
            raise ValueError("a static scale is one for the whole tensor")

    @property
    def name(self) -> str:
        """A short name for tables, as `int8 dynamic per token`."""
        return f"{self.grid} {'dynamic' if self.dynamic else 'static'} per {self.per}"


@dataclass(frozen=True)
class CacheFormat:
    """How keys (after the rotary embedding) and values are rounded in the cache.

    Static scales (per `tensor`, per `head`) are the tensors `<attention module>.k_scale` and `.v_scale`,
    float32, of shape [1] or [key/value heads]. Per `token` they are computed at run time, for every token and
    head; that is a choice of the one who runs the model, and no file holds it.
    """

    grid: Grid
    per: Literal["tensor", "head", "token"] = "tensor"

    @property
    def name(self) -> str:
        """A short name for tables, as `fp8 per head`."""
        return f"{self.grid} per {self.per}"


def grid_scale(largest: Tensor, grid: Grid) -> Tensor:
    """The scale (fp32, > 0) that brings `largest` = max|x| to the grid's largest value; 1 where it is zero."""
    return torch.where(largest > 0, (largest.float() / LARGEST[grid]).clamp(min=_SMALLEST), 1.0)


def grid_codes(x: Tensor, scale: Tensor, grid: Grid) -> Tensor:
    """The codes of x as bytes (uint8): of two's complement for int8, bit patterns for fp8. `scale` broadcasts."""
    scaled = x.float() / scale
    if grid == "fp8":
        return fp8_codes(scaled)
    return scaled.round_().clamp_(-128, 127).to(torch.int8).view(torch.uint8)


def grid_values(codes: Tensor, scale: Tensor, grid: Grid) -> Tensor:
    """The fp32 values that codes (uint8, see `grid_codes`) stand for."""
    values = fp8_values(codes) if grid == "fp8" else codes.view(torch.int8).float()
    return values.mul_(scale)


def round_to_grid(x: Tensor, scale: Tensor, grid: Grid) -> Tensor:
    """x̂, in the shape and dtype of x."""
    return grid_values(grid_codes(x, scale, grid), scale, grid).to(x.dtype)


def round_input(x: Tensor, number_format: ActivationFormat, scale: Tensor | None = None) -> Tensor:
    """x [..., in] as a kernel of this format sees it, in its dtype; `scale` [1] for a static format."""
    if not number_format.dynamic:
        assert scale is not None
        return round_to_grid(x, scale, number_format.grid)
    if number_format.per == "group":
        groups = pad(x, (0, -x.shape[-1] % GROUP)).unflatten(-1, (-1, GROUP))
        return _round_rows(groups, number_format.grid).flatten(-2)[..., : x.shape[-1]]
    if number_format.per == "tensor":
        return round_to_grid(x, grid_scale(x.abs().amax(), number_format.grid), number_format.grid)
    return _round_rows(x, number_format.grid)


def _round_rows(x: Tensor, grid: Grid) -> Tensor:
    return round_to_grid(x, grid_scale(x.abs().amax(-1, keepdim=True), grid), grid)
