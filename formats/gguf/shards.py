"""A model in several GGUF files, `NAME-00001-of-0000N.gguf`: the first has the metadata, each a part of the tensors.

Each says which it is, of how many, and how many tensors there are in all (gguf-py, `gguf/constants.py`, Keys.Split;
llama.cpp, `src/llama-model-loader.cpp`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from compress.formats.errors import InputError, RefusedError
from compress.formats.gguf.file import SUFFIX, GGUFFile, NewTensor
from compress.formats.gguf.header import TensorInfo, Value, ValueType
from compress.formats.gguf.metadata import Metadata
from compress.kernels.qtensor import QTensor

_PART = re.compile(r"(?P<name>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})", re.ASCII)
_NUMBER, _COUNT, _TENSORS = "split.no", "split.count", "split.tensors.count"
_MOST = 1 << 12


def part_names(stem: str, count: int) -> list[str]:
    """The names of `count` files."""
    return [f"{stem}-{number:05}-of-{count:05}{SUFFIX}" for number in range(1, count + 1)]


def whole_stem(path: Path) -> str:
    """The name without its suffix and without which part it is."""
    match = _PART.fullmatch(path.stem)
    return match["name"] if match else path.stem


def parts_beside(path: Path) -> list[Path]:
    """All files of the model that `path` is a part of, as its name says; itself, if it says nothing."""
    match = _PART.fullmatch(path.stem)
    if match is None or not 1 <= int(match["number"]) <= int(match["count"]) <= _MOST:
        return [path]
    return [path.with_name(name) for name in part_names(match["name"], int(match["count"]))]


class Parts:
    """The files of one model as one. `metadata` and `tensors` are those of all.

    Raises InputError, naming the file, for a part that is missing, of another model or damaged.
    """

    def __init__(self, path: Path) -> None:
        paths = parts_beside(path)
        for part in paths:
            if not part.is_file():
                raise InputError(f"{path} is one of {len(paths)} parts, and {part.name} is not beside it", "fetch it")
        self._files = [GGUFFile(part) for part in paths]
        self.metadata: Mapping[str, Value] = self._files[0].header.metadata
        self._homes: dict[str, GGUFFile] = {}
        for number, file in enumerate(self._files):
            _check(file, number, len(paths))
            if twice := self._homes.keys() & file.header.tensors.keys():
                raise InputError(f"{file.path}: the tensor {min(twice)} is in another part, too", "the file is damaged")
            self._homes |= dict.fromkeys(file.header.tensors, file)
        self.tensors: Mapping[str, TensorInfo] = {
            name: info for file in self._files for name, info in file.header.tensors.items()
        }
        said = Metadata(self.metadata).integer(_TENSORS, 0, 1 << 31)
        if len(paths) > 1 and said != len(self.tensors):
            raise InputError(f"{path}: {_TENSORS} is {said}, and the parts hold {len(self.tensors)}", "fetch them anew")
        self.nbytes = sum(file.nbytes for file in self._files)

    def read(self, name: str, index: int | None = None) -> Tensor | QTensor:
        """As GGUFFile.read."""
        return self._homes[name].read(name, index)


def _check(file: GGUFFile, number: int, count: int) -> None:
    metadata = Metadata(file.header.metadata)
    said = metadata.integer(_COUNT, 0, 1 << 16) or 1
    if said != count:
        raise InputError(
            f"{file.path} is one of {said} parts, which its name does not say",
            "name the parts NAME-00001-of-0000N.gguf, or join them: llama-gguf-split --merge",
        )
    if count > 1 and metadata.integer(_NUMBER, 0, 1 << 16) != number:
        raise InputError(f"{file.path}: {_NUMBER} is not {number}: another part under this name", "name it as it was")


def split(tensors: Sequence[NewTensor], largest: int) -> list[list[NewTensor]]:
    """The tensors of each file, in order, with at most `largest` bytes of them in one; a larger tensor has its own.

    Raises RefusedError for more files than are read.
    """
    parts: list[list[NewTensor]] = [[]]
    filled = 0
    for tensor in tensors:
        nbytes = tensor[2].nbytes(tensor[1])
        if parts[-1] and filled + nbytes > largest:
            parts.append([])
            filled = 0
        parts[-1].append(tensor)
        filled += nbytes
    if len(parts) > _MOST:
        raise RefusedError(
            f"max_shard_size {largest:,} makes {len(parts):,} parts; at most {_MOST:,} are read", "raise it"
        )
    return parts


def part_metadata(whole: Mapping[str, Value], number: int, parts: Sequence[Sequence[NewTensor]]) -> dict[str, Value]:
    """The metadata of one file: the first has all of them. Widths are those that llama.cpp asks for."""
    if len(parts) == 1:
        return dict(whole)
    return {
        **(whole if number == 0 else {}),
        _NUMBER: Value(ValueType.UINT16, number),
        _COUNT: Value(ValueType.UINT16, len(parts)),
        _TENSORS: Value(ValueType.INT32, sum(map(len, parts))),
    }
