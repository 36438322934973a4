"""The weights of a Hugging Face directory: `model.safetensors`, or shards and `model.safetensors.index.json`.

The index maps every tensor's name to a shard. Shard names from an index are names, never paths: transformers
5.23 opens whatever path stands there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from compress.formats.base import FileLayout, TensorSpec
from compress.formats.errors import InputError
from compress.formats.files.safetensors.file import Fill, SafetensorsFile, file_bytes, write_file
from compress.formats.files.safetensors.header import stored_bytes
from compress.formats.files.storage import encode_json, parse_json, read_bytes, write_bytes

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
DEFAULT_SHARD_SIZE = 5_000_000_000

Shards = Mapping[str, Mapping[str, TensorSpec]]  # file name → its tensors

_SHARD_NAME = re.compile(r"[\w.-]+\.safetensors", re.ASCII)
_MAX_INDEX = 64 << 20
_MAX_SHARDS = 10_000
_METADATA = {"format": "pt"}  # transformers refuses files without it


class Weights:
    """Every tensor of a directory. Raises InputError unless index and shards say exactly the same."""

    def __init__(self, directory: Path) -> None:
        files = _open_files(directory)
        self._homes = {name: file for file in files for name in file.specs}
        self.specs = {name: file.specs[name] for name, file in self._homes.items()}
        self.nbytes = sum(file.nbytes for file in files)

    def read(self, name: str) -> Tensor:
        """One tensor. Raises InputError if its file was truncated or holds NaN or Inf."""
        return self._homes[name].read(name)


def _open_files(directory: Path) -> list[SafetensorsFile]:
    """The order of preference is transformers': one file, else the index, else any file that stands alone."""
    if (directory / SINGLE).exists():
        return [SafetensorsFile(directory / SINGLE)]
    if (directory / INDEX).exists():
        return _open_shards(directory)
    found = sorted(directory.glob("*.safetensors"))
    if len(found) == 1:
        return [SafetensorsFile(found[0])]
    raise InputError(
        f"{directory} has {len(found)} .safetensors files and neither {SINGLE} nor {INDEX}",
        "save the model again with transformers: model.save_pretrained(DIR)",
    )


def _open_shards(directory: Path) -> list[SafetensorsFile]:
    where = directory / INDEX
    index = parse_json(read_bytes(where, _MAX_INDEX), where)
    homes: Any = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(homes, dict) or not all(isinstance(home, str) for home in homes.values()):
        raise InputError(f"{where} has no weight_map from tensor names to file names")
    shards = sorted(set(homes.values()))
    if len(shards) > _MAX_SHARDS:
        raise InputError(f"{where} names {len(shards):,} files; at most {_MAX_SHARDS:,} are accepted")
    for shard in shards:
        if not _SHARD_NAME.fullmatch(shard):
            raise InputError(f"{where} names {shard[:200]!r}, which is not the name of a .safetensors file")
    files = [SafetensorsFile(directory / shard) for shard in shards]
    held = {(name, file.path.name) for file in files for name in file.specs}
    if held != set(homes.items()):
        name, shard = min(held ^ set(homes.items()))
        fault = "holds it unlisted" if (name, shard) in held else "does not hold it"
        raise InputError(f"{where} and its shards disagree on tensor {name!r}: {shard} {fault}")
    return files


def plan_shards(specs: Mapping[str, TensorSpec], max_shard_size: int) -> Shards:
    """Which file holds which tensor: by name, layer 2 before layer 10, whatever the order of `specs`.

    One file if the data fits `max_shard_size` bytes; a tensor larger than that gets a shard of its own.
    """
    groups: list[dict[str, TensorSpec]] = [{}]
    filled = 0
    for name in sorted(specs, key=_natural):
        spec = specs[name]
        nbytes = stored_bytes(spec)
        if groups[-1] and filled + nbytes > max_shard_size:
            groups.append({})
            filled = 0
        groups[-1][name] = spec
        filled += nbytes
    if len(groups) == 1:
        return {SINGLE: groups[0]}
    return {f"model-{number:05}-of-{len(groups):05}.safetensors": group for number, group in enumerate(groups, start=1)}


def _natural(name: str) -> str:
    return re.sub("[0-9]+", lambda digits: digits[0].zfill(8), name)


def planned_files(shards: Shards) -> tuple[FileLayout, ...]:
    """The exact sizes of the files that `write_shards` writes."""
    files = [FileLayout(name, file_bytes(specs, _METADATA)) for name, specs in shards.items()]
    if len(files) > 1:
        files.append(FileLayout(INDEX, len(_index(shards))))
    return tuple(files)


def write_shards(directory: Path, shards: Shards, fill: Fill) -> None:
    """Write the planned files, the index last. Raises StorageError."""
    for name, specs in shards.items():
        write_file(directory / name, specs, _METADATA, fill)
    if len(shards) > 1:
        write_bytes(directory / INDEX, _index(shards))


def _index(shards: Shards) -> bytes:
    total = sum(stored_bytes(spec) for specs in shards.values() for spec in specs.values())
    homes = {name: file for file, specs in shards.items() for name in specs}
    return encode_json({"metadata": {"total_size": total}, "weight_map": dict(sorted(homes.items()))})
