"""The options that every pass onto an integer grid shares."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Self

from pydantic import Field

from compress.formats.options import PerTensor, resolve, with_chosen
from compress.kernels.numbers.int import IntFormat
from compress.kernels.qtensor import NumberFormat
from compress.kernels.search.integers import Zero
from compress.passes.core.linear import LinearPass

Bits = Annotated[int, Field(ge=2, le=8)]
GroupSize = Annotated[int, Field(ge=-1)]


class IntegerOptions(LinearPass):
    """Uniform integers with one scale per row and group of columns."""

    bits: PerTensor[Bits] = Field(4, description="bits per weight, 2 to 8")
    group_size: PerTensor[GroupSize] = Field(128, description="columns that share a scale; -1: the whole row")
    symmetric: PerTensor[bool] = Field(True, description="no zero point; GPTQ `sym`, GGUF Q4_0")
    zero: PerTensor[Zero] = Field(
        "integer", description="zero point of asymmetric grids: `integer` (GPTQ, AWQ) or `real` (GGUF Q4_1, Q5_1)"
    )

    def leaves_open(self, name: str) -> bool:
        """Whether no rule with a `match` says the bits of the module `name`."""
        rules = self.bits if isinstance(self.bits, tuple) else ()
        return not any(rule.match is not None and rule.covers(name) for rule in rules)

    def with_bits(self, chosen: Mapping[str, int]) -> Self:
        return self.model_copy(update={"bits": with_chosen(self.bits, chosen)}) if chosen else self

    def number_format(self, name: str) -> NumberFormat | None:
        bits, group_size = resolve(self.bits, name), resolve(self.group_size, name)
        if bits is None or group_size is None:
            return None
        zero: Zero = "middle" if resolve(self.symmetric, name) else (resolve(self.zero, name) or "integer")
        return IntFormat(bits, group_size, zero)
