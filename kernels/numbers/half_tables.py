"""Tables scaled block by block by a float16, as GGUF holds them.

    ŵ = d·t

    iq4_nl          t from a table of 16   32 weights a block
    tq1_0, tq2_0    t = −1, 0, 1           256 weights a block; five weights in 8 bits, or four

Every product is exact in float32. Source: `ggml-common.h` and `ggml-quants.c` of ggml.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from compress.kernels.effort import Effort
from compress.kernels.numbers.bounds import held, sign_kept, smallest
from compress.kernels.numbers.units import IQ4, Units, table, whole
from compress.kernels.qtensor import NumberFormat, Params
from compress.kernels.rows import rows_at_once
from compress.kernels.search.multiples import real_multiples
from compress.kernels.search.regions import Region

Kind = Literal["iq4_nl", "tq1_0", "tq2_0"]


class _Shape(NamedTuple):
    units: Units
    bits: float
    block: int


_KINDS: dict[Kind, _Shape] = {
    "iq4_nl": _Shape(table(IQ4), 4, 32),
    "tq1_0": _Shape(whole(-1, 1), 13 / 8, 256),
    "tq2_0": _Shape(whole(-1, 1), 2, 256),
}


@dataclass(frozen=True)
class HalfTableFormat(NumberFormat):
    """A table under a float16. `scale` (d) float16 [rows, columns / block], finite, of either sign."""

    kind: Kind

    def __post_init__(self) -> None:
        if self.kind not in _KINDS:
            raise ValueError(f"tables under a float16 are {', '.join(_KINDS)}, not {self.kind!r}")

    @property
    def name(self) -> str:
        return self.kind

    @property
    def levels(self) -> int:
        return _KINDS[self.kind].units.levels

    @property
    def levers(self) -> tuple[str, ...]:
        return ("scale",)

    def columns_misfit(self, columns: int) -> str | None:
        block = _KINDS[self.kind].block
        if columns % block == 0:
            return None
        return f"{columns} columns do not divide into blocks of {block}, which is what {self.name} has"

    def param_shapes(self, shape: tuple[int, ...]) -> dict[str, tuple[tuple[int, ...], str]]:
        return {"scale": ((shape[0], shape[1] // _KINDS[self.kind].block), "float16")}

    def _fit(self, weight: Tensor, importance: Tensor | None) -> Params:
        """Searched, be there an importance or not."""
        spread = torch.ones(weight.shape[1], device=weight.device) if importance is None else importance
        parts = weight.split(rows_at_once(weight.shape[1], weight.device))
        scale = torch.cat([self._searched(part, spread) for part in parts])
        if not bool(scale.isfinite().all()):
            raise ValueError("the weight is too large: float16 cannot hold the scale of a block")
        return {"scale": scale}

    def _searched(self, weight: Tensor, importance: Tensor) -> Tensor:
        units, _, block = _KINDS[self.kind]
        shape = (-1, weight.shape[1] // block, 1, block)
        region = Region.of(weight.reshape(shape), importance.view(shape))
        return region.stored(real_multiples(region, units.multiples).scale)

    def effort(self, shape: tuple[int, ...], searched: bool) -> Effort:
        each = 300 if self.kind == "iq4_nl" else 120 if searched else 60
        return Effort(elements=each * shape[0] * shape[1])

    def reals(self, params: Params) -> dict[str, Tensor]:
        return {"scale": params["scale"].float()}

    def stored(self, params: Params, reals: Params) -> Params:
        least = smallest(torch.float16)
        return {"scale": held(sign_kept(reals["scale"], params["scale"], least), torch.float16)}

    def round(self, weight: Tensor, expanded: Params) -> Tensor:
        return _KINDS[self.kind].units.codes((weight / expanded["scale"]).nan_to_num_(0.0))

    def value(self, codes: Tensor, expanded: Params) -> Tensor:
        return _KINDS[self.kind].units.values(codes) * expanded["scale"]

    def times_rows(self, params: Params, factors: Tensor) -> Params | None:
        scale = (params["scale"].float() * factors.unsqueeze(1)).half()
        return {"scale": scale} if bool(scale.isfinite().all()) else None

    def bits_per_weight(self, shape: tuple[int, ...]) -> float:
        _, bits, block = _KINDS[self.kind]
        return bits + 16 / block
