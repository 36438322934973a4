"""One scheme of compressed-tensors: how a layer's weight and input are rounded, as JSON and back.

Source: compressed-tensors 0.20.0, quantization/quant_scheme.py and compressors/format.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from compress.formats.compressed_tensors.arguments import Arguments, read_arguments
from compress.formats.compressed_tensors.float4 import MXFP4, NVFP4, MXFP4Packed, NVFP4Packed
from compress.formats.compressed_tensors.packed import PackQuantized
from compress.formats.compressed_tensors.plain import FloatQuantized, IntQuantized
from compress.formats.compressed_tensors.storage import Storage
from compress.formats.errors import InputError
from compress.kernels.numbers.activations import GROUP, ActivationFormat, CacheFormat, Grid
from compress.kernels.numbers.float import BLOCK, FloatFormat, Region
from compress.kernels.numbers.float4 import Float4Format
from compress.kernels.numbers.int import IntFormat
from compress.kernels.qtensor import NumberFormat

_TYPES: dict[Grid, str] = {"int8": "int", "fp8": "float"}
_GRIDS = {name: grid for grid, name in _TYPES.items()}
_REGIONS: dict[str, Region] = {"tensor": "tensor", "channel": "channel", "block": "block"}
_HEAD = "attn_head"
_FLOAT4 = {
    MXFP4: Arguments("float", 4, "group", group_size=MXFP4.block, scale_dtype="torch.uint8"),
    NVFP4: Arguments("float", 4, "tensor_group", group_size=NVFP4.block, scale_dtype="torch.float8_e4m3fn"),
}


@dataclass(frozen=True)
class Scheme:
    """How one linear layer is quantized."""

    number_format: NumberFormat
    inputs: ActivationFormat | None = None

    @property
    def format(self) -> str:
        """The library's own choice of a `format` to store such a layer in."""
        if isinstance(self.number_format, Float4Format):
            return f"{self.number_format.name}-pack-quantized"
        if isinstance(self.number_format, FloatFormat):
            return "float-quantized" if self.inputs else "naive-quantized"
        return "int-quantized" if self.inputs else "pack-quantized"

    @property
    def storage(self) -> Storage:
        """How we store the layer."""
        return storages(self.number_format)[self.format]

    def misfit(self) -> str | None:
        """Why compressed-tensors has no such scheme, or None if it has."""
        if reason := self.storage.misfit(self.number_format):
            return reason
        if self.inputs and isinstance(self.number_format, Float4Format):
            return f"weights in {self.number_format.name} go with inputs as they are, not in {self.inputs.grid}"
        grid = "fp8" if isinstance(self.number_format, FloatFormat) else "int8"
        if self.inputs and self.inputs.grid != grid:
            return f"inputs in {self.inputs.grid} do not go with weights in {self.number_format.name}; {grid} do"
        return None

    def json(self, targets: list[str]) -> dict[str, Any]:
        """The entry of `config_groups` for the layers `targets`."""
        return {
            "format": self.format,
            "input_activations": _inputs_arguments(self.inputs).json() if self.inputs else None,
            "output_activations": None,
            "targets": targets,
            "weights": _weights_arguments(self.number_format).json(),
        }


def storages(number_format: NumberFormat) -> dict[str, Storage]:
    """The `format`s that layers of this number format may be stored in."""
    if isinstance(number_format, Float4Format):
        return {f"{number_format.name}-pack-quantized": MXFP4Packed() if number_format == MXFP4 else NVFP4Packed()}
    if isinstance(number_format, FloatFormat):
        return {"float-quantized": FloatQuantized(), "naive-quantized": FloatQuantized()}
    return {"pack-quantized": PackQuantized(), "int-quantized": IntQuantized(), "naive-quantized": IntQuantized()}


def read_scheme(group: Mapping[str, Any], where: str) -> Scheme:
    """The scheme of an entry of `config_groups`. Raises InputError, naming `where`, for what is not read."""
    if group.get("output_activations") is not None:
        raise InputError(f"{where} rounds the outputs of layers, which is not read")
    weights = _read_weights(read_arguments(group.get("weights"), f"{where}.weights"), f"{where}.weights")
    inputs = group.get("input_activations")
    if inputs is None:
        return Scheme(weights)
    inside = f"{where}.input_activations"
    scheme = Scheme(weights, _read_inputs(read_arguments(inputs, inside), inside))
    if reason := scheme.misfit():
        raise InputError(f"{where}: {reason}")
    return scheme


def _weights_arguments(number_format: NumberFormat) -> Arguments:
    if isinstance(number_format, Float4Format):
        return _FLOAT4[number_format]
    if isinstance(number_format, FloatFormat):
        blocks = (BLOCK, BLOCK) if number_format.per == "block" else None
        return Arguments("float", 8, number_format.per, block_structure=blocks)
    assert isinstance(number_format, IntFormat)  # misfit() let nothing else through
    size = None if number_format.group_size == -1 else number_format.group_size
    strategy = "group" if size else "channel"
    return Arguments("int", number_format.bits, strategy, number_format.zero == "middle", group_size=size)


def _read_weights(found: Arguments, where: str) -> NumberFormat:
    number_format: NumberFormat | None = next((known for known, said in _FLOAT4.items() if said == found), None)
    if found.type == "float" and found.strategy in _REGIONS:
        number_format = FloatFormat(_REGIONS[found.strategy])
    elif found.type == "int" and 2 <= found.num_bits <= 8 and (found.group_size is None or found.group_size > 0):
        number_format = IntFormat(found.num_bits, found.group_size or -1, "middle" if found.symmetric else "integer")
    if number_format is None or _weights_arguments(number_format) != found:
        raise found.unread(where)
    return number_format


def _inputs_arguments(inputs: ActivationFormat) -> Arguments:
    size = GROUP if inputs.per == "group" else None
    return Arguments(_TYPES[inputs.grid], 8, inputs.per, dynamic=inputs.dynamic, group_size=size)


def _read_inputs(found: Arguments, where: str) -> ActivationFormat:
    if found.type in _GRIDS and (found.dynamic or found.strategy == "tensor"):
        for per in ("token", "group", "tensor"):
            if found.dynamic or per == "tensor":
                inputs = ActivationFormat(_GRIDS[found.type], found.dynamic, per)
                if _inputs_arguments(inputs) == found:
                    return inputs
    raise found.unread(where)


def cache_json(cache: CacheFormat | None) -> dict[str, Any] | None:
    """The `kv_cache_scheme`."""
    return _cache_arguments(cache).json() if cache else None


def read_cache(found: Any, where: str) -> CacheFormat | None:
    """The cache's format, from its `kv_cache_scheme`. Raises InputError, naming `where`."""
    if found is None:
        return None
    arguments = read_arguments(found, where)
    for cache in (CacheFormat(grid, per) for grid in _TYPES for per in ("tensor", "head")):
        if _cache_arguments(cache) == arguments:
            return cache
    raise arguments.unread(where)


def _cache_arguments(cache: CacheFormat) -> Arguments:
    return Arguments(_TYPES[cache.grid], 8, _HEAD if cache.per == "head" else "tensor")
