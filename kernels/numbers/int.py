"""Uniform integer grids of 2 to 8 bits, one scale per row and group of columns.

Three kinds of zero point, by what containers can hold:

    middle    ŵ = s·(q − 2^(b−1))     symmetric: GPTQ `sym`, GGUF Q4_0, Q5_0, Q8_0
    integer   ŵ = s·(q − z)           asymmetric: GPTQ, AWQ; z is a whole number 1 … 2^b − 1
    real      ŵ = s·q + m             asymmetric: GGUF Q4_1, Q5_1; m is a float16

Scales (and m) are float16, as every one of those containers stores them, so that codes are chosen against
the values that an engine will really compute; llm-compressor's files have them in the model's own type, so
bfloat16 or float32. A scale may be negative: a middle grid reaches further on one side (−8 … 7), and the sign
says on which. It is never zero, so that a weight may be divided by it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from compress.kernels.numbers.bounds import held, sign_kept, smallest
from compress.kernels.qtensor import NumberFormat, Params
from compress.kernels.rows import rows_at_once
from compress.kernels.search.integers import Zero, extreme_params, searched_params

ScaleType = Literal["float16", "bfloat16", "float32"]
SCALE_TYPES: tuple[ScaleType, ...] = get_args(ScaleType)

_USUAL_GROUPS = (16, 32, 64, 128, 256)
_SMALLEST = smallest(torch.float16)  # other types hold it too
_LABELS: dict[Zero, str] = {"middle": "sym", "integer": "asym", "real": "min"}


@dataclass(frozen=True)
class IntFormat(NumberFormat):
    """A uniform grid of 2^bits codes; its parameters are [rows, groups] each.

    `scale` of type `scale_dtype`, finite and not zero. `zero` uint8, 1 … 2^bits − 1 (integer only; AutoGPTQ's
    files hold z − 1 and so cannot hold 0). `minimum` as `scale` (real only).
    `group_size` columns share a scale; −1 stands for all columns (per channel).
    """

    bits: int
    group_size: int
    zero: Zero = "middle"
    scale_dtype: ScaleType = "float16"

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 8:
            raise ValueError(f"integer formats have 2 to 8 bits, not {self.bits}")
        if self.group_size != -1 and self.group_size < 1:
            raise ValueError(f"a group size is positive, or -1 for all columns, not {self.group_size}")
        if self.zero not in _LABELS:
            raise ValueError(f"a zero point is one of {', '.join(_LABELS)}, not {self.zero!r}")
        if self.scale_dtype not in SCALE_TYPES:
            raise ValueError(f"scales are {', '.join(SCALE_TYPES)}, not {self.scale_dtype!r}")

    @property
    def name(self) -> str:
        group = "per channel" if self.group_size == -1 else f"g{self.group_size}"
        scales = "" if self.scale_dtype == "float16" else f", {self.scale_dtype} scales"
        return f"int{self.bits} {group} {_LABELS[self.zero]}{scales}"

    @property
    def levels(self) -> int:
        return 1 << self.bits

    @property
    def levers(self) -> tuple[str, ...]:
        return () if self.zero == "real" else ("scale",)

    def columns_misfit(self, columns: int) -> str | None:
        if columns % self._group(columns) == 0:
            return None
        fitting = [str(size) for size in _USUAL_GROUPS if columns % size == 0]
        return (
            f"{columns} columns do not divide into groups of {self.group_size}; "
            f"group sizes that work: {', '.join([*fitting, '-1 (per channel)'])}"
        )

    def param_shapes(self, shape: tuple[int, ...]) -> dict[str, tuple[tuple[int, ...], str]]:
        grouped = (shape[0], shape[1] // self._group(shape[1]))
        shapes: dict[str, tuple[tuple[int, ...], str]] = {"scale": (grouped, self.scale_dtype)}
        if self.zero == "integer":
            shapes["zero"] = (grouped, "uint8")
        elif self.zero == "real":
            shapes["minimum"] = (grouped, self.scale_dtype)
        return shapes

    def _fit(self, weight: Tensor, importance: Tensor | None) -> Params:
        rows, columns = weight.shape
        groups = weight.reshape(rows, -1, self._group(columns))
        if importance is not None:
            importance = importance.view(1, *groups.shape[1:])
        parts = [
            self._groups_fit(part, importance) for part in torch.split(groups, rows_at_once(columns, weight.device))
        ]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def _groups_fit(self, groups: Tensor, importance: Tensor | None) -> Params:
        """Parameters [rows, groups] of `groups` [rows, groups, group size]."""
        plain = self._fitted(extreme_params(groups, self.levels, self.zero))
        if importance is None:
            return plain
        searched = self._fitted(searched_params(groups, importance, self.levels, self.zero))
        better = self._error(groups, importance, searched) < self._error(groups, importance, plain)
        return {name: torch.where(better, searched[name], plain[name]) for name in plain}

    def _fitted(self, params: Params) -> Params:
        """fp32 parameters in the dtypes that containers hold; scales kept off zero."""
        dtype: torch.dtype = getattr(torch, self.scale_dtype)
        stored = {name: value.byte() if name == "zero" else value.to(dtype) for name, value in params.items()}
        stored["scale"] = _off_zero(stored["scale"])
        if not all(bool(value.isfinite().all()) for value in stored.values()):
            raise ValueError(f"the weight is too large: {self.scale_dtype} cannot hold the scale of a group")
        return stored

    def _error(self, groups: Tensor, importance: Tensor, params: Params) -> Tensor:
        """Σ importance·(w − ŵ)² of every group: [rows, groups] fp32."""
        spread = {name: value.float().unsqueeze(-1) for name, value in params.items()}
        difference = self.value(self.round(groups, spread), spread).sub_(groups)
        return difference.square_().mul_(importance).sum(-1)

    def reals(self, params: Params) -> dict[str, Tensor]:
        return {name: value.float() for name, value in params.items() if name != "zero"}

    def stored(self, params: Params, reals: Params) -> Params:
        dtype: torch.dtype = getattr(torch, self.scale_dtype)
        scale = sign_kept(reals["scale"], params["scale"], smallest(dtype))
        return {**params, **{name: held(real, dtype) for name, real in {**reals, "scale": scale}.items()}}

    def grouped(self, params: Params, reals: Params) -> Params:
        return {**reals, "zero": params["zero"].float()} if self.zero == "integer" else reals

    def round(self, weight: Tensor, expanded: Params) -> Tensor:
        # Division, not a product with the reciprocal: the two round ties differently.
        if self.zero == "real":
            codes = (weight - expanded["minimum"]).div_(expanded["scale"]).round_()
        else:
            codes = (weight / expanded["scale"]).round_().add_(self._offset(expanded))
        return codes.clamp_(0, self.levels - 1)

    def value(self, codes: Tensor, expanded: Params) -> Tensor:
        if self.zero == "real":
            return (codes * expanded["scale"]).add_(expanded["minimum"])
        return (codes - self._offset(expanded)).mul_(expanded["scale"])

    def times_rows(self, params: Params, factors: Tensor) -> Params | None:
        def times(value: Tensor) -> Tensor:
            return (value.float() * factors.unsqueeze(1)).to(value.dtype)

        scaled = {name: value if name == "zero" else times(value) for name, value in params.items()}
        scaled["scale"] = _off_zero(scaled["scale"])
        return scaled if all(bool(value.isfinite().all()) for value in scaled.values()) else None

    def bits_per_weight(self, shape: tuple[int, ...]) -> float:
        scale = 32 if self.scale_dtype == "float32" else 16
        params = scale + {"middle": 0, "integer": self.bits, "real": scale}[self.zero]
        return self.bits + params / self._group(shape[1])

    def _offset(self, expanded: Params) -> Tensor | int:
        return expanded["zero"] if self.zero == "integer" else self.levels // 2

    def _group(self, columns: int) -> int:
        return columns if self.group_size == -1 else self.group_size


def _off_zero(scale: Tensor) -> Tensor:
    return torch.where(scale == 0, _SMALLEST, scale)
