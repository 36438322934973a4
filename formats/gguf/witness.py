"""gguf-py's own reading of a GGUF file, under Hugging Face's names: the independent judge of what we wrote.

It shares nothing with our reader: the library parses the file, decodes the blocks and knows the names; the
row orders are undone as transformers does it (`modeling_gguf_pytorch_utils.py`). For our own files only: the
library hangs on crafted ones.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Callable, Mapping
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
_EXPERT = re.compile(r"experts\.(\d+)\.")
_NUMBER = re.compile(r"\.(\d+)\.")
_LAYERED = re.compile(r"^.*layers\.\d+\.")
_BIAS = re.compile(r"_bias$")
_OTHERWISE = re.compile(r"block_sparse_moe\.experts\.down_proj")
_PART = re.compile(r"-\d{5}-of-\d{5}$")
_NEVER = re.compile(r"(?!)")
# Tensors of gate and up together: what the two end in, and whether their rows alternate.
_HALVES = {
    "granitemoe": {
        "block_sparse_moe.input_linear.weight": ("weight", False),
        "block_sparse_moe.experts.gate_up_proj.weight": ("weight", False),
    },
    "llama4": {
        "feed_forward.experts.gate_up_proj": ("weight", False),
        "feed_forward.experts.gate_up_proj.weight": ("weight", False),
    },
    "gpt-oss": {
        "mlp.experts.gate_up_proj": ("weight", True),
        "mlp.experts.gate_up_proj_bias": ("bias", True),
        "mlp.experts.gate_up_proj.weight": ("weight", True),
        "mlp.experts.gate_up_proj.bias": ("bias", True),
    },
}
_TRANSPOSED = {
    "gpt2": re.compile(r"(c_attn|c_proj|c_fc)\.weight$"),
    "gpt-oss": re.compile(r"experts\.(gate_up|down)_proj$"),
    "llama4": re.compile(r"experts\.(gate_up|down)_proj$"),
}


def read_with_library(path: Path) -> Callable[[str], Tensor]:
    """Tensors by Hugging Face name, fp32; KeyError for other names."""
    part = _PART.search(path.stem)
    beside = f"{glob.escape(path.stem[: part.start()])}-*-of-*.gguf" if part else ""
    readers = [_Reader(each) for each in (sorted(path.parent.glob(beside)) if part else [path])]
    fields = {name: field.contents() for name, field in readers[0].fields.items() if not _is_array(field)}
    tensors = {tensor.name: tensor for reader in readers for tensor in reader.tensors}
    family = str(fields["general.architecture"])
    kind = next(kind for kind, name in gguf.MODEL_ARCH_NAMES.items() if name == family)
    names = gguf.get_tensor_name_map(kind, int(fields[f"{family}.block_count"]))

    def stored(name: str) -> Tensor:
        tensor = tensors[name]
        values = _values(tensor).reshape([int(extent) for extent in reversed(tensor.shape)])
        scale = tensors.get(name.replace(".weight", ".scale")) if tensor.tensor_type.name == "NVFP4" else None
        return values if scale is None else values * _values(scale).view(-1, *[1] * (values.ndim - 1))

    def read(name: str) -> Tensor:
        expert = _EXPERT.search(name)
        whole = name.replace(expert[0], "experts.") if expert else name
        if parts := _HALVES.get(family, {}).get(_LAYERED.sub("", whole)):
            block = f"blk.{_NUMBER.findall(name)[0]}."
            gate, up = (stored(f"{block}{stem}_exps.{parts[0]}") for stem in ("ffn_gate", "ffn_up"))
            found = torch.stack([gate, up], 2).flatten(1, 2) if parts[1] else torch.cat([gate, up], 1)
            return _cut(found, expert, _transposed(family, whole, tensors, f"{block}ffn_gate_exps.{parts[0]}"))
        known = _OTHERWISE.sub("block_sparse_moe.output_linear", _BIAS.sub(".bias", whole))
        gguf_name = names.get_name(known, try_suffixes=_SUFFIXES) or whole
        if gguf_name not in tensors and f"{gguf_name}.weight" in tensors:
            gguf_name += ".weight"
        if gguf_name == "output.weight" and gguf_name not in tensors:
            gguf_name = "token_embd.weight"
        values = _rows(family, gguf_name, stored(gguf_name), fields)
        return _cut(values, expert, _transposed(family, whole, tensors, gguf_name))

    return read


def _transposed(family: str, name: str, tensors: Mapping[str, gguf.ReaderTensor], stored: str) -> bool:
    """Whether Hugging Face has the tensor as [in, out], which it has only where it is not quantized."""
    dense = tensors[stored].tensor_type.name in ("F32", "F16", "BF16")
    return dense and bool(_TRANSPOSED.get(family, _NEVER).search(name))


def _cut(values: Tensor, expert: re.Match[str] | None, transposed: bool) -> Tensor:
    values = values[int(expert[1])] if expert else values
    return values.mT if transposed else values


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
    if family in ("llama", "smollm3", "granite", "granitemoe") and rotated:
        if rotated[1] == "k":
            heads = int(fields[f"{family}.attention.head_count_kv"])
        return values.reshape(heads, len(values) // heads // 2, 2, -1).transpose(1, 2).reshape(values.shape)
    if family in ("gemma", "gemma2", "gemma3") and name.endswith("norm.weight"):
        return values - 1
    if family in ("gptneox", "falcon") and "attn_qkv" in name:
        groups = int(fields[f"{family}.attention.head_count_kv"])
        head = len(values) // (heads + 2 * groups)
        query, key, value = values.split([heads * head, groups * head, groups * head])
        parts = [part.reshape(groups, -1, *values.shape[1:]) for part in (query, key, value)]
        return torch.cat(parts, 1).reshape(values.shape)
    if "ffn_gate_inp_shexp" in name:
        return values.unsqueeze(0)
    return values
