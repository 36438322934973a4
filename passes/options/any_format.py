"""The options of passes for any number format: which one, and its own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Literal, Self, cast, get_args

from pydantic import Field, field_validator

from compress.formats.base import ModelSpec
from compress.formats.errors import RefusedError
from compress.formats.gguf.blocks.substitutes import Substitute, fitting, substitutes_told
from compress.formats.gguf.mixes import Mix, base_of, is_mix, mixed_modules, told_apart, twin_of
from compress.formats.options import Match, PerTensor, in_small_letters, resolve, with_chosen
from compress.kernels.numbers.float import FloatFormat
from compress.kernels.numbers.float4 import Float4Format
from compress.kernels.numbers.half_tables import HalfTableFormat
from compress.kernels.numbers.int import IntFormat
from compress.kernels.numbers.k_affine import KAffineFormat
from compress.kernels.numbers.k_scaled import KScaledFormat
from compress.kernels.numbers.tables import Table
from compress.kernels.qtensor import NumberFormat
from compress.passes.core.base import Rung
from compress.passes.model.anatomy import Anatomy
from compress.passes.options.integers import IntegerOptions
from compress.passes.options.tables import TableOptions

Float = Literal["fp8", "mxfp4", "nvfp4"]
GGMLType = Literal[
    "q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "iq4_nl", "iq4_xs", "tq1_0", "tq2_0"
]  # fmt: skip
Named = Literal["int"] | Table | Float | GGMLType | Mix
_NAMED: dict[str, NumberFormat] = {
    "fp8": FloatFormat("channel"),
    "mxfp4": Float4Format("mxfp4"),
    "nvfp4": Float4Format("nvfp4"),
    "q4_0": IntFormat(4, 32, "middle"),
    "q4_1": IntFormat(4, 32, "real"),
    "q5_0": IntFormat(5, 32, "middle"),
    "q5_1": IntFormat(5, 32, "real"),
    "q8_0": IntFormat(8, 32, "middle"),
    "q2_k": KAffineFormat("q2_k"),
    "q3_k": KScaledFormat("q3_k"),
    "q4_k": KAffineFormat("q4_k"),
    "q5_k": KAffineFormat("q5_k"),
    "q6_k": KScaledFormat("q6_k"),
    "iq4_nl": HalfTableFormat("iq4_nl"),
    "iq4_xs": KScaledFormat("iq4_xs"),
    "tq1_0": HalfTableFormat("tq1_0"),
    "tq2_0": HalfTableFormat("tq2_0"),
}


class FormatOptions(IntegerOptions, TableOptions):
    """Integers, a table, floats or a type of GGUF's.

    `bits` to `zero` speak of integers, `block_size` and `double_quant` of tables; the others have no options.
    """

    format: PerTensor[Named] = Field(
        "int",
        description="the number format; GGUF's types are named as there (q4_k, q8_0), and so are llama.cpp's mixes of "
        "them, in capitals: Q4_K_M, Q4_0",
    )
    strict: bool = Field(
        False,
        description="refuse rows that a type of GGUF's does not divide; else they get llama.cpp's substitute for it",
    )

    @field_validator("format", mode="before")
    @classmethod
    def _in_any_letters(cls, said: Any) -> Any:
        """What no mix differs from by its letters may be said in capitals: NVFP4."""
        return in_small_letters(said, [name for name in (*_NAMED, *get_args(Table)) if twin_of(name) is None])

    def settled(self, model: ModelSpec, anatomy: Anatomy, note: Callable[[str], None]) -> Self:
        """Mixes become types, and types whose super-blocks do not divide a module's rows their substitutes."""
        step = super().settled(model, anatomy, note)
        said = {name: str(resolve(step.format, name)) for name in sorted(step.formatted(model, anatomy))}
        wanted = said | self._of_mixes(model, said)
        if apart := step._told_apart(model, wanted):
            note(f"{self.name}: format: {apart}")
        substitutes = step.substitutes(model, wanted)
        for line in substitutes_told(Counter(substitutes.values())):
            note(f"{self.name}: {line}")
        found = wanted | {name: each.found for name, each in substitutes.items()}
        if found == said:
            return step
        step._refuse_wrong_rules(anatomy)  # before others take their place
        rules = tuple(Match[Named](match=name, value=cast(Named, kind)) for name, kind in found.items())
        return step.model_copy(update={"format": rules})

    def _of_mixes(self, model: ModelSpec, said: Mapping[str, str]) -> dict[str, str]:
        """The types of modules that are said to have a mix."""
        return mixed_modules(model, {name: kind for name, kind in said.items() if is_mix(kind)}, self.weighs())

    def _told_apart(self, model: ModelSpec, wanted: Mapping[str, str]) -> str | None:
        """What `format` was read as, if other letters would mean something else."""
        twin = twin_of(self.format) if isinstance(self.format, str) else None
        if twin is None:
            return None
        others = dict.fromkeys(wanted, twin)
        with suppress(RefusedError):  # what llama.cpp does not have has no mix
            return told_apart(str(self.format), wanted, others | self._of_mixes(model, others))
        return None

    def substitutes(self, model: ModelSpec, wanted: Mapping[str, str]) -> dict[str, Substitute]:
        """What modules get whose rows do not fit. Raises RefusedError if that is not wanted."""
        columns = {name: model.tensors[f"{name}.weight"].shape[-1] for name in wanted}
        each = {name: Substitute(kind, fitting(kind, columns[name]), columns[name]) for name, kind in wanted.items()}
        found = {name: one for name, one in each.items() if one.found not in (one.wanted, "f16")}
        for name, one in found.items() if self.strict else ():
            raise RefusedError(
                f"{self.name}: {name}: rows of {one.columns} do not divide into super-blocks of {one.wanted}",
                f"llama.cpp takes {one.found} for it: say so, or leave strict out",
            )
        return found

    def with_bits(self, chosen: Mapping[str, Rung]) -> Self:
        step = super().with_bits(chosen)
        kinds = {name: cast(Named, rung) for name, rung in chosen.items() if isinstance(rung, str)}
        return step.model_copy(update={"format": with_chosen(self.format, kinds)}) if kinds else step

    def integral(self, name: str) -> bool:
        return resolve(self.format, name) == "int"

    def number_format(self, name: str) -> NumberFormat | None:
        chosen: Named | None = resolve(self.format, name)
        match chosen:
            case None:
                return None
            case "int":
                return super().number_format(name)
            case "nf4" | "fp4" | "quantile" | "lloyd_max":
                return self.codebook_format(chosen, name)
            case _:
                return _NAMED[base_of(chosen) if is_mix(chosen) else chosen]
