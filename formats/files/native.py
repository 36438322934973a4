"""Our own file between stages: dense tensors and QTensors, exactly, in one safetensors file.

A QTensor `name` lies as `name.codes` and one tensor per parameter (`name.scale`, …). What number format they
are in stands in the header's metadata, as JSON: its class and its fields.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from compress.formats.base import TensorSpec, dtype_name
from compress.formats.errors import InputError
from compress.formats.files.safetensors.file import SafetensorsFile, write_file
from compress.formats.files.safetensors.header import stored_bytes as data_bytes
from compress.formats.files.storage import parse_json
from compress.kernels.numbers import number_formats
from compress.kernels.qtensor import NumberFormat, QTensor

_KEY = "number_formats"
_HEADER = 150
"""Bytes that a tensor's entry in the header takes: its name, its place, its number format."""


def save_tensors(
    path: Path, tensors: Mapping[str, Tensor | QTensor], whole: Callable[[Tensor], Tensor] = lambda tensor: tensor
) -> None:
    """Write durably, whole or not at all. Raises StorageError.

    `whole` gives what is to be written of a dense tensor when its turn has come, in the order of names.
    """
    parts = dict(_parts(tensors))
    formats = {
        name: {"class": type(tensor.format).__name__, "fields": asdict(tensor.format)}  # type: ignore[call-overload]
        for name, tensor in tensors.items()
        if isinstance(tensor, QTensor)
    }
    specs = {name: _spec(tensor) for name, tensor in parts.items()}
    write_file(path, specs, {_KEY: json.dumps(formats, sort_keys=True)}, lambda name: whole(parts[name]))


def stored_bytes(spec: TensorSpec) -> int:
    """What `save_tensors` writes of a tensor: a dense one fp32, of a QTensor codes and parameters; and its header."""
    if spec.format is None:
        return 4 * spec.size + _HEADER
    parts = [TensorSpec(extents, dtype) for extents, dtype in spec.format.param_shapes(spec.shape).values()]
    parts.append(TensorSpec((spec.size // spec.format.span,), dtype_name(spec.format.codes_dtype)))
    return sum(data_bytes(part) + _HEADER for part in parts)


class NativeFile:
    """A lazy reader of such a file. Raises InputError for one that `save_tensors` did not write."""

    def __init__(self, path: Path) -> None:
        self._file = SafetensorsFile(path)
        self._formats = dict(_formats(self._file))
        hidden = {part for name in self._formats for part in self._stored(name)}
        dense = {name: spec for name, spec in self._file.specs.items() if name not in hidden}
        self.specs = dense | {
            name: TensorSpec(_shape(self._file.specs[f"{name}.codes"], number_format), "float32", number_format)
            for name, number_format in self._formats.items()
        }

    def read(self, name: str) -> Tensor | QTensor:
        """One tensor by the name that it was saved under. Raises InputError if the file was changed."""
        if name not in self._formats:
            return self._file.read(name)
        number_format = self._formats[name]
        parts = {part.removeprefix(f"{name}."): self._file.read(part) for part in self._stored(name)}
        codes = parts.pop("codes")
        if codes.numel() and not (int(codes.min()) >= 0 and int(codes.max()) < number_format.levels):
            raise InputError(f"{self._file.path}: {name} holds codes that {number_format.name} does not have")
        return QTensor(number_format, codes, parts)

    def _stored(self, name: str) -> dict[str, TensorSpec]:
        """The tensors that a QTensor lies as. Raises InputError if the file does not hold exactly those."""
        held, number_format = self._file.specs, self._formats[name]
        codes = held.get(f"{name}.codes", TensorSpec((), "uint8"))
        shape = _shape(codes, number_format)
        if codes.dtype != dtype_name(number_format.codes_dtype) or number_format.misfit(shape):
            raise InputError(f"{self._file.path}: {name} has no codes that fit {number_format.name}")
        stored = {f"{name}.codes": codes}
        for param, (extents, dtype) in number_format.param_shapes(shape).items():
            stored[f"{name}.{param}"] = TensorSpec(extents, dtype)
        if any(held.get(part) != spec for part, spec in stored.items()):
            raise InputError(f"{self._file.path}: {name} has no parameters that fit {number_format.name}")
        return stored


def _parts(tensors: Mapping[str, Tensor | QTensor]) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in sorted(tensors.items()):
        if isinstance(tensor, QTensor):
            yield f"{name}.codes", tensor.codes
            yield from ((f"{name}.{param}", value) for param, value in sorted(tensor.params.items()))
        else:
            yield name, tensor


def _spec(tensor: Tensor) -> TensorSpec:
    return TensorSpec(tuple(tensor.shape), dtype_name(tensor.dtype))


def _shape(codes: TensorSpec, number_format: NumberFormat) -> tuple[int, ...]:
    """The shape of a weight whose codes lie as `codes`, if they are a matrix."""
    return (*codes.shape[:-1], codes.shape[-1] * number_format.span) if codes.shape else ()


def _formats(file: SafetensorsFile) -> Iterator[tuple[str, NumberFormat]]:
    """The number formats that the metadata names: those that `compress.kernels.numbers` defines, no others."""
    known = {kind.__name__: kind for kind in number_formats()}
    described = parse_json(file.metadata.get(_KEY, "{}").encode(), f"{file.path} ({_KEY})")
    if not isinstance(described, dict):
        raise InputError(f"{file.path}: {_KEY} is not a map")
    for name, entry in described.items():
        kind = known.get(str(entry.get("class"))) if isinstance(entry, dict) else None
        if kind is None:
            raise InputError(f"{file.path}: {name} is in an unknown number format", "did a newer version write it?")
        yield name, _build(kind, entry.get("fields"), f"{file.path}: {name}")


def _build(kind: type[NumberFormat], given: Any, where: str) -> NumberFormat:
    expected = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    try:
        made = TypeAdapter(kind).validate_json(json.dumps(given), strict=True)
    except ValidationError as error:
        raise InputError(f"{where}: {kind.__name__} cannot have the fields {str(given)[:100]}") from error
    if set(given) != expected:
        raise InputError(f"{where}: {kind.__name__} has the fields {', '.join(sorted(expected))}")
    return made
