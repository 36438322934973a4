"""Reading a bitsandbytes directory back to quantized tensors."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from compress.formats.base import TensorSpec
from compress.formats.bitsandbytes.tensors import BLOCK_SIZES, STATE, parts_of, unpack
from compress.formats.errors import InputError
from compress.formats.files.hf_files import HFCheckpoint
from compress.formats.files.storage import parse_json
from compress.kernels.numbers.codebook import CodebookFormat
from compress.kernels.numbers.nested_scales import NESTED_BLOCK, dynamic_map
from compress.kernels.numbers.row_int8 import RowInt8Format
from compress.kernels.numbers.tables import codebook
from compress.kernels.qtensor import NumberFormat, QTensor

_STATE_NAME = re.compile(rf"(?P<module>.+)\.weight\.{re.escape(STATE)}(?P<table>nf4|fp4)")
_MAX_STATE = 4096
_MAX_EXTENT = 1 << 32
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class _Layer:
    """One quantized weight, as its state or its shape says."""

    shape: tuple[int, ...]
    format: NumberFormat
    offset: float = 0.0


class BitsAndBytesCheckpoint(HFCheckpoint):
    """A bitsandbytes directory. Shapes, blocks and tables are those that stand beside every weight.

    Raises InputError, here or in `read`, for tensors that do not fit together, and for tables other than
    bitsandbytes' own: its kernels have those built in, whatever the file says.
    """

    def __init__(self, path: Path, dialect: str) -> None:
        super().__init__(path, dialect)
        self._layers = self._find()
        parts = {part: name for name, layer in self._layers.items() for part in self._check(name, layer)}
        tensors: dict[str, TensorSpec] = {}
        for stored, spec in self.weights.specs.items():
            if stored not in parts:
                tensors[stored] = spec
            elif stored == parts[stored]:
                layer = self._layers[stored]
                tensors[stored] = TensorSpec(layer.shape, "float32", layer.format)
        self.spec = replace(self.spec, tensors=tensors)

    def read(self, name: str) -> Tensor | QTensor:
        if name not in self._layers:
            return self.weights.read(name)
        layer = self._layers[name]
        if isinstance(layer.format, CodebookFormat):
            return self._read_table(name, layer, layer.format)
        module = name.removesuffix(".weight")
        rows = f"{module}.weight_format"
        if rows in self.weights.specs and int(self.weights.read(rows)) != 0:
            raise InputError(
                f"{name} is not stored by rows (weight_format)", "save it again with bitsandbytes 0.45 or newer"
            )
        codes = self.weights.read(name).view(torch.uint8) ^ 0x80
        return QTensor(layer.format, codes, {"scale": self.weights.read(f"{module}.SCB").view(-1, 1)})

    def _read_table(self, name: str, layer: _Layer, number_format: CodebookFormat) -> QTensor:
        self._check_map(f"{name}.quant_map", codebook(number_format.table, _CPU).values)
        grid = number_format.param_shapes(layer.shape)["scale"][0]
        params = {"scale": self.weights.read(f"{name}.absmax").view(grid)}
        if number_format.double_quant:
            self._check_map(f"{name}.nested_quant_map", dynamic_map(_CPU))
            params["nested_scale"] = self.weights.read(f"{name}.nested_absmax")
            params["offset"] = torch.tensor([layer.offset])
        return QTensor(number_format, unpack(self.weights.read(name), layer.shape), params)

    def _check_map(self, name: str, known: Tensor) -> None:
        if not torch.equal(self.weights.read(name), known):
            raise InputError(f"{name} is not bitsandbytes' own table, the only one that its kernels compute with")

    def _find(self) -> dict[str, _Layer]:
        """Every quantized weight by its name."""
        found: dict[str, _Layer] = {}
        for stored, spec in self.weights.specs.items():
            if match := _STATE_NAME.fullmatch(stored):
                name = f"{match['module']}.weight"
                if name in found:
                    raise InputError(f"{self.path}: {name} has more than one quantization state")
                found[name] = _parse_state(name, match["table"], self._state(stored, spec))
            elif stored.endswith(".SCB"):
                name = f"{stored.removesuffix('.SCB')}.weight"
                shape = self.weights.specs[name].shape if name in self.weights.specs else ()
                found[name] = _Layer(shape, RowInt8Format())
        return found

    def _state(self, name: str, spec: TensorSpec) -> Mapping[str, Any]:
        if spec.dtype != "uint8" or spec.size > _MAX_STATE:
            raise InputError(f"{self.path}: {name} is not JSON of up to {_MAX_STATE:,} bytes")
        state = parse_json(self.weights.read(name).numpy().tobytes(), f"{self.path}: {name}")
        if not isinstance(state, dict):
            raise InputError(f"{self.path}: {name} is not a JSON object")
        return state

    def _check(self, name: str, layer: _Layer) -> list[str]:
        """The names of the tensors that a weight lies as. Raises InputError unless all are there, as they must be."""
        if reason := layer.format.misfit(layer.shape):
            raise InputError(f"{name}: {reason}", "quantize the model again with a block size that divides its rows")
        module = name.removesuffix(".weight")
        expected = {f"{module}.{part}": spec for part, spec in parts_of(layer.shape, layer.format, "float32").items()}
        for part, spec in expected.items():
            held = self.weights.specs.get(part)
            if STATE in part or (held is None and part.endswith(".weight_format")):
                continue
            if held != spec:
                given = f"{list(held.shape)} {held.dtype}" if held else "missing"
                raise InputError(
                    f"{part} is {given}; with what stands beside it, it must be {list(spec.shape)} {spec.dtype}"
                )
        return list(expected)


def _parse_state(name: str, table: str, state: Mapping[str, Any]) -> _Layer:
    """What the JSON says of a weight, checked."""
    shape, block_size = state.get("shape"), state.get("blocksize")
    extents = shape if isinstance(shape, list) else []
    if len(extents) != 2 or not all(type(extent) is int and 0 < extent < _MAX_EXTENT for extent in extents):
        raise InputError(f"{name}: its quantization state has the shape {str(shape)[:40]}, not [rows, columns]")
    if type(block_size) is not int or block_size not in BLOCK_SIZES:
        raise InputError(f"{name}: its quantization state has the block size {str(block_size)[:40]}")
    if state.get("quant_type") != table:
        raise InputError(f"{name}: its quantization state says {str(state.get('quant_type'))[:40]!r}, its name {table}")
    double = "nested_offset" in state
    offset = state.get("nested_offset", 0.0)
    if type(offset) not in (int, float) or not math.isfinite(offset) or abs(offset) > torch.finfo(torch.float32).max:
        raise InputError(f"{name}: its nested offset is {str(offset)[:40]}")
    if double and (state.get("nested_blocksize"), state.get("nested_dtype")) != (NESTED_BLOCK, "float32"):
        raise InputError(f"{name}: its scales are not nested in blocks of {NESTED_BLOCK} float32")
    kind: Literal["nf4", "fp4"] = "nf4" if table == "nf4" else "fp4"
    return _Layer((extents[0], extents[1]), CodebookFormat(kind, block_size, double), float(offset))
