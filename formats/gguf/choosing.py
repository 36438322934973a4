"""Which block type each tensor of a model gets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from compress.formats.base import ModelSpec, TensorSpec
from compress.formats.errors import InputError, RefusedError
from compress.formats.gguf.blocks.base import BlockType
from compress.formats.gguf.blocks.formatted import FormatType
from compress.formats.gguf.blocks.substitutes import Substitute, fitting
from compress.formats.gguf.blocks.types import BLOCKS, type_of
from compress.formats.gguf.mixes import Traits, is_mix, mixed, told_apart, twin_of
from compress.formats.gguf.names import Place
from compress.formats.gguf.placed import found_in, shape_in
from compress.formats.gguf.plan import Entry
from compress.formats.options import PerTensor, resolve
from compress.formats.views.casting import scale_misfit
from compress.kernels.numbers.int import IntFormat

_SCALED = "nvfp4"
_UNSCALED = "llama.cpp multiplies it by no scale of the whole tensor, which nvfp4 needs"


def misfit(spec: TensorSpec) -> str | None:
    """Why no block holds a tensor's values as they are; None: one does, or they are not quantized yet."""
    if spec.format is None:
        return None
    block = type_of(spec.format)
    if block is None:
        if isinstance(spec.format, IntFormat) and (reason := scale_misfit(spec.format)):
            return reason
        return (
            f"no GGUF block holds {spec.format.name} exactly; what fits: groups of a multiple of 32, of up to "
            "8 bits if symmetric, 5 with a minimum, 7 with a whole zero point"
        )
    return _undivided(block, spec.shape)


def _undivided(block: BlockType, shape: tuple[int, ...]) -> str | None:
    reason = block.misfit(shape)
    return reason and f"{reason}; what fits: f16, bf16 or f32, unquantized"


def _is_quantized(entry: Entry, model: ModelSpec) -> bool:
    return any(model.tensors[source].format is not None for source in entry.sources)


@dataclass(frozen=True)
class Choosing:
    """What an export says, types and mixes, for a model with these traits. `strict`: no substitute for a type."""

    type: PerTensor[str]
    strict: bool
    traits: Traits

    def entry(self, place: Place, model: ModelSpec) -> Entry:
        """The entry of a tensor. Raises InputError if it is not there, or of another shape; RefusedError if it does
        not fit.
        """
        sources = found_in(place, model)
        if not sources:
            raise InputError(f"tensor {place.names(0)[0]} is missing, and GGUF needs it")
        specs = [model.tensors[source] for source in sources]
        for source, spec in zip(sources, specs, strict=True):
            if spec.shape != (wanted := shape_in(place, source, spec)):
                raise InputError(f"tensor {source} has the shape {list(spec.shape)}; config.json means {list(wanted)}")
            if reason := misfit(spec):
                raise RefusedError(f"tensor {source}: {reason}")
            if spec.format != specs[0].format:
                raise RefusedError(
                    f"tensor {source}: GGUF has the experts of a layer in one tensor, of one type",
                    "quantize all of them alike, or none",
                )
        block = type_of(specs[0].format) if specs[0].format else None
        if block is None:
            return self.rounded(place, sources)
        if isinstance(block, FormatType) and block.beside and not place.scaled:
            raise RefusedError(f"tensor {sources[0]}: {_UNSCALED}", "quantize it otherwise, or leave it as it is")
        return Entry(place, sources, block, kept=block.name not in self._meant(place, sources[0]))

    def rounded(self, place: Place, sources: tuple[str, ...]) -> Entry:
        """The entry of a tensor that is not quantized yet. llama.cpp computes with norms and biases in fp32 only."""
        source, columns = sources[0], place.stored[-1]
        if len(place.shape) < 2 or place.flat or place.exact:
            return Entry(place, sources, BLOCKS["f32"])
        wanted, found = self._meant(place, source)
        if reason := _undivided(BLOCKS[found], place.stored):
            raise RefusedError(f"tensor {source}: {reason}")
        if found == wanted:
            return Entry(place, sources, BLOCKS[found])
        substitute = Substitute(wanted, found, columns, _UNSCALED if wanted == _SCALED else "")
        if self.strict:
            taken = f"{found} is taken" if substitute.why else f"llama.cpp takes {found}"
            raise RefusedError(
                f"tensor {source}: no {wanted}: {substitute.reason}", f"{taken} for it: say so, or leave strict out"
            )
        return Entry(place, sources, BLOCKS[found], substitute)

    def told_apart(self, entries: Sequence[Entry], model: ModelSpec) -> str | None:
        """What was said, if other letters would mean something else for the `entries` that are rounded."""
        twin = twin_of(self.type) if isinstance(self.type, str) else None
        if twin is None:
            return None
        other = replace(self, type=twin, strict=False)
        open_ones = [entry for entry in entries if entry.sources and not _is_quantized(entry, model)]
        matrices = [entry for entry in open_ones if len(entry.place.shape) > 1]
        types = {entry.place.gguf: entry.block.name for entry in matrices}
        others = {entry.place.gguf: other.rounded(entry.place, entry.sources).block.name for entry in matrices}
        return told_apart(str(self.type), types, others)

    def _meant(self, place: Place, source: str) -> tuple[str, str]:
        """What is said for a matrix, and what is taken for it if rows do not fit."""
        chosen: str = resolve(self.type, source.removesuffix(".weight")) or "f16"
        columns = place.stored[-1]
        wanted = mixed(chosen, place.gguf, columns, self.traits) if is_mix(chosen) else chosen
        if wanted == _SCALED and not place.scaled:
            return wanted, fitting("iq4_nl" if "blk." in place.gguf else "q8_0", columns)
        return wanted, fitting(wanted, columns)
