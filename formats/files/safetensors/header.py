"""The header of a safetensors file: 8 bytes of length, then JSON that gives each tensor dtype, shape, place.

Source: the format's README (huggingface/safetensors). It asks for a header of at most 100 MB that begins with
`{`, and for data without holes or overlaps. Beyond it we refuse names that appear twice, control characters
in names, more than 8 dimensions, and more than 100,000 tensors: the library lets the last of two equal names
win, and spends seconds on headers that hold nothing.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from compress.formats.base import TensorSpec
from compress.formats.errors import InputError
from compress.formats.files.storage import parse_json

MAX_HEADER = 100_000_000
LENGTH_BYTES = 8
_MAX_TENSORS = 100_000
_MAX_RANK = 8
_MAX_ELEMENTS = 1 << 48
_MAX_COMMAS = 40 * _MAX_TENSORS  # bounds what the JSON parser may allocate, before it runs
_METADATA = "__metadata__"

# torch dtype name → (name in the file, bytes per element)
_DTYPES = {
    "float64": ("F64", 8),
    "float32": ("F32", 4),
    "float16": ("F16", 2),
    "bfloat16": ("BF16", 2),
    "float8_e4m3fn": ("F8_E4M3", 1),
    "float8_e5m2": ("F8_E5M2", 1),
    "int64": ("I64", 8),
    "int32": ("I32", 4),
    "int16": ("I16", 2),
    "int8": ("I8", 1),
    "uint64": ("U64", 8),
    "uint32": ("U32", 4),
    "uint16": ("U16", 2),
    "uint8": ("U8", 1),
    "bool": ("BOOL", 1),
}
_STORED = {stored: (name, size) for name, (stored, size) in _DTYPES.items()}


@dataclass(frozen=True)
class Entry:
    """Where a tensor lies: bytes `begin` to `end` of the file's data section."""

    spec: TensorSpec
    begin: int
    end: int


@dataclass(frozen=True)
class Header:
    """A checked header. `size` is the data section's size in bytes."""

    entries: Mapping[str, Entry]
    metadata: Mapping[str, str]
    size: int


def stored_bytes(spec: TensorSpec) -> int:
    """How many bytes the data of a dense tensor takes in a safetensors file."""
    return spec.size * _DTYPES[spec.dtype][1]


def encode_header(specs: Mapping[str, TensorSpec], metadata: Mapping[str, str]) -> tuple[bytes, Header]:
    """The bytes before the data section, and what they say; the same for the same arguments, always.

    Tensors lie in the order of `specs`, wider elements first, so that every one is aligned; metadata keys
    are sorted; the header is padded with spaces to a multiple of 8 bytes.
    """
    entries: dict[str, Entry] = {}
    place = 0
    for name in sorted(specs, key=lambda name: -_DTYPES[specs[name].dtype][1]):
        end = place + stored_bytes(specs[name])
        entries[name] = Entry(specs[name], place, end)
        place = end
    described: dict[str, Any] = {_METADATA: dict(sorted(metadata.items()))} if metadata else {}
    for name, entry in entries.items():
        described[name] = {
            "dtype": _DTYPES[entry.spec.dtype][0],
            "shape": list(entry.spec.shape),
            "data_offsets": [entry.begin, entry.end],
        }
    text = json.dumps(described, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(LENGTH_BYTES, "little") + text, Header(entries, metadata, place)


def parse_header(text: bytes, size: int, where: object) -> Header:
    """Check the JSON `text` of the header of the file `where`, whose data section has `size` bytes.

    Raises InputError naming the file, the tensor and the rule it breaks.
    """
    if not text.startswith(b"{"):
        raise InputError(f"{where} is not a safetensors file: its header is not a JSON object")
    if text.count(b",") > _MAX_COMMAS:
        raise InputError(f"{where}: the header holds more than {_MAX_TENSORS:,} tensors can need")
    described = parse_json(text, f"the header of {where}")
    metadata = described.pop(_METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise InputError(f"{where}: {_METADATA} is not a map of strings")
    if len(described) > _MAX_TENSORS:
        raise InputError(f"{where} has {len(described):,} tensors; at most {_MAX_TENSORS:,} are accepted")
    entries = {name: _entry(name, value, where) for name, value in described.items()}
    _check_cover(entries, size, where)
    return Header(entries, metadata, size)


def _entry(name: str, value: Any, where: object) -> Entry:
    label = f"{where}: tensor {name[:200]!r}"
    if not name or any(unicodedata.category(character).startswith("C") for character in name):
        raise InputError(f"{label} has a name that is empty or holds control characters")
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise InputError(f"{label} is not described by exactly dtype, shape and data_offsets")
    if not isinstance(value["dtype"], str) or value["dtype"] not in _STORED:
        raise InputError(f"{label} has the unknown dtype {str(value['dtype'])[:40]!r}")
    shape, offsets = _counts(value["shape"], label), _counts(value["data_offsets"], label)
    if len(shape) > _MAX_RANK:
        raise InputError(f"{label} has {len(shape)} dimensions; at most {_MAX_RANK} are accepted")
    if len(offsets) != 2:
        raise InputError(f"{label} has {len(offsets)} data_offsets instead of 2")
    spec = TensorSpec(shape, _STORED[value["dtype"]][0])
    # Extents of zero are left out, or [0, 2^62] would pass as a tensor of no bytes.
    if TensorSpec(tuple(extent for extent in shape if extent), spec.dtype).size > _MAX_ELEMENTS:
        raise InputError(f"{label} has a shape of more than 2^48 elements")
    if offsets[1] - offsets[0] != stored_bytes(spec):
        raise InputError(
            f"{label} of shape {list(shape)} and dtype {value['dtype']} needs {stored_bytes(spec):,} bytes, "
            f"but its data_offsets hold {offsets[1] - offsets[0]:,}"
        )
    return Entry(spec, offsets[0], offsets[1])


def _counts(values: Any, label: str) -> tuple[int, ...]:
    if not isinstance(values, list) or not all(type(value) is int and value >= 0 for value in values):
        raise InputError(f"{label} has a shape or data_offsets that are not lists of whole numbers")
    return tuple(values)


def _check_cover(entries: Mapping[str, Entry], size: int, where: object) -> None:
    """The tensors must cover the data section exactly, each byte once."""
    place = 0
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin != place:
            fault = "overlaps another tensor" if entry.begin < place else "leaves a hole before it"
            raise InputError(f"{where}: tensor {name!r} at byte {entry.begin:,} {fault}")
        place = entry.end
    if place != size:
        fault = "it is truncated" if place > size else "bytes follow that belong to no tensor"
        raise InputError(f"{where} holds {size:,} bytes of data, its header describes {place:,}: {fault}")
