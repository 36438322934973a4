"""gguf-py's own reading of a GGUF file, under Hugging Face's names: the independent judge of what we wrote.

It shares nothing with our reader: the library parses the file, decodes the blocks and knows the names; the
row orders are undone as transformers does it (`modeling_gguf_pytorch_utils.py`). For our own files only: the
library hangs on crafted ones.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_SUFFIXES = (".weight", ".bias")
_ROWS = 1024
_ROTATED = re.compile(r"attn_([qk])\.(weight|bias)$")


def read_with_library(path: Path) -> Callable[[str], Tensor]:
    """Tensors by Hugging Face name, fp32; KeyError for other names."""
    reader = _Reader(path)
    fields = {name: field.contents() for name, field in reader.fields.items() if not _is_array(field)}
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    family = str(fields["general.architecture"])
    kind = next(kind for kind, name in gguf.MODEL_ARCH_NAMES.items() if name == family)
    names = gguf.get_tensor_name_map(kind, int(fields[f"{family}.block_count"]))

    def read(name: str) -> Tensor:
        stored = names.get_name(name, try_suffixes=_SUFFIXES) or name
        if stored == "output.weight" and stored not in tensors:
            stored = "token_embd.weight"
        tensor = tensors[stored]
        shape = [int(extent) for extent in reversed(tensor.shape)]
        return _rows(family, stored, _values(tensor).reshape(shape), fields)

    return read


class _Reader(gguf.GGUFReader):  # type: ignore[misc]  # gguf has no types
    """The library's reader, which steps over arrays: they are the tokenizer's, and it takes seconds to list them.

    It slices `data` for whatever it reads; a slice of a plain array takes a third of the time of one of a memmap.
    """

    @property
    def data(self) -> NDArray[np.uint8]:
        return self._plain

    @data.setter
    def data(self, mapped: NDArray[np.uint8]) -> None:
        self._plain = np.asarray(mapped)

    def _get_field_parts(self, orig_offs: int, raw_type: int) -> tuple[int, list[Any], list[int], list[Any]]:
        if raw_type != gguf.GGUFValueType.ARRAY:
            return super()._get_field_parts(orig_offs, raw_type)  # type: ignore[no-any-return]
        kind, count = (
            gguf.GGUFValueType(self._get(orig_offs, np.uint32)[0]),
            int(self._get(orig_offs + 4, np.uint64)[0]),
        )
        end = orig_offs + 12
        if kind == gguf.GGUFValueType.STRING:
            for _ in range(count):
                end += 8 + int.from_bytes(self.data[end : end + 8].data, "little")
        else:
            end += count * np.dtype(self.gguf_scalar_to_np[kind]).itemsize
        return end - orig_offs, [], [], [gguf.GGUFValueType.ARRAY]


def _is_array(field: gguf.ReaderField) -> bool:
    return bool(field.types[:1] == [gguf.GGUFValueType.ARRAY])


def _values(tensor: gguf.ReaderTensor) -> Tensor:
    """The values as the library decodes them: some rows at a time, or it allocates much; not sixteen, as by itself."""
    rows = tensor.data.reshape(-1, tensor.data.shape[-1])
    kind = getattr(gguf.quants, tensor.tensor_type.name, None)
    if kind is None:  # F32, F16
        return torch.from_numpy(gguf.quants.dequantize(rows, tensor.tensor_type).copy()).float()
    parts = [kind.dequantize_rows(rows[start : start + _ROWS]) for start in range(0, len(rows), _ROWS)]
    return torch.from_numpy(np.concatenate(parts))


def _rows(family: str, name: str, values: Tensor, fields: dict[str, Any]) -> Tensor:
    """`values` in Hugging Face's row order."""
    heads = int(fields[f"{family}.attention.head_count"])
    rotated = _ROTATED.search(name)
    if family in ("llama", "smollm3") and rotated:
        if rotated[1] == "k":
            heads = int(fields[f"{family}.attention.head_count_kv"])
        return values.reshape(heads, len(values) // heads // 2, 2, -1).transpose(1, 2).reshape(values.shape)
    if family == "gemma" and name.endswith("norm.weight"):
        return values - 1
    if family == "gptneox" and "attn_qkv" in name:
        return values.reshape(3, heads, len(values) // heads // 3, -1).transpose(0, 1).reshape(values.shape)
    return values
