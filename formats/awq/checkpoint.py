"""Reading an AWQ directory back to quantized tensors."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from torch import Tensor

from compress.formats.awq.config import declared_group_size
from compress.formats.awq.tensors import BITS, PARTS, decode, read_geometry
from compress.formats.base import TensorSpec
from compress.formats.errors import InputError
from compress.formats.files.hf_config import quantization_of
from compress.formats.files.hf_files import HFCheckpoint
from compress.kernels.numbers.int import IntFormat
from compress.kernels.qtensor import QTensor

_PACKED_WEIGHT = f".{PARTS[0]}"


class AWQCheckpoint(HFCheckpoint):
    """An AWQ directory; every quantized weight is asymmetric, even where all its zero points are 8.

    Raises InputError, here or in `read`, for another packing and for tensors that do not fit together.
    """

    def __init__(self, path: Path, dialect: str) -> None:
        super().__init__(path, dialect)
        self._group_size = declared_group_size(quantization_of(path) or {}, path)
        stored = self.weights.specs
        modules = [name.removesuffix(_PACKED_WEIGHT) for name in stored if name.endswith(_PACKED_WEIGHT)]
        layers = {module: read_geometry(module, stored, self._group_size) for module in modules}
        packed = {f"{module}.{part}" for module in modules for part in PARTS}
        number_format = IntFormat(BITS, self._group_size, "integer")
        self._quantized = {
            f"{module}.weight": TensorSpec((layer.outputs, layer.inputs), "float32", number_format)
            for module, layer in layers.items()
        }
        if twice := self._quantized.keys() & stored.keys():
            raise InputError(f"{path} holds {min(twice)} twice: packed and dense")
        dense = {name: spec for name, spec in stored.items() if name not in packed}
        self.spec = replace(self.spec, tensors={**self._quantized, **dense})

    def read(self, name: str) -> Tensor | QTensor:
        if name not in self._quantized:
            return self.weights.read(name)
        module = name.removesuffix(".weight")
        parts = {part: self.weights.read(f"{module}.{part}") for part in PARTS}
        return decode(name, parts, self._group_size)
