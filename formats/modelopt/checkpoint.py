"""Reading a modelopt directory back to quantized tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from compress.formats.base import TensorSpec
from compress.formats.compressed_tensors.storage import SCALE
from compress.formats.errors import InputError
from compress.formats.files.hf_files import HFCheckpoint
from compress.formats.modelopt.config import read_scheme
from compress.formats.modelopt.tensors import TENSOR_SCALE, program_name, shape_misfit, storage_of
from compress.formats.views.runtime_scales import flat_scale, runtime_scales, with_runtime_scales
from compress.kernels.qtensor import QTensor

_STATIC = "input_scale"
_WEIGHT = ("weight", SCALE, TENSOR_SCALE)
_PARTS = (*_WEIGHT, "bias", "k_scale", "v_scale")


class ModelOptCheckpoint(HFCheckpoint):
    """A modelopt directory: the layers that have scales are quantized, by the one algorithm there is.

    Raises InputError, here or in `read`, for tensors that do not fit it, and for parts of a layer that would
    change its values and are not read.
    """

    def __init__(self, path: Path, dialect: str) -> None:
        super().__init__(path, dialect)
        self._scheme, cache = read_scheme(path)
        self._storage = storage_of(self._scheme.number_format)
        self._stored = {program_name(stored): stored for stored in self.weights.specs}
        if len(self._stored) != len(self.weights.specs):
            raise InputError(f"{path} holds scales of one cache under two names")
        modules = {name.removesuffix(f".{SCALE}"): None for name in self.weights.specs if name.endswith(f".{SCALE}")}
        self._shapes = {f"{module}.weight": self._shape(module) for module in modules}
        inputs = self._scheme.inputs
        spec = replace(
            self.spec,
            tensors=self._tensors(),
            activations=dict.fromkeys(modules, inputs) if inputs else {},
            kv_cache=cache,
        )
        self.spec = with_runtime_scales(spec, path)
        self._scales = runtime_scales(self.spec)

    def read(self, name: str) -> Tensor | QTensor:
        if name in self._scales:
            return flat_scale(name, self.weights.read(self._stored[name]))
        if name not in self._shapes:
            return self.weights.read(self._stored[name])
        module = name.removesuffix(".weight")

        def part(kind: str) -> Tensor:
            return self.weights.read(f"{module}.{kind}")

        return self._storage.decode(name, self._shapes[name], self._scheme.number_format, part)

    def _shape(self, module: str) -> tuple[int, ...]:
        """The shape [out, in] of a quantized layer's weight, once its tensors are found to fit."""
        given = {part: spec for part in _WEIGHT if (spec := self.weights.specs.get(f"{module}.{part}"))}
        number_format, weight = self._scheme.number_format, given.get("weight", TensorSpec((), "bool"))
        packed = weight.dtype == "uint8" and len(weight.shape) == 2
        shape = (weight.shape[0], weight.shape[1] * 2) if packed else weight.shape
        if shape_misfit(shape, number_format) is None and _alike(
            given, self._storage.parts(shape, number_format, "float32")
        ):
            return shape
        said = ", ".join(f"{part} {list(spec.shape)} {spec.dtype}" for part, spec in given.items())
        raise InputError(f"{self.path}: {module} has {said}, which are not {number_format.name}")

    def _tensors(self) -> dict[str, TensorSpec]:
        """Every tensor in the file's order, the parts of a layer under the name of its weight."""
        inputs = self._scheme.inputs
        known = (*_PARTS, _STATIC) if inputs and not inputs.dynamic else _PARTS
        tensors: dict[str, TensorSpec] = {}
        for name, stored in self._stored.items():
            module, _, part = stored.rpartition(".")
            if f"{module}.weight" not in self._shapes:
                if (dtype := self.weights.specs[stored].dtype) in ("float8_e4m3fn", "uint8"):
                    raise InputError(f"{self.path} holds {stored} as {dtype} without a {SCALE}")
                tensors[name] = self.weights.specs[stored]
            elif part == "weight":
                tensors[name] = TensorSpec(self._shapes[stored], "float32", self._scheme.number_format)
            elif part not in known:
                raise InputError(
                    f"{self.path} holds {stored}, which is not read beside weights in {self._scheme.number_format.name}"
                )
            elif part not in _WEIGHT:
                tensors[name] = self.weights.specs[stored]
        return tensors


def _alike(given: Mapping[str, TensorSpec], wanted: Mapping[str, TensorSpec]) -> bool:
    """Whether dtypes and shapes agree, but for extents of 1: versions differ in those of scales."""

    def essence(parts: Mapping[str, TensorSpec]) -> dict[str, tuple[str, list[int]]]:
        return {part: (spec.dtype, [extent for extent in spec.shape if extent != 1]) for part, spec in parts.items()}

    return essence(given) == essence(wanted)
