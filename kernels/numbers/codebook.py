"""Four bits through a table of sixteen values, scaled block by block: NF4, FP4 and the textbook tables.

    ŵ = s·table[q]

A block is `block_size` neighbouring weights of a row. For nf4 and fp4, s is the block's largest |w| and codes
are those of bitsandbytes 0.50.2 (quantize_4bit on a CPU, float32 weights), bit for bit: w·(1/s) is compared
with the midpoints of the table, a tie goes down. For quantile and lloyd_max, s is the block's √mean(w²).
Given an importance, s is searched instead: containers hold any s > 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from compress.kernels.numbers.bounds import held, sign_kept
from compress.kernels.numbers.nested_scales import NESTED_BLOCK, nest, renest, unnest
from compress.kernels.numbers.tables import BY_LARGEST, LEVELS, Table, codebook
from compress.kernels.qtensor import NumberFormat, Params, QTensor, quantize
from compress.kernels.rows import rows_at_once

_USUAL_BLOCKS = (32, 64, 128, 256, 512, 1024, 2048, 4096)
_SMALLEST = 1e-38  # bitsandbytes' least divisor: a block of zeros has the scale 0
_SHRINKS = tuple(0.7 + 0.05 * step for step in range(9))
"""Scales to try, as parts of the plain one; each is then fitted in closed form."""


@dataclass(frozen=True)
class CodebookFormat(NumberFormat):
    """A table of 16 values. Parameters, b being the blocks of a row:

    `scale` float32 [rows, b]. With `double_quant` (kernels/numbers/nested_scales.py) it is `scale` uint8 [rows, b],
    `nested_scale` float32 [⌈rows·b/256⌉] and `offset` float32 [1] instead.
    """

    table: Table
    block_size: int = 64
    double_quant: bool = False

    def __post_init__(self) -> None:
        if self.table not in ("nf4", "fp4", "quantile", "lloyd_max"):
            raise ValueError(f"a table is nf4, fp4, quantile or lloyd_max, not {self.table!r}")
        if self.block_size < 1:
            raise ValueError(f"a block has at least one weight, not {self.block_size}")

    @property
    def name(self) -> str:
        return f"{self.table} b{self.block_size}{' double' if self.double_quant else ''}"

    @property
    def levels(self) -> int:
        return LEVELS

    @property
    def levers(self) -> tuple[str, ...]:
        return () if self.double_quant else ("scale",)

    @property
    def rows_apart(self) -> bool:
        return not self.double_quant

    def columns_misfit(self, columns: int) -> str | None:
        if columns % self.block_size == 0:
            return None
        fitting = ", ".join(str(size) for size in _USUAL_BLOCKS if columns % size == 0)
        return (
            f"{columns} columns do not divide into blocks of {self.block_size}; "
            f"block sizes that work: {fitting or 'none that bitsandbytes has'}"
        )

    def param_shapes(self, shape: tuple[int, ...]) -> dict[str, tuple[tuple[int, ...], str]]:
        grid = (shape[0], shape[1] // self.block_size)
        if not self.double_quant:
            return {"scale": (grid, "float32")}
        nested = -(-grid[0] * grid[1] // NESTED_BLOCK)
        return {"scale": (grid, "uint8"), "nested_scale": ((nested,), "float32"), "offset": ((1,), "float32")}

    def _fit(self, weight: Tensor, importance: Tensor | None) -> Params:
        plain = self._plain(weight)
        if importance is None:
            return self._fitted(plain)
        searched = torch.cat([self._searched(*part) for part in self._parts(weight, importance, plain)])
        if not self.double_quant:
            return {"scale": searched}
        # Rounding the scales may undo what the search gained.
        candidates = [self._fitted(plain), self._fitted(searched)]
        return min(candidates, key=lambda params: self._error(weight, importance, params))

    def _plain(self, weight: Tensor) -> Tensor:
        """Scales [rows, b] by the rule of the table."""
        blocks = weight.reshape(len(weight), -1, self.block_size)
        if self.table in BY_LARGEST:
            return blocks.abs().amax(2)
        return blocks.square().mean(2).sqrt()

    def _parts(self, weight: Tensor, importance: Tensor, scale: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Blocks [r, b, block size], their importance [1, b, block size] and scales [r, b], some rows at a time."""
        rows = rows_at_once(weight.shape[1], weight.device)
        spread = importance.view(1, -1, self.block_size)
        for part, plain in zip(weight.split(rows), scale.split(rows)):
            yield part.reshape(len(part), -1, self.block_size), spread, plain

    def _searched(self, blocks: Tensor, importance: Tensor, plain: Tensor) -> Tensor:
        """Scales [r, b] of a small Σ importance·(w − ŵ)²: for fixed codes t, the best is Σhwt / Σht².

        It takes the error down by (Σhwt)² / Σht² from Σhw²: what is gained is compared, candidate by candidate.
        """
        weighted = blocks * importance
        best, gain = plain, torch.zeros_like(plain)
        for shrink in (*_SHRINKS, None):
            attempt = (best if shrink is None else plain * shrink).unsqueeze(-1)
            table = codebook(self.table, blocks.device)
            values = table.value(table.nearest(blocks * _reciprocal(attempt)))
            product = (weighted * values).sum(-1)
            power = values.square_().mul_(importance).sum(-1)
            better = (product > 0) & (product.square() > gain * power)
            gain = torch.where(better, product.square() / power, gain)
            best = torch.where(better, product / power, best)
        return best

    def _fitted(self, scale: Tensor) -> Params:
        if not self.double_quant:
            return {"scale": scale}
        codes, nested, offset = nest(scale.flatten())
        return {"scale": codes.view_as(scale), "nested_scale": nested, "offset": offset}

    def _error(self, weight: Tensor, importance: Tensor, params: Params) -> float:
        difference = quantize(weight, self, params).dequantize().sub_(weight)
        return float(difference.square_().mul_(importance).sum(dtype=torch.float64))

    def reals(self, params: Params) -> dict[str, Tensor]:
        scale = params["scale"]
        if self.double_quant:
            scale = unnest(scale.flatten(), params["nested_scale"], params["offset"]).view_as(scale)
        return {"scale": scale}

    def stored(self, params: Params, reals: Params) -> Params:
        before = self.reals(params)["scale"]
        scale = held(sign_kept(reals["scale"], before, _SMALLEST), torch.float32)
        if not self.double_quant:
            return {"scale": scale}
        moved = torch.where(scale == before, torch.nan, scale).flatten()
        codes, nested = renest(moved, params["scale"].flatten(), params["nested_scale"], params["offset"])
        return {**params, "scale": codes.view_as(scale), "nested_scale": nested}

    def round(self, weight: Tensor, expanded: Params) -> Tensor:
        return codebook(self.table, weight.device).nearest(weight * _reciprocal(expanded["scale"]))

    def value(self, codes: Tensor, expanded: Params) -> Tensor:
        return codebook(self.table, codes.device).value(codes) * expanded["scale"]

    def times_rows(self, params: Params, factors: Tensor) -> Params | None:
        if self.double_quant:
            return None
        scale = params["scale"] * factors.unsqueeze(1)
        return {"scale": scale} if bool(scale.isfinite().all()) else None

    def bits_per_weight(self, shape: tuple[int, ...]) -> float:
        scale = 8 + 32 / NESTED_BLOCK if self.double_quant else 32
        return 4 + scale / self.block_size


def quantize_plainly(weight: Tensor, number_format: CodebookFormat) -> QTensor:
    """`weight` [rows, columns] fp32 as bitsandbytes quantizes it: codes are chosen before scales are rounded.

    Without double quantization that is `quantize` with the plain scales.
    """
    unrounded = replace(number_format, double_quant=False)
    codes = unrounded.search(weight).codes
    return QTensor(number_format, codes, number_format.fit(weight))


def _reciprocal(scale: Tensor) -> Tensor:
    """1/s; a scale of 0, or one that rounding took below 0, is no division by zero."""
    return torch.where(scale.abs() < _SMALLEST, _SMALLEST, scale).reciprocal()
