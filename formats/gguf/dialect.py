"""GGUF, llama.cpp's container: one file that holds weights, configuration and tokenizer.

Source: `docs/gguf.md` of ggml; what an engine asks of the metadata: llama.cpp, `src/llama-model.cpp`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Literal, cast, get_args

from pydantic import ByteSize, Field, field_validator
from torch import Tensor

from compress.formats.base import Checkpoint, Dialect, FileLayout, Layout, ModelSpec, Progress, TensorSpec
from compress.formats.errors import InputError, RefusedError
from compress.formats.files.storage import RegularFile
from compress.formats.gguf.blocks.formatted import FormatType
from compress.formats.gguf.blocks.substitutes import substitutes_told
from compress.formats.gguf.blocks.types import BLOCKS, DenseType, IntType
from compress.formats.gguf.checkpoint import GGUFCheckpoint
from compress.formats.gguf.choosing import Choosing, misfit
from compress.formats.gguf.config import dims_of, family_of, unseen_window, write_config
from compress.formats.gguf.file import SUFFIX, file_size, gguf_file, write_gguf
from compress.formats.gguf.header import MAGIC, Value
from compress.formats.gguf.metadata import kept_in
from compress.formats.gguf.mixes import HEEDING, Mix, Traits, is_mix, label_of, twin_of
from compress.formats.gguf.names import TIED, Architecture, Place, is_tied
from compress.formats.gguf.placed import found_in
from compress.formats.gguf.plan import Entry, Filling, Plan, file_name, general, kind_of, mostly_kept
from compress.formats.gguf.tokens.from_tokenizer import vocab_of
from compress.formats.gguf.tokens.keys import write_vocab
from compress.formats.gguf.tokens.wordpiece import unlike
from compress.formats.gguf.witness import read_with_library
from compress.formats.options import PerTensor, in_small_letters
from compress.kernels.qtensor import NumberFormat

BlockName = Literal[
    "f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "q6_k", "q5_k", "q4_k", "q3_k", "q2_k",
    "iq4_xs", "iq4_nl", "mxfp4", "nvfp4", "tq1_0", "tq2_0",
]  # fmt: skip


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

    @field_validator("type", mode="before")
    @classmethod
    def _in_any_letters(cls, said: Any) -> Any:
        """Types of which no mix differs by its letters may be said in capitals: F16."""
        return in_small_letters(said, [name for name in get_args(BlockName) if twin_of(name) is None])

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
        choosing, found = self._choosing(Traits.of(family, dims, config, self.weighed)), dict[str, NumberFormat]()
        for place in family.places(dims, config):
            sources = found_in(place, model)
            if sources and all(model.tensors[source].format is None for source in sources):
                block = choosing.rounded(place, sources).block
                if isinstance(block, IntType | FormatType):
                    found |= dict.fromkeys(sources, block.format)
        return found

    def _choosing(self, traits: Traits) -> Choosing:
        return Choosing(cast(PerTensor[str], self.type), self.strict, traits)

    def misfit(self, name: str, spec: TensorSpec, model: ModelSpec) -> str | None:
        return misfit(spec)

    def layout(self, model: ModelSpec) -> Layout:
        """See Dialect.layout. Needs `model.files`: the tokenizer is a part of the file."""
        plan = self._plan(model)
        told = substitutes_told(Counter(entry.substitute for entry in plan.entries if entry.substitute))
        told += tuple(self._kept_told(plan.entries))
        if apart := self._choosing(plan.traits).told_apart(plan.entries, model):
            told += (f"type: {apart}",)
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
        if said and mostly_kept(entries):
            kept = [entry for entry in entries if entry.kept]
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
        choosing = self._choosing(traits)
        entries = [entry for place in places for entry in choosing.entry(place, model).with_scale]
        for name, values in rope.tensors(dims.head).items():
            entries.append(Entry(Place(name, (), tuple(values.shape)), (), BLOCKS["f32"]))
        kind = kind_of(self.type, entries)
        metadata = {**general(family, config, kind), **settings, **vocab}
        metadata = {**metadata, **{key: value for key, value in kept_in(model.files).items() if key not in metadata}}
        return Plan(file_name(model, kind), metadata, tuple(entries), dims, rope, self.max_shard_size, traits)


@lru_cache(maxsize=1)
def _tokenizer(files: tuple[tuple[str, bytes], ...], config: str, size: int) -> Mapping[str, Value]:
    """What a file says of its tokenizer: the same of every type that a plan weighs, and long."""
    return write_vocab(vocab_of(dict(files), json.loads(config), size))


def _file(path: Path) -> Path:
    found = gguf_file(path)
    if found is None:
        raise InputError(f"{path} does not hold one {SUFFIX} file", "give the file itself")
    return found


def _check_inventory(family: Architecture, places: list[Place], model: ModelSpec) -> None:
    """Raise RefusedError for a tensor that GGUF has no place for; copies and computed ones are left out."""
    known = {name for place in places for name in place.known}
    known |= {f"{slot.hf}.weight" for slot in family.top if slot.untied}
    for name in model.tensors:
        if name not in known and not name.endswith(family.buffers):
            raise RefusedError(f"tensor {name}: llama.cpp's {family.name} models have no such tensor")
