"""Reading a compressed-tensors directory back to quantized tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from compress.formats.base import TensorSpec
from compress.formats.compressed_tensors.config import Group, read_groups
from compress.formats.compressed_tensors.schemes import read_cache
from compress.formats.compressed_tensors.storage import PARTS, SCALE, Shape
from compress.formats.errors import InputError
from compress.formats.files.hf_config import CONFIG, quantization_of
from compress.formats.files.hf_files import HFCheckpoint
from compress.formats.gptq.tensors import trivial_groups
from compress.formats.views.runtime_scales import flat_scale, runtime_scales, with_runtime_scales
from compress.kernels.numbers.int import SCALE_TYPES, IntFormat
from compress.kernels.qtensor import NumberFormat, QTensor

_G_IDX = "weight_g_idx"
_QUANTIZED = (f".{SCALE}", ".weight_packed")  # a layer that has one of these is quantized
_BYTES = ("int8", "float8_e4m3fn")


@dataclass(frozen=True)
class _Layer:
    shape: Shape
    group: Group
    number_format: NumberFormat


class CompressedTensorsCheckpoint(HFCheckpoint):
    """A compressed-tensors directory.

    A layer has the one scheme of `config_groups` that its tensors' names, shapes and dtypes agree with; only
    where several do, its name must stand among the targets of one. So no regular expression is ever run.
    Raises InputError, here or in `read`, for tensors that fit no scheme and columns reordered into groups.
    """

    def __init__(self, path: Path, dialect: str) -> None:
        super().__init__(path, dialect)
        settings, where = quantization_of(path) or {}, path / CONFIG
        self._groups = read_groups(settings, where)
        modules = {_module(name): None for name in self.weights.specs if name.endswith(_QUANTIZED)}
        self._layers = {f"{module}.weight": self._layer(module) for module in modules}
        inputs = {_module(name): layer.group.scheme.inputs for name, layer in self._layers.items()}
        spec = replace(
            self.spec,
            tensors=self._tensors(),
            activations={module: found for module, found in inputs.items() if found is not None},
            kv_cache=read_cache(settings.get("kv_cache_scheme"), f"{where}: kv_cache_scheme"),
        )
        self.spec = with_runtime_scales(spec, path)
        self._scales = runtime_scales(self.spec)

    def read(self, name: str) -> Tensor | QTensor:
        if name in self._scales:
            return flat_scale(name, self.weights.read(name))
        if name not in self._layers:
            return self.weights.read(name)
        layer, module = self._layers[name], _module(name)

        def part(kind: str) -> Tensor:
            return self.weights.read(f"{module}.{kind}")

        return layer.group.storage.decode(name, layer.shape, layer.number_format, part)

    def _layer(self, module: str) -> _Layer:
        parts = {
            part: self.weights.specs[f"{module}.{part}"] for part in PARTS if f"{module}.{part}" in self.weights.specs
        }
        ordered = parts.pop(_G_IDX, None)
        shape = self._shape(module, parts)
        fitting = [group for group in self._groups if _fits(group, shape, parts)]
        if len({group.scheme for group in fitting}) > 1:
            fitting = [group for group in fitting if module in group.targets]
        if not fitting:
            given = ", ".join(f"{part} {list(spec.shape)} {spec.dtype}" for part, spec in parts.items())
            raise InputError(f"{module}: {given} fit none of the config_groups, or more than one")
        if ordered is not None:
            self._check_order(module, shape[1], parts[SCALE].shape[1])
        return _Layer(shape, fitting[0], _with_scales(fitting[0].scheme.number_format, parts[SCALE].dtype))

    def _shape(self, module: str, parts: Mapping[str, TensorSpec]) -> Shape:
        """The weight's shape [out, in]."""
        packed = parts.get("weight_packed")
        if packed is None:
            return parts["weight"].shape if "weight" in parts else ()
        if packed.dtype == "uint8" and len(packed.shape) == 2:  # FP4, two codes a byte
            return packed.shape[0], 2 * packed.shape[1]
        if parts.get("weight_shape") != TensorSpec((2,), "int64"):
            raise InputError(f"{module}: weight_shape is not two int64 numbers")
        return tuple(self.weights.read(f"{module}.weight_shape").tolist())

    def _check_order(self, module: str, inputs: int, groups: int) -> None:
        """Refuse a layer whose columns were reordered into groups, as engines since 2026 do; −1 stands for none."""
        g_idx = self.weights.read(f"{module}.{_G_IDX}")
        if bool((g_idx == -1).all()):
            return
        if not torch.equal(g_idx.int(), trivial_groups(inputs, groups)):
            raise InputError(
                f"{module} has its columns reordered into groups (actorder: group)",
                "quantize the model again with actorder: static",
            )

    def _tensors(self) -> dict[str, TensorSpec]:
        """Every tensor in the file's order, the parts of a layer under the name of its weight."""
        tensors: dict[str, TensorSpec] = {}
        for stored, spec in self.weights.specs.items():
            name = f"{_module(stored)}.weight"
            layer = self._layers.get(name)
            if layer is None and stored == name and spec.dtype in _BYTES:
                raise InputError(f"{self.path} holds {name} as {spec.dtype} without a weight_scale")
            if layer is None or stored.rpartition(".")[2] not in PARTS:
                tensors[stored] = spec
            else:
                tensors[name] = TensorSpec(layer.shape, "float32", layer.number_format)
        return tensors


def _module(name: str) -> str:
    return name.rpartition(".")[0]


def _fits(group: Group, shape: Shape, parts: Mapping[str, TensorSpec]) -> bool:
    """Whether the tensors are those of a weight of this shape and scheme.

    Scales may have any float type, but for schemes that name one.
    """
    if len(shape) != 2 or min(shape) < 1:
        return False
    given = parts[SCALE].dtype if SCALE in parts else "bool"
    dtype = given if getattr(torch, given).is_floating_point else "float16"
    number_format = group.scheme.number_format
    if number_format.misfit(shape) is not None:
        return False
    if isinstance(number_format, IntFormat) and dtype not in SCALE_TYPES:
        return False
    return group.storage.parts(shape, number_format, dtype) == parts


def _with_scales(number_format: NumberFormat, dtype: str) -> NumberFormat:
    """The number format of a weight whose scales are stored as `dtype`, of which `config_groups` do not speak."""
    if not isinstance(number_format, IntFormat):
        return number_format
    return replace(number_format, scale_dtype=next(kind for kind in SCALE_TYPES if kind == dtype))
