"""GGUF, llama.cpp's container: one file that holds weights, configuration and tokenizer.

Source: `docs/gguf.md` of ggml; what an engine asks of the metadata: llama.cpp, `src/llama-model.cpp`.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import ByteSize, Field
from torch import Tensor

from compress.formats.base import Checkpoint, Dialect, FileLayout, Layout, ModelSpec, Progress, TensorSpec
from compress.formats.errors import InputError, RefusedError
from compress.formats.files.storage import RegularFile
from compress.formats.gguf.blocks.base import BlockType
from compress.formats.gguf.blocks.formatted import FormatType
from compress.formats.gguf.blocks.substitutes import Substitute, fitting, substitutes_told
from compress.formats.gguf.blocks.types import BLOCKS, DenseType, IntType, type_of
from compress.formats.gguf.checkpoint import GGUFCheckpoint
from compress.formats.gguf.config import dims_of, family_of, unseen_window, write_config
from compress.formats.gguf.file import SUFFIX, file_size, gguf_file, write_gguf
from compress.formats.gguf.header import MAGIC, Value
from compress.formats.gguf.metadata import kept_in, string, uint
from compress.formats.gguf.mixes import FILE_TYPES, HEEDING, Mix, Traits, is_mix, label_of, mixed
from compress.formats.gguf.names import TIED, Architecture, Place, is_tied
from compress.formats.gguf.placed import found_in, shape_in
from compress.formats.gguf.plan import Entry, Filling, Plan
from compress.formats.gguf.tokens.from_tokenizer import vocab_of
from compress.formats.gguf.tokens.keys import write_vocab
from compress.formats.gguf.tokens.wordpiece import unlike
from compress.formats.gguf.witness import read_with_library
from compress.formats.options import PerTensor, resolve
from compress.formats.views.casting import scale_misfit
from compress.kernels.numbers.int import IntFormat
from compress.kernels.qtensor import NumberFormat

BlockName = Literal[
    "f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "q6_k", "q5_k", "q4_k", "q3_k", "q2_k",
    "iq4_xs", "iq4_nl", "mxfp4", "nvfp4", "tq1_0", "tq2_0",
]  # fmt: skip
# llama.h, enum llama_ftype: what most of the file is.
_FILE_TYPES = {
    "f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q8_0": 7, "q5_0": 8, "q5_1": 9, "q2_k": 10, "q3_k": 11, "q4_k": 14,
    "q5_k": 16, "q6_k": 18, "iq4_nl": 25, "iq4_xs": 30, "bf16": 32, "tq1_0": 36, "tq2_0": 37, "mxfp4": 38,
    "nvfp4": 39,
}  # fmt: skip
_QUANTIZATION_VERSION = 2
_LONGEST_NAME = 200
_SCALED = "nvfp4"
_UNSCALED = "llama.cpp multiplies it by no scale of the whole tensor, which nvfp4 needs"


class GGUF(Dialect):
    """One file for llama.cpp, of one block type (`type: q4_k`) or of several as it chooses them (Q4_K_M, Q4_0, IQ4_NL).

    That is for matrices that are not quantized yet; after a `calibrate` their errors are weighed by the inputs, and
    mixes choose as llama.cpp does with an importance matrix (`weighed`).
    Where a type does not divide a matrix's rows, llama.cpp's substitute for it is taken, and said; `strict` refuses.
    `max_shard_size` (2GB) writes parts of at most so many bytes of weights, which llama.cpp loads by the first.

    Quantized weights keep their values: blocks Q4_0, Q5_0 and Q8_0 (symmetric) or Q4_1 and Q5_1 (with a
    minimum) hold integers, and what was quantized as a type of GGUF's is written as that. NVFP4 has the scale of each
    tensor beside it; where llama.cpp does not look for that, a type of about that size is taken, and said.
    Families: Llama (4: its text), Mistral, Mixtral, Qwen 2 and 3 (and their MoE), Gemma 1 to 3, Phi 3 and 4, Granite
    (and MoE), OLMo 2, OLMoE, SmolLM 3, StarCoder 2, GLM 4, Cohere 1 and 2, gpt-oss, GPT-2, GPT-NeoX, Falcon.
    """

    name: ClassVar[str] = "gguf"
    loads: ClassVar[Mapping[str, str]] = {
        "llama.cpp": "llama-cli -m {path}/{file}",
        "transformers": 'AutoModelForCausalLM.from_pretrained("{path}", gguf_file="{file}")',
    }
    type: PerTensor[BlockName | Mix] = "f16"
    weighed: bool = False
    strict: bool = False
    max_shard_size: ByteSize | None = Field(default=None, gt=0)

    @property
    def folder(self) -> str:
        if "type" not in self.model_fields_set:
            return self.name
        return f"{self.name}-{self.type if isinstance(self.type, str) else 'mixed'}"

    @classmethod
    def recognizes(cls, path: Path) -> bool:
        found = gguf_file(path)
        if found is None:
            return False
        try:
            with RegularFile(found) as file:
                magic = bytearray(len(MAGIC))
                file.read_at(0, magic)
        except InputError:
            return False
        return bytes(magic) == MAGIC

    @classmethod
    def open(cls, path: Path) -> Checkpoint:
        return GGUFCheckpoint(_file(path))

    @classmethod
    def witness(cls, path: Path) -> Callable[[str], Tensor]:
        return read_with_library(_file(path))

    @property
    def rounds(self) -> bool:
        return any(is_mix(kind) or not isinstance(BLOCKS[kind], DenseType) for kind in self._kinds)

    @property
    def _kinds(self) -> list[BlockName | Mix]:
        return [rule.value for rule in self.type] if isinstance(self.type, tuple) else [self.type]

    def weighing(self) -> Mapping[str, Any]:
        return {"weighed": True} if any(is_mix(kind) and label_of(kind) in HEEDING for kind in self._kinds) else {}

    def roundings(self, model: ModelSpec) -> Mapping[str, NumberFormat]:
        family, dims = family_of(model.config), dims_of(model.config)
        config = {**model.config, TIED: is_tied(family, model)}
        traits, found = Traits.of(family, dims, config, self.weighed), dict[str, NumberFormat]()
        for place in family.places(dims, config):
            sources = found_in(place, model)
            if sources and all(model.tensors[source].format is None for source in sources):
                block = self._rounded(place, sources, traits).block
                if isinstance(block, IntType | FormatType):
                    found |= dict.fromkeys(sources, block.format)
        return found

    def misfit(self, name: str, spec: TensorSpec, model: ModelSpec) -> str | None:
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

    def layout(self, model: ModelSpec) -> Layout:
        """See Dialect.layout. Needs `model.files`: the tokenizer is a part of the file."""
        plan = self._plan(model)
        told = substitutes_told(Counter(entry.substitute for entry in plan.entries if entry.substitute))
        told += tuple(self._kept_told(plan.entries))
        if window := unseen_window(model.config):
            told += (
                f"llama.cpp has no sliding window in {family_of(model.config).name}: the file's context is the window, "
                f"{window:,} tokens, as far as its answers are the model's; beyond, every layer would see all",
            )
        if otherwise := unlike(plan.metadata):
            told += (otherwise,)
        files = tuple(FileLayout(name, file_size(metadata, tensors)) for name, metadata, tensors in plan.files)
        return Layout(files, substitutes=told)

    def _kept_told(self, entries: Sequence[Entry]) -> Iterator[str]:
        """That most weights have another type than the one said, which names the folder: they were quantized before."""
        said = "type" in self.model_fields_set and isinstance(self.type, str)
        kept = [entry for entry in entries if entry.kept]
        if said and _mostly(kept, entries):
            names = ", ".join(sorted({entry.block.name for entry in kept}))
            yield f"{len(kept)} tensors are quantized already and stay {names}: `type: {self.type}` is for the others"

    def write(self, model: Checkpoint, directory: Path, progress: Progress) -> None:
        """See Dialect.write. The one file, or its parts, is all that llama.cpp needs; no other is written."""
        plan = self._plan(replace(model.spec, files=model.files()))
        entries = {entry.place.gguf: entry for entry in plan.entries}
        filling = Filling(model, plan.dims, plan.rope)
        for name, metadata, tensors in plan.files:
            write_gguf(
                directory / name,
                metadata,
                tensors,
                lambda tensor: filling.encode(entries[tensor]),
                lambda tensor: progress(next(iter(entries[tensor].sources), tensor)),
            )

    def _plan(self, model: ModelSpec) -> Plan:
        """Everything but the weights. Raises RefusedError and InputError."""
        family, dims = family_of(model.config), dims_of(model.config)
        config = {**model.config, TIED: is_tied(family, model)}
        settings, rope = write_config(config)
        vocab = _tokenizer(tuple(model.files.items()), json.dumps(config), dims.vocab)
        places = list(family.places(dims, config))
        _check_inventory(family, places, model)
        traits = Traits.of(family, dims, config, self.weighed)
        entries = [entry for place in places for entry in self._entry(place, model, traits).with_scale]
        for name, values in rope.tensors(dims.head).items():
            entries.append(Entry(Place(name, (), tuple(values.shape)), (), BLOCKS["f32"]))
        mix = isinstance(self.type, str) and is_mix(self.type) and not _mostly([e for e in entries if e.kept], entries)
        kind = str(self.type) if mix else _commonest(entries)
        metadata = {**_general(family, config, kind), **settings, **vocab}
        metadata = {**metadata, **{key: value for key, value in kept_in(model.files).items() if key not in metadata}}
        return Plan(file_name(model, kind), metadata, tuple(entries), dims, rope, self.max_shard_size)

    def _entry(self, place: Place, model: ModelSpec, traits: Traits) -> Entry:
        sources = found_in(place, model)
        if not sources:
            raise InputError(f"tensor {place.names(0)[0]} is missing, and GGUF needs it")
        specs = [model.tensors[source] for source in sources]
        for source, spec in zip(sources, specs, strict=True):
            if spec.shape != (wanted := shape_in(place, source, spec)):
                raise InputError(f"tensor {source} has the shape {list(spec.shape)}; config.json means {list(wanted)}")
            if reason := self.misfit(source, spec, model):
                raise RefusedError(f"tensor {source}: {reason}")
            if spec.format != specs[0].format:
                raise RefusedError(
                    f"tensor {source}: GGUF has the experts of a layer in one tensor, of one type",
                    "quantize all of them alike, or none",
                )
        block = type_of(specs[0].format) if specs[0].format else None
        if block is None:
            return self._rounded(place, sources, traits)
        if isinstance(block, FormatType) and block.beside and not place.scaled:
            raise RefusedError(f"tensor {sources[0]}: {_UNSCALED}", "quantize it otherwise, or leave it as it is")
        return Entry(place, sources, block, kept=block.name not in self._meant(place, sources[0], traits))

    def _rounded(self, place: Place, sources: tuple[str, ...], traits: Traits) -> Entry:
        """The entry of a tensor that is not quantized yet. llama.cpp computes with norms and biases in fp32 only."""
        source, columns = sources[0], place.stored[-1]
        if len(place.shape) < 2 or place.flat or place.exact:
            return Entry(place, sources, BLOCKS["f32"])
        wanted, found = self._meant(place, source, traits)
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

    def _meant(self, place: Place, source: str, traits: Traits) -> tuple[str, str]:
        """What `type` has for a matrix, and what is taken for it if rows do not fit."""
        chosen: str = resolve(self.type, source.removesuffix(".weight")) or "f16"
        columns = place.stored[-1]
        wanted = mixed(chosen, place.gguf, columns, traits) if is_mix(chosen) else chosen
        if wanted == _SCALED and not place.scaled:
            return wanted, fitting("iq4_nl" if "blk." in place.gguf else "q8_0", columns)
        return wanted, fitting(wanted, columns)


@lru_cache(maxsize=1)
def _tokenizer(files: tuple[tuple[str, bytes], ...], config: str, size: int) -> Mapping[str, Value]:
    """What a file says of its tokenizer: the same of every type that a plan weighs, and long."""
    return write_vocab(vocab_of(dict(files), json.loads(config), size))


def _undivided(block: BlockType, shape: tuple[int, ...]) -> str | None:
    reason = block.misfit(shape)
    return reason and f"{reason}; what fits: f16, bf16 or f32, unquantized"


def _file(path: Path) -> Path:
    found = gguf_file(path)
    if found is None:
        raise InputError(f"{path} does not hold one {SUFFIX} file", "give the file itself")
    return found


def file_name(model: ModelSpec, kind: str) -> str:
    """What llama.cpp's users expect: the model's name, then its mix or the type of most weights:
    `SmolLM2-135M-Q4_0.gguf`.
    """
    name = re.sub(r"[^\w.-]+", "-", model.name or _said_name(model.config) or "model", flags=re.ASCII)
    label = label_of(kind) if is_mix(kind) else kind.upper()
    return f"{name[:_LONGEST_NAME].strip('.-') or 'model'}-{label}{SUFFIX}"


def _check_inventory(family: Architecture, places: list[Place], model: ModelSpec) -> None:
    """Raise RefusedError for a tensor that GGUF has no place for; copies and computed ones are left out."""
    known = {name for place in places for name in place.known}
    known |= {f"{slot.hf}.weight" for slot in family.top if slot.untied}
    for name in model.tensors:
        if name not in known and not name.endswith(family.buffers):
            raise RefusedError(f"tensor {name}: llama.cpp's {family.name} models have no such tensor")


def _general(family: Architecture, config: Mapping[str, Any], kind: str) -> dict[str, Value]:
    # None is made up where there is none: llama.cpp goes by it (what calls itself phi3 must have its special tokens).
    name = _said_name(config)
    return {
        "general.architecture": string(family.name),
        "general.type": string("model"),
        **({"general.name": string(name[:_LONGEST_NAME])} if name else {}),
        "general.file_type": uint(FILE_TYPES[label_of(kind)] if is_mix(kind) else _FILE_TYPES[kind]),
        "general.quantization_version": uint(_QUANTIZATION_VERSION),
    }


def _said_name(config: Mapping[str, Any]) -> str:
    """The model's name as its configuration says: the last component, for a path would tell where the model lay."""
    return re.split(r"[/\\]", str(config.get("_name_or_path") or "").rstrip("/\\"))[-1]


def _mostly(some: Sequence[Entry], entries: Sequence[Entry]) -> bool:
    """Whether `some` of the `entries` have most of the weights."""
    mine, all_of_them = (sum(prod(entry.place.stored) for entry in each) for each in (some, entries))
    return 2 * mine > all_of_them


def _commonest(entries: Sequence[Entry]) -> str:
    """The block type of most weights."""
    weights: Counter[str] = Counter()
    for entry in entries:
        weights[entry.block.name] += prod(entry.place.stored)
    return weights.most_common(1)[0][0]
