"""The options that every pass onto an integer grid shares."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Literal, Self

from pydantic import Field

from compress.formats.base import ModelSpec
from compress.formats.options import PerTensor, may_be, replaced, resolve, with_chosen
from compress.kernels.numbers.int import IntFormat
from compress.kernels.qtensor import NumberFormat
from compress.kernels.search.integers import Zero
from compress.passes.core.base import Rung
from compress.passes.core.targets import Targets
from compress.passes.model.anatomy import Anatomy

Bits = Annotated[int, Field(ge=2, le=8)]
AUTO: Literal["auto"] = "auto"
GroupSize = Annotated[int, Field(ge=-1)] | Literal["auto"]
USUAL = (128, 64, 32, 16)
"""The sizes of groups that containers and kernels are made for, the one of the least bits first."""


class IntegerOptions(Targets):
    """Uniform integers with one scale per row and group of columns."""

    bits: PerTensor[Bits] = Field(4, description="bits per weight, 2 to 8")
    group_size: PerTensor[GroupSize] = Field(
        AUTO,
        description="columns that share a scale; -1: the whole row; "
        "auto: the largest of 128, 64, 32, 16 that divides the columns of every layer",
    )
    symmetric: PerTensor[bool] = Field(True, description="no zero point; GPTQ `sym`, GGUF Q4_0")
    zero: PerTensor[Zero] = Field(
        "integer", description="zero point of asymmetric grids: `integer` (GPTQ, AWQ) or `real` (GGUF Q4_1, Q5_1)"
    )

    def settled(self, model: ModelSpec, anatomy: Anatomy, note: Callable[[str], None]) -> Self:
        if not may_be(self.group_size, AUTO):
            return self
        open_ones = [
            name for name in self.formatted(model, anatomy) if self.integral(name) and self._size_is_open(name)
        ]
        columns = sorted({model.tensors[f"{name}.weight"].shape[1] for name in open_ones})
        size = next((size for size in USUAL if not any(extent % size for extent in columns)), -1)
        if size != USUAL[0]:
            groups = "one scale for each row" if size == -1 else f"groups of {size}"
            odd = next(extent for extent in columns if extent % USUAL[0])
            note(f"{self.name}: {groups}: {USUAL[0]} does not divide {odd} columns")
        return self.model_copy(update={"group_size": replaced(self.group_size, AUTO, size)})

    def integral(self, name: str) -> bool:
        """Whether the module `name` is to have an integer grid."""
        return True

    def _size_is_open(self, name: str) -> bool:
        return resolve(self.group_size, name) == AUTO

    def leaves_open(self, name: str, option: str) -> bool:
        """Whether no rule with a `match` says the `option` for the module `name`."""
        said = getattr(self, option)
        rules = said if isinstance(said, tuple) else ()
        return not any(rule.match is not None and rule.covers(name) for rule in rules)

    def with_bits(self, chosen: Mapping[str, Rung]) -> Self:
        bits = {name: rung for name, rung in chosen.items() if isinstance(rung, int)}
        return self.model_copy(update={"bits": with_chosen(self.bits, bits)}) if bits else self

    def number_format(self, name: str) -> NumberFormat | None:
        bits: int | None = resolve(self.bits, name)
        group_size: int | Literal["auto"] | None = resolve(self.group_size, name)
        if bits is None or group_size is None:
            return None
        group_size = USUAL[0] if group_size == AUTO else group_size
        zero: Zero = "middle" if resolve(self.symmetric, name) else (resolve(self.zero, name) or "integer")
        return IntFormat(bits, group_size, zero)
