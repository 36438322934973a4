"""GGUF files: a lazy reader and a writer whose sizes are known before it starts."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from torch import Tensor

from compress.formats.base import Progress
from compress.formats.errors import InputError
from compress.formats.files.finite import check_finite
from compress.formats.files.storage import RegularFile, atomic_write
from compress.formats.gguf.blocks.base import BlockType
from compress.formats.gguf.header import TensorInfo, Value, alignment_of, encode_header, lay_out, padded
from compress.formats.gguf.parse import read_header
from compress.kernels.qtensor import QTensor

NewTensor = tuple[str, tuple[int, ...], BlockType]  # name, torch shape, type
Buffer = bytes | bytearray | memoryview
Fill = Callable[[str], Buffer | Iterable[Buffer]]


SUFFIX = ".gguf"
_TYPED = re.compile(r"(?P<name>.+?)[-._](I?Q\d\w*|B?F16|F32|TQ\d\w*|MXFP4\w*|NVFP4)", re.ASCII | re.IGNORECASE)
_PART = re.compile(r"-\d{5}-of-\d{5}$", re.ASCII)
_UNNAMED = ("model", "ggml-model")


def gguf_file(path: Path) -> Path | None:
    """The file that may be a model at `path`: itself, or the only `.gguf` of a directory without safetensors.

    Where a model is in parts, the first.
    """
    if not path.is_dir():
        return path
    found = [] if any(path.glob("*.safetensors")) else sorted(path.glob(f"*{SUFFIX}"))
    models = {_PART.sub("", each.stem) for each in found}
    return found[0] if len(models) == 1 else None


def model_name(stem: str) -> str:
    """What a file of this name is named after: that without the type of its weights; "" if that says nothing."""
    match = _TYPED.fullmatch(stem)
    name = match["name"] if match else stem
    return "" if name in _UNNAMED else name


class GGUFFile:
    """The header of a file and, on demand, its tensors. Keeps no file open between reads.

    Raises InputError for whatever is not a well-formed GGUF file (see gguf_parse).
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with RegularFile(path) as file:
            self.header = read_header(file)
            self.nbytes = file.size
            self._identity = file.identity

    def read_raw(self, name: str, index: int | None = None) -> bytearray:
        """The bytes of one tensor, or of its slice `index` along the first axis.

        Raises InputError if the file changed since it was opened.
        """
        info = self.header.tensors[name]
        size = info.nbytes if index is None else info.nbytes // info.shape[0]
        with RegularFile(self.path) as file:
            if file.identity != self._identity:
                raise InputError(f"{self.path} changed while it was in use", "start again with a file at rest")
            raw = bytearray(size)
            file.read_at(self.header.data_offset + info.offset + (index or 0) * size, raw)
        return raw

    def read(self, name: str, index: int | None = None) -> Tensor | QTensor:
        """One tensor, or its slice `index`, in torch's shape. Raises InputError also if it holds NaN or Inf."""
        info = self.header.tensors[name]
        raw = self.read_raw(name, index)
        try:
            tensor = info.type.decode(raw, info.shape if index is None else info.shape[1:])
        except InputError as error:
            raise InputError(f"{self.path}: {name}: {error}", error.hint) from error
        check_finite(f"{self.path}: {name}", tensor)
        return tensor


def file_size(metadata: Mapping[str, Value], tensors: Sequence[NewTensor]) -> int:
    """Bytes of the file that `write_gguf` makes of the same arguments."""
    infos = lay_out(tensors, alignment_of(metadata))
    return len(encode_header(metadata, infos)) + _data_size(infos, metadata)


def write_gguf(
    path: Path,
    metadata: Mapping[str, Value],
    tensors: Sequence[NewTensor],
    fill: Fill,
    progress: Progress = lambda name: None,
) -> None:
    """Write a file, tensor by tensor in the order given; it stands under `path` when it is whole.

    `fill(name)` gives the bytes of a tensor, whole or piece by piece, `progress(name)` hears of it first. The same
    arguments make the same bytes. Raises RefusedError and InputError for what GGUF cannot hold, StorageError when the
    disk fails.
    """
    infos = lay_out(tensors, alignment_of(metadata))
    header = encode_header(metadata, infos)
    with atomic_write(path, len(header) + _data_size(infos, metadata)) as file:
        file.write(header)
        for info in infos:
            progress(info.name)
            given = 0
            filling = fill(info.name)
            for piece in (filling,) if isinstance(filling, Buffer) else filling:
                data = memoryview(piece).cast("B")
                # What lies between tensors stays zero, as preallocation left it.
                file.write_at(data, len(header) + info.offset + given)
                given += data.nbytes
            if given != info.nbytes:
                raise ValueError(f"tensor {info.name} takes {info.nbytes:,} bytes, {given:,} were given")


def _data_size(infos: Sequence[TensorInfo], metadata: Mapping[str, Value]) -> int:
    return padded(infos[-1].offset + infos[-1].nbytes, alignment_of(metadata)) if infos else 0
