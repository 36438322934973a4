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
from compress.formats.gguf.config import dims_of, read_config, read_family
from compress.formats.gguf.file import GGUFFile, model_name
from compress.formats.gguf.header import TensorInfo
from compress.formats.gguf.metadata import Metadata
from compress.formats.gguf.names import Architecture, Place, reorder, row_order
from compress.formats.gguf.tokens.to_tokenizer import tokenizer_files
from compress.formats.gguf.tokens.vocab import Vocab, read_vocab
from compress.kernels.qtensor import QTensor

FREQ_FACTORS = "rope_freqs.weight"
_HALVES = {"f16": "float16", "bf16": "bfloat16"}


class GGUFCheckpoint(Checkpoint):
    """One GGUF file. Integer blocks (Q4_0 to Q8_0), K-quants, IQ4, MXFP4 and ternary ones are QTensors, others dense.

    Raises InputError for what is damaged, of a family or with a tokenizer that is not known here, or split.
    """

    dialect = "gguf"

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = GGUFFile(path)
        metadata = Metadata(self._file.header.metadata)
        if (metadata.integer("split.count", 0, 1 << 16) or 0) > 1:
            raise InputError(f"{path} is one part of a split model", "join it: llama-gguf-split --merge")
        vocab = read_vocab(metadata)
        family = read_family(metadata)
        config = self._config(family, metadata, vocab)
        self._dims = dims_of(config)
        self._places = {place.hf[0]: place for place in self._found(family, config)}
        tensors = {name: self._spec(place) for name, place in self._places.items()}
        self._files = {
            **_config_files(config, vocab),
            **tokenizer_files(vocab, config["max_position_embeddings"]),
        }
        self.spec = ModelSpec(config, tensors, self._files, name=model_name(path))

    def read(self, name: str) -> Tensor | QTensor:
        place = self._places[name]
        tensor, order = self._file.read(place.gguf), row_order(place, self._dims)
        if place.plus:
            tensor = (tensor.dequantize() if isinstance(tensor, QTensor) else tensor.float()) - place.plus
        return tensor if order is None else reorder(tensor, order.argsort())

    def files(self) -> Mapping[str, bytes]:
        return self._files

    def nbytes(self) -> int:
        return self._file.nbytes

    @property
    def _tensors(self) -> Mapping[str, TensorInfo]:
        return self._file.header.tensors

    def _config(self, family: Architecture, metadata: Metadata, vocab: Vocab) -> dict[str, Any]:
        factors = self._file.read(FREQ_FACTORS) if FREQ_FACTORS in self._tensors else None
        config = read_config(
            family,
            metadata,
            len(vocab.tokens),
            vocab.roles,
            factors.dequantize() if isinstance(factors, QTensor) else factors,
        )
        for flag in {slot.bias for slot in family.block} - {"never", "always"}:
            biased = {slot.gguf for slot in family.block if slot.bias == flag}
            config[flag] = any(f"blk.0.{stem}.bias" in self._tensors for stem in biased)
        config.setdefault("tie_word_embeddings", "output.weight" not in self._tensors)
        return config | dict.fromkeys(("dtype", "torch_dtype"), self._dtype())

    def _dtype(self) -> str:
        """What holds a dense copy of the model without loss."""
        kinds = {info.type.name for info in self._tensors.values() if len(info.dims) > 1}
        return _HALVES.get(kinds.pop(), "float32") if len(kinds) == 1 else "float32"

    def _found(self, family: Architecture, config: Mapping[str, Any]) -> list[Place]:
        """The places of all tensors. Raises InputError unless the file has these tensors and no others."""
        places = list(family.places(self._dims, config))
        expected = {place.gguf: place.shape for place in places}
        for name, info in self._tensors.items():
            if name == FREQ_FACTORS:
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

    def _spec(self, place: Place) -> TensorSpec:
        spec = self._tensors[place.gguf].type.spec(place.shape)
        return TensorSpec(spec.shape, "float32") if place.plus else spec


def _config_files(config: Mapping[str, Any], vocab: Vocab) -> dict[str, bytes]:
    """config.json, and generation_config.json with every token that ends a generation."""
    ends = dict.fromkeys(vocab.roles[role] for role in ("eos", "eot") if role in vocab.roles)
    ids = {"bos_token_id": config["bos_token_id"], "pad_token_id": config["pad_token_id"]}
    generation = {**ids, "eos_token_id": list(ends) if len(ends) > 1 else config["eos_token_id"]}
    return {
        "config.json": encode_json(dict(sorted(config.items()))),
        "generation_config.json": encode_json({key: value for key, value in generation.items() if value is not None}),
    }
