"""Our own file between stages: dense tensors and QTensors, exactly, in one safetensors file.

A QTensor `name` lies as `name.codes` and one tensor per parameter (`name.scale`, …); what number format they
are in stands in the header's metadata, as JSON: its class and its fields.
"""

from __future__ import annotations

import importlib
import json
import pkgutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

import compress.kernels
from compress.formats.base import TensorSpec
from compress.formats.errors import InputError
from compress.formats.safetensors_file import SafetensorsFile, write_file
from compress.kernels.qtensor import NumberFormat, QTensor

_KEY = "number_formats"


def save_tensors(path: Path, tensors: Mapping[str, Tensor | QTensor]) -> None:
    """Write durably, whole or not at all. Raises StorageError."""
    parts = dict(_parts(tensors))
    formats = {
        name: {"class": type(tensor.format).__name__, "fields": asdict(tensor.format)}  # type: ignore[call-overload]
        for name, tensor in tensors.items()
        if isinstance(tensor, QTensor)
    }
    specs = {name: _spec(tensor) for name, tensor in parts.items()}
    write_file(path, specs, {_KEY: json.dumps(formats, sort_keys=True)}, parts.__getitem__)


class NativeFile:
    """A lazy reader of such a file. Raises InputError for one that was not written by `save_tensors`."""

    def __init__(self, path: Path) -> None:
        self._file = SafetensorsFile(path)
        described = json.loads(self._file.metadata.get(_KEY, "{}"))
        self._formats = {name: _format(entry, path) for name, entry in described.items()}
        self.specs = dict(self._logical_specs())

    def read(self, name: str) -> Tensor | QTensor:
        """One tensor by the name that it was saved under."""
        if name not in self._formats:
            return self._file.read(name)
        number_format = self._formats[name]
        params = {
            param: self._file.read(f"{name}.{param}")
            for param in number_format.param_shapes(self.specs[name].shape)
        }
        return QTensor(number_format, self._file.read(f"{name}.codes"), params)

    def _logical_specs(self) -> Iterator[tuple[str, TensorSpec]]:
        stored = self._file.specs
        hidden = set()
        for name, number_format in self._formats.items():
            shape = stored[f"{name}.codes"].shape
            hidden |= {f"{name}.{part}" for part in ("codes", *number_format.param_shapes(shape))}
            yield name, TensorSpec(shape, "float32", number_format)
        yield from ((name, spec) for name, spec in stored.items() if name not in hidden)


def _parts(tensors: Mapping[str, Tensor | QTensor]) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in sorted(tensors.items()):
        if isinstance(tensor, QTensor):
            yield f"{name}.codes", tensor.codes
            yield from ((f"{name}.{param}", value) for param, value in sorted(tensor.params.items()))
        else:
            yield name, tensor


def _spec(tensor: Tensor) -> TensorSpec:
    return TensorSpec(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))


def _format(entry: Mapping[str, Any], path: Path) -> NumberFormat:
    for module in pkgutil.iter_modules(compress.kernels.__path__):
        importlib.import_module(f"compress.kernels.{module.name}")
    known = {kind.__name__: kind for kind in NumberFormat.__subclasses__()}
    if entry["class"] not in known:
        raise InputError(f"{path}: unknown number format {entry['class']!r}", "was it written by a newer version?")
    return known[entry["class"]](**entry["fields"])
