"""A GGUF file as a checkpoint: Hugging Face's names, row order, config.json and tokenizer.

Nothing is read on trust: the tensors must be exactly those that the family and the sizes in the metadata
call for, in their shapes, and there must be a token for every row of the embedding.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from compress.formats.base import Checkpoint, ModelSpec, TensorSpec
from compress.formats.errors import InputError
from compress.formats.files.storage import encode_json
from compress.formats.gguf.blocks.formatted import FormatType
from compress.formats.gguf.blocks.scales import read_scale, scale_name, scales_beside
from compress.formats.gguf.config import dims_of, own_config, read_config, read_family
from compress.formats.gguf.file import model_name
from compress.formats.gguf.header import TensorInfo
from compress.formats.gguf.metadata import Metadata, keep
from compress.formats.gguf.names import Architecture, Place
from compress.formats.gguf.placed import Source, join, sources
from compress.formats.gguf.rope import FREQS, LONG, SHORT
from compress.formats.gguf.shards import Parts, whole_stem
from compress.formats.gguf.tokens.keys import read_vocab
from compress.formats.gguf.tokens.to_tokenizer import tokenizer_files
from compress.formats.gguf.tokens.vocab import Vocab
from compress.kernels.qtensor import QTensor

_FACTORS = (FREQS, LONG, SHORT)
_HALVES = {"f16": "float16", "bf16": "bfloat16"}


class GGUFCheckpoint(Checkpoint):
    """One GGUF file, or all its parts.

    Integer blocks (Q4_0 to Q8_0), K-quants, IQ4, MXFP4, NVFP4 and ternary ones are QTensors, others dense. Of the
    scales beside NVFP4 those of inputs say what is done at run time, and are not read.

    Raises InputError for what is damaged, of a family or with a tokenizer that is not known here, or in parts of which
    one is not beside it.
    """

    dialect = "gguf"

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = Parts(path)
        metadata = Metadata(self._file.metadata)
        vocab = read_vocab(metadata)
        family = read_family(metadata)
        config = self._config(family, metadata, vocab)
        self._dims = dims_of(config)
        self._sources = sources(self._found(family, config))
        tensors = {name: self._spec(source) for name, source in self._sources.items()}
        kept = keep(self._file.metadata, metadata.asked)
        self._files = {**_config_files(config, vocab), **tokenizer_files(vocab, self._dims.context), **kept}
        self.spec = ModelSpec(config, tensors, self._files, name=model_name(whole_stem(path)))

    def read(self, name: str) -> Tensor | QTensor:
        source = self._sources[name]
        return join(source, [self._part(place, source.expert) for place in source.places], self._dims)

    def _part(self, place: Place, expert: int | None) -> Tensor | QTensor:
        """What lies in one place, times the scale that may lie beside it."""
        tensor, kind, beside = (
            self._file.read(place.gguf, expert),
            self._tensors[place.gguf].type,
            scale_name(place.gguf),
        )
        if not (isinstance(tensor, QTensor) and isinstance(kind, FormatType) and kind.beside in tensor.params):
            return tensor
        if beside in self._tensors:
            scales = self._file.read(beside)
            assert isinstance(scales, Tensor)  # it is a vector
            tensor.params[kind.beside].fill_(read_scale(f"{self.path}: {beside}", scales, expert))
        return tensor

    def files(self) -> Mapping[str, bytes]:
        return self._files

    def nbytes(self) -> int:
        return self._file.nbytes

    @property
    def _tensors(self) -> Mapping[str, TensorInfo]:
        return self._file.tensors

    def _config(self, family: Architecture, metadata: Metadata, vocab: Vocab) -> dict[str, Any]:
        found = {name: self._file.read(name) for name in _FACTORS if name in self._tensors}
        factors = {name: value.dequantize() if isinstance(value, QTensor) else value for name, value in found.items()}
        config = read_config(family, metadata, len(vocab.tokens), vocab.roles, factors)
        for flag in {slot.when for slot in family.block if slot.when and not slot.when.startswith("!")}:
            named = {slot.gguf for slot in family.block if slot.when == flag}
            config[flag] = all(f"blk.0.{stem}.weight" in self._tensors for stem in named)
        for flag in {slot.bias for slot in family.block} - {"never", "always"}:
            biased = {slot.gguf for slot in family.block if slot.bias == flag}
            config[flag] = any(f"blk.0.{stem}.bias" in self._tensors for stem in biased)
        config.setdefault("tie_word_embeddings", "output.weight" not in self._tensors)
        config |= dict.fromkeys(("dtype", "torch_dtype"), self._dtype())
        return own_config(family, config)

    def _dtype(self) -> str:
        """What holds a dense copy of the model without loss."""
        kinds = {info.type.name for info in self._tensors.values() if len(info.dims) > 1}
        return _HALVES.get(kinds.pop(), "float32") if len(kinds) == 1 else "float32"

    def _found(self, family: Architecture, config: Mapping[str, Any]) -> list[Place]:
        """The places of all tensors. Raises InputError unless the file has these tensors and no others."""
        places = list(family.places(self._dims, config))
        expected = {place.gguf: place.stored for place in places}
        scales = {scale: (place.experts or 1,) for place in places for scale in self._scales(place)}
        expected |= {name: shape for name, shape in scales.items() if name in self._tensors}
        for name, info in self._tensors.items():
            if name in _FACTORS:
                continue
            if name not in expected:
                raise InputError(f"{self.path}: a {family.name} model has no tensor {name}")
            if info.shape != expected[name]:
                shape = list(expected[name])
                raise InputError(f"{self.path}: tensor {name} has the shape {list(info.shape)}, not {shape}")
            if "float" not in info.type.spec(info.shape).dtype:
                raise InputError(f"{self.path}: tensor {name} holds {info.type.name}, and weights are not integers")
        for name in expected:
            if name not in self._tensors:
                raise InputError(f"{self.path}: tensor {name} is missing")
        return places

    def _scales(self, place: Place) -> tuple[str, ...]:
        """The scales that may lie beside a place."""
        kind = self._tensors[place.gguf].type if place.gguf in self._tensors else None
        scaled = isinstance(kind, FormatType) and kind.beside
        return scales_beside(place.gguf) if scaled else ()

    def _spec(self, source: Source) -> TensorSpec:
        return source.spec([self._tensors[place.gguf].type for place in source.places])


def _config_files(config: Mapping[str, Any], vocab: Vocab) -> dict[str, bytes]:
    """config.json, and generation_config.json with every token that ends a generation."""
    ends = dict.fromkeys(vocab.roles[role] for role in ("eos", "eot") if role in vocab.roles)
    ids = {"bos_token_id": config["bos_token_id"], "pad_token_id": config["pad_token_id"]}
    generation = {**ids, "eos_token_id": list(ends) if len(ends) > 1 else config["eos_token_id"]}
    return {
        "config.json": encode_json(dict(sorted(config.items()))),
        "generation_config.json": encode_json({key: value for key, value in generation.items() if value is not None}),
    }
