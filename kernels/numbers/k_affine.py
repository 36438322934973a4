"""K-quants with minima, as GGUF holds them: super-blocks of 256 weights, groups with whole scales and minima.

    ŵ = (d·s)·q − (dmin·m)

    q2_k    q = 0 … 3     16 weights a group     s, m = 0 … 15
    q4_k    q = 0 … 15    32 weights a group     s, m = 0 … 63
    q5_k    q = 0 … 31    32 weights a group     s, m = 0 … 63

d and dmin are float16, so every product is exact in float32, and the difference rounded once. No line begins above
zero. Source: `ggml-common.h` and `ggml-quants.c` of ggml.
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
from compress.kernels.numbers.whole_scales import moved_minima, moved_scales, real_scales
from compress.kernels.qtensor import NumberFormat, Params
from compress.kernels.search.super_lines import fit_lines

Kind = Literal["q2_k", "q4_k", "q5_k"]


class _Shape(NamedTuple):
    bits: int
    group: int
    most: int


_KINDS: dict[Kind, _Shape] = {"q2_k": _Shape(2, 16, 15), "q4_k": _Shape(4, 32, 63), "q5_k": _Shape(5, 32, 63)}


@dataclass(frozen=True)
class KAffineFormat(NumberFormat):
    """A K-quant with minima. Parameters, finite and ≥ 0:

    `scale`, `minimum` uint8 [rows, columns / group]: s and m. `d`, `dmin` float16 [rows, columns / 256].
    """

    kind: Kind

    def __post_init__(self) -> None:
        if self.kind not in _KINDS:
            raise ValueError(f"K-quants with minima are {', '.join(_KINDS)}, not {self.kind!r}")

    @property
    def name(self) -> str:
        return self.kind

    @property
    def levels(self) -> int:
        return 1 << _KINDS[self.kind].bits

    @property
    def levers(self) -> tuple[str, ...]:
        return ("d", "dmin")

    def columns_misfit(self, columns: int) -> str | None:
        return super_blocks_misfit(self.kind, columns)

    def param_shapes(self, shape: tuple[int, ...]) -> dict[str, tuple[tuple[int, ...], str]]:
        groups, supers = (shape[0], shape[1] // _KINDS[self.kind].group), (shape[0], shape[1] // SUPER_BLOCK)
        return {
            "scale": (groups, "uint8"),
            "minimum": (groups, "uint8"),
            "d": (supers, "float16"),
            "dmin": (supers, "float16"),
        }

    def _fit(self, weight: Tensor, importance: Tensor | None) -> Params:
        """Searched, be there an importance or not: so many parameters have no plain rule."""
        _, group, most = _KINDS[self.kind]
        return fit_super_blocks(
            weight, importance, group, lambda part, spread: fit_lines(part, spread, self.levels, most), "uint8"
        )

    def effort(self, shape: tuple[int, ...], searched: bool) -> Effort:
        return Effort(elements=290 * shape[0] * shape[1])

    def reals(self, params: Params) -> dict[str, Tensor]:
        return {
            "scale": real_scales(params["d"], params["scale"]),
            "minimum": -real_scales(params["dmin"], params["minimum"]),
        }

    def stored(self, params: Params, reals: Params) -> Params:
        most = _KINDS[self.kind].most
        d, scale = moved_scales(params["d"], params["scale"], reals["scale"], 0, most)
        dmin, minimum = moved_minima(params["dmin"], params["minimum"], -reals["minimum"], most)
        return {"scale": scale, "minimum": minimum, "d": d, "dmin": dmin}

    def round(self, weight: Tensor, expanded: Params) -> Tensor:
        steps = (weight - expanded["minimum"]).div_(expanded["scale"])
        return steps.nan_to_num_(0.0).round_().clamp_(0, self.levels - 1)

    def value(self, codes: Tensor, expanded: Params) -> Tensor:
        return (codes * expanded["scale"]).add_(expanded["minimum"])

    def times_rows(self, params: Params, factors: Tensor) -> Params | None:
        return scaled_super_blocks(params, factors)

    def bits_per_weight(self, shape: tuple[int, ...]) -> float:
        bits, group, most = _KINDS[self.kind]
        return bits + 2 * most.bit_length() / group + 32 / SUPER_BLOCK
