"""K-quants without minima, and IQ4_XS, as GGUF holds them: super-blocks of 256 weights, groups with whole scales.

    ŵ = (d·s)·t

    q3_k      t = −4 … 3       16 weights a group     s = −32 … 31
    q6_k      t = −32 … 31     16 weights a group     s = −128 … 127
    iq4_xs    t from a table   32 weights a group     s = −32 … 31

d is a float16, so every product is exact in float32. Source: `ggml-common.h` and `ggml-quants.c` of ggml.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from torch import Tensor

from compress.kernels.effort import Effort
from compress.kernels.numbers.super_blocks import (
    SUPER_BLOCK,
    fit_super_blocks,
    scaled_super_blocks,
    super_blocks_misfit,
)
from compress.kernels.numbers.units import IQ4, Units, table, whole
from compress.kernels.numbers.whole_scales import moved_scales, real_scales
from compress.kernels.qtensor import NumberFormat, Params
from compress.kernels.search.super_multiples import fit_multiples

Kind = Literal["q3_k", "q6_k", "iq4_xs"]


class _Shape(NamedTuple):
    units: Units
    bits: int
    group: int
    scale_bits: int


_KINDS: dict[Kind, _Shape] = {
    "q3_k": _Shape(whole(-4, 3), 3, 16, 6),
    "q6_k": _Shape(whole(-32, 31), 6, 16, 8),
    "iq4_xs": _Shape(table(IQ4), 4, 32, 6),
}


@dataclass(frozen=True)
class KScaledFormat(NumberFormat):
    """A K-quant without minima. Parameters:

    `scale` int8 [rows, columns / group]: s. `d` float16 [rows, columns / 256], finite.
    """

    kind: Kind

    def __post_init__(self) -> None:
        if self.kind not in _KINDS:
            raise ValueError(f"K-quants without minima are {', '.join(_KINDS)}, not {self.kind!r}")

    @property
    def name(self) -> str:
        return self.kind

    @property
    def levels(self) -> int:
        return _KINDS[self.kind].units.levels

    @property
    def levers(self) -> tuple[str, ...]:
        return ("d",)

    def columns_misfit(self, columns: int) -> str | None:
        return super_blocks_misfit(self.kind, columns)

    def param_shapes(self, shape: tuple[int, ...]) -> dict[str, tuple[tuple[int, ...], str]]:
        rows, columns = shape
        return {
            "scale": ((rows, columns // _KINDS[self.kind].group), "int8"),
            "d": ((rows, columns // SUPER_BLOCK), "float16"),
        }

    def _fit(self, weight: Tensor, importance: Tensor | None) -> Params:
        """Searched, be there an importance or not: two scales in a product have no plain rule."""
        found, (lowest, highest) = _KINDS[self.kind], self._range
        multiples = found.units.multiples
        return fit_super_blocks(
            weight,
            importance,
            found.group,
            lambda part, spread: fit_multiples(part, spread, multiples, lowest, highest),
            "int8",
        )

    def effort(self, shape: tuple[int, ...], searched: bool) -> Effort:
        return Effort(elements=(450 if self.kind == "iq4_xs" else 250) * shape[0] * shape[1])

    def reals(self, params: Params) -> dict[str, Tensor]:
        return {"scale": real_scales(params["d"], params["scale"])}

    def stored(self, params: Params, reals: Params) -> Params:
        d, scale = moved_scales(params["d"], params["scale"], reals["scale"], *self._range)
        return {"scale": scale, "d": d}

    def round(self, weight: Tensor, expanded: Params) -> Tensor:
        return _KINDS[self.kind].units.codes((weight / expanded["scale"]).nan_to_num_(0.0))

    def value(self, codes: Tensor, expanded: Params) -> Tensor:
        return _KINDS[self.kind].units.values(codes) * expanded["scale"]

    def times_rows(self, params: Params, factors: Tensor) -> Params | None:
        return scaled_super_blocks(params, factors)

    def bits_per_weight(self, shape: tuple[int, ...]) -> float:
        _, bits, group, scale_bits = _KINDS[self.kind]
        return bits + scale_bits / group + 16 / SUPER_BLOCK

    @property
    def _range(self) -> tuple[int, int]:
        most = 1 << (_KINDS[self.kind].scale_bits - 1)
        return -most, most - 1
