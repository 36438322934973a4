"""Number formats of what flows at run time: the inputs of linears, and the key/value cache.

An artifact names them beside its weights, and an engine rounds to them as it computes. They hold no data
themselves: a static one reads its scale from a tensor of the checkpoint.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Grid = Literal["int8", "fp8"]
"""int8: −127 … 127 (symmetric). fp8: E4M3FN, largest value 448 (arXiv 2209.05433)."""


@dataclass(frozen=True)
class ActivationFormat:
    """How the input x [tokens, in] of a linear layer is rounded: x̂ = s·round(x/s).

    Dynamic: s is computed from x at run time, for each token (`token`) or for all of x (`tensor`).
    Static: one s for the layer, stored as the tensor `<module>.input_scale`, float32 of shape [1].
    """

    grid: Grid
    dynamic: bool
    per: Literal["token", "tensor"] = "token"

    def __post_init__(self) -> None:
        if not self.dynamic and self.per != "tensor":
            raise ValueError("a static scale is one for the whole tensor")

    @property
    def name(self) -> str:
        """A short name for tables, as `int8 dynamic per token`."""
        return f"{self.grid} {'dynamic' if self.dynamic else 'static'} per {self.per}"


@dataclass(frozen=True)
class CacheFormat:
    """How keys (after the rotary embedding) and values are rounded in the cache, with static scales.

    The scales are the tensors `<attention module>.k_scale` and `.v_scale`, float32, of shape [1] (per
    `tensor`) or [key/value heads] (per `head`).
    """

    grid: Grid
    per: Literal["tensor", "head"] = "tensor"

    @property
    def name(self) -> str:
        """A short name for tables, as `fp8 per head`."""
        return f"{self.grid} per {self.per}"
