"""Reading a GPTQ directory back to quantized tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from compress.formats.base import TensorSpec
from compress.formats.errors import InputError
from compress.formats.files.hf_config import quantization_of
from compress.formats.files.hf_files import HFCheckpoint
from compress.formats.gptq.tensors import (
    PARTS,
    ZERO_OFFSET,
    Geometry,
    check_groups,
    decode_scales,
    decode_zeros,
    read_geometry,
)
from compress.kernels.numbers.int import IntFormat
from compress.kernels.pack import unpack
from compress.kernels.qtensor import QTensor

_PACKED_WEIGHT = f".{PARTS[0]}"


class GPTQCheckpoint(HFCheckpoint):
    """A GPTQ directory. Each layer's bits and group size come from its shapes.

    So no regular expression of the file's `dynamic` rules is ever run. Raises InputError, here or in `read`,
    for another packing, tensors that do not fit together, and columns reordered into groups.
    """

    def __init__(self, path: Path, dialect: str) -> None:
        super().__init__(path, dialect)
        settings = quantization_of(path) or {}
        self._format = _checkpoint_format(settings, path)
        names = [name for name in self.weights.specs if name.endswith(_PACKED_WEIGHT)]
        self._layers = {
            f"{module}.weight": read_geometry(module, self.weights.specs)
            for module in (name.removesuffix(_PACKED_WEIGHT) for name in names)
        }
        if settings.get("desc_act"):
            for name, layer in self._layers.items():
                self._check_groups(name, layer)
        self.spec = replace(self.spec, tensors=self._tensors(settings))

    def read(self, name: str) -> Tensor | QTensor:
        if name not in self._layers:
            return self.weights.read(name)
        number_format = self.spec.tensors[name].format
        assert isinstance(number_format, IntFormat)
        layer = self._layers[name]
        self._check_groups(name, layer)
        zero = self._zeros(name, layer)
        params = {"scale": decode_scales(name, self._part(name, "scales"))}
        if number_format.zero == "integer":
            params["zero"] = zero
        elif not _all_middle(zero, layer.bits):
            raise InputError(f"{name} is not symmetric, though the configuration says so (sym: true)")
        codes = unpack(self._part(name, "qweight"), layer.bits).T.contiguous()
        return QTensor(number_format, codes, params)

    def _tensors(self, settings: Mapping[str, Any]) -> dict[str, TensorSpec]:
        """Every tensor in the file's order, four of them under the name of one weight."""
        tensors: dict[str, TensorSpec] = {}
        for stored, spec in self.weights.specs.items():
            module, _, part = stored.rpartition(".")
            name = f"{module}.weight"
            if name not in self._layers:
                tensors[stored] = spec
            elif part in PARTS:
                tensors[name] = self._spec(name, settings)
            elif part == "weight":
                raise InputError(f"{self.path} holds {name} twice: packed and dense")
            else:
                tensors[stored] = spec
        return tensors

    def _spec(self, name: str, settings: Mapping[str, Any]) -> TensorSpec:
        layer = self._layers[name]
        declared = settings.get("group_size")
        per_channel = layer.groups == 1 and declared != layer.inputs
        group_size = -1 if per_channel else layer.inputs // layer.groups
        if not _rules(settings) and layer.groups > 1 and group_size != declared:
            raise InputError(f"{name} has groups of {group_size}, the configuration of {str(declared)[:40]}")
        symmetric = bool(settings.get("sym", True))
        if any("sym" in rule for rule in _rules(settings)):
            symmetric = _all_middle(self._zeros(name, layer), layer.bits)
        number_format = IntFormat(layer.bits, group_size, "middle" if symmetric else "integer")
        return TensorSpec((layer.outputs, layer.inputs), "float32", number_format)

    def _zeros(self, name: str, layer: Geometry) -> Tensor:
        return decode_zeros(name, self._part(name, "qzeros"), layer.bits, self._format)

    def _check_groups(self, name: str, layer: Geometry) -> None:
        if f"{name.removesuffix('weight')}g_idx" in self.weights.specs:
            check_groups(name, self._part(name, "g_idx"), layer.groups)

    def _part(self, name: str, part: str) -> Tensor:
        return self.weights.read(f"{name.removesuffix('weight')}{part}")


def _checkpoint_format(settings: Mapping[str, Any], path: Path) -> str:
    found = settings.get("checkpoint_format", settings.get("format", "gptq"))
    if settings.get("is_marlin_format"):
        found = "marlin"
    if not isinstance(found, str) or found not in ZERO_OFFSET:
        raise InputError(
            f"{path} is packed as {str(found)[:40]!r}; what is read is {' and '.join(ZERO_OFFSET)}",
            "get the model in one of those, or unquantized",
        )
    return found


def _rules(settings: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    rules = settings.get("dynamic") or {}
    return [rule for rule in rules.values() if isinstance(rule, dict)] if isinstance(rules, dict) else []


def _all_middle(zero: Tensor, bits: int) -> bool:
    return bool((zero == 1 << bits - 1).all())
