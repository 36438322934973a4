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
import torch
from torch import Tensor

_SUFFIXES = (".weight", ".bias")
_ROTATED = re.compile(r"attn_([qk])\.(weight|bias)$")


def read_with_library(path: Path) -> Callable[[str], Tensor]:
    """Tensors by Hugging Face name, fp32; KeyError for other names."""
    reader = gguf.GGUFReader(path)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    family = str(fields["general.architecture"])
    kind = next(kind for kind, name in gguf.MODEL_ARCH_NAMES.items() if name == family)
    names = gguf.get_tensor_name_map(kind, int(fields[f"{family}.block_count"]))

    def read(name: str) -> Tensor:
        stored = names.get_name(name, try_suffixes=_SUFFIXES) or name
        if stored == "output.weight" and stored not in tensors:
            stored = "token_embd.weight"
        tensor = tensors[stored]
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        shape = [int(extent) for extent in reversed(tensor.shape)]
        return _rows(family, stored, torch.from_numpy(values.copy()).float().reshape(shape), fields)

    return read


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
