"""One quantized linear layer as bitsandbytes and transformers store it: `X.weight` [out, in] becomes several tensors.

Four bits (NF4, FP4), n = out·in weights in the order of the matrix, blocks of `blocksize`:

    X.weight                                 uint8    [n/2, 1]         two codes a byte, the first one high
    X.weight.absmax                          float32  [blocks]         or uint8, with double quantization
    X.weight.quant_map                       float32  [16]             the table
    X.weight.nested_absmax                   float32  [⌈blocks/256⌉]   with double quantization
    X.weight.nested_quant_map                float32  [256]            likewise
    X.weight.quant_state.bitsandbytes__nf4   uint8    [bytes]          JSON: blocksize, dtype, shape, nested offset

Eight bits (LLM.int8):

    X.weight         int8     [out, in]   q, of the value q·SCB/127
    X.SCB            float32  [out]
    X.weight_format  uint8    []          0: rows

Source: bitsandbytes 0.50.2, functional.py `QuantState.as_dict`, nn/modules.py `Linear8bitLt`.
"""

from __future__ import annotations

import json
import math
from typing import Any

import torch
from torch import Tensor

from compress.formats.base import TensorSpec
from compress.kernels.numbers.codebook import CodebookFormat
from compress.kernels.numbers.int import IntFormat
from compress.kernels.numbers.nested_scales import NESTED_BLOCK, dynamic_map
from compress.kernels.numbers.row_int8 import RowInt8Format
from compress.kernels.numbers.tables import codebook
from compress.kernels.qtensor import NumberFormat, QTensor

TABLES = ("nf4", "fp4")
BLOCK_SIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)
STATE = "quant_state.bitsandbytes__"
_LONGEST_FLOAT = 24  # characters of -1.2345678901234567e-308
_SYMMETRIC_ROWS = (IntFormat(8, -1), IntFormat(8, -1, scale_dtype="bfloat16"))
_CPU = torch.device("cpu")


def is_int8(number_format: NumberFormat | None) -> bool:
    """Whether LLM.int8 holds it: with one s a row, s·(q − 128) is (q − 128)·SCB/127 with SCB = 127·s.

    float32 holds SCB exactly (11 bits of a float16 or 8 of a bfloat16, and 7 of 127), and bitsandbytes takes it of
    either sign and all of −128 … 127, though its own quantizer makes less.
    """
    return isinstance(number_format, RowInt8Format) or number_format in _SYMMETRIC_ROWS


def parts_of(shape: tuple[int, ...], number_format: NumberFormat, dtype: str) -> dict[str, TensorSpec]:
    """What a weight is stored as: name below the layer's → spec. `dtype` is what it decodes to in the engine."""
    if not isinstance(number_format, CodebookFormat):
        return {
            "weight": TensorSpec(shape, "int8"),
            "SCB": TensorSpec(shape[:1], "float32"),
            "weight_format": TensorSpec((), "uint8"),
        }
    count = shape[0] * shape[1]
    blocks = count // number_format.block_size
    parts = {
        "weight": TensorSpec((count // 2, 1), "uint8"),
        "weight.absmax": TensorSpec((blocks,), "uint8" if number_format.double_quant else "float32"),
        "weight.quant_map": TensorSpec((16,), "float32"),
        f"weight.{STATE}{number_format.table}": TensorSpec((len(_state(shape, number_format, dtype, 0.0)),), "uint8"),
    }
    if number_format.double_quant:
        parts["weight.nested_absmax"] = TensorSpec((-(-blocks // NESTED_BLOCK),), "float32")
        parts["weight.nested_quant_map"] = TensorSpec((256,), "float32")
    return parts


def encode(tensor: QTensor, dtype: str) -> dict[str, Tensor]:
    """The tensors themselves, by the names of `parts_of`."""
    number_format, params = tensor.format, tensor.params
    if not isinstance(number_format, CodebookFormat):
        scale = params["scale"].float() * (127 if isinstance(number_format, IntFormat) else 1)
        return {
            "weight": (tensor.codes ^ 0x80).view(torch.int8),
            "SCB": scale.flatten(),
            "weight_format": torch.tensor(0, dtype=torch.uint8),
        }
    codes = tensor.codes.view(-1, 2)
    parts = {
        "weight": (codes[:, :1] << 4) | codes[:, 1:],
        "weight.absmax": params["scale"].flatten(),
        "weight.quant_map": codebook(number_format.table, _CPU).values,
    }
    offset = math.nan
    if number_format.double_quant:
        offset = float(params["offset"])
        parts["weight.nested_absmax"] = params["nested_scale"]
        parts["weight.nested_quant_map"] = dynamic_map(_CPU)
    state = _state(tensor.shape, number_format, dtype, offset)
    parts[f"weight.{STATE}{number_format.table}"] = torch.frombuffer(bytearray(state), dtype=torch.uint8)
    return parts


def _state(shape: tuple[int, ...], number_format: CodebookFormat, dtype: str, offset: float) -> bytes:
    """The JSON, as bitsandbytes spells it; spaces follow the offset, for its length must not depend on its value."""
    state: dict[str, Any] = {
        "quant_type": number_format.table,
        "blocksize": number_format.block_size,
        "dtype": dtype,
        "shape": list(shape),
    }
    if not number_format.double_quant:
        return json.dumps(state).encode()
    state |= {"nested_blocksize": NESTED_BLOCK, "nested_dtype": "float32"}
    longest = len(json.dumps(state | {"nested_offset": ""})) - len('""') + _LONGEST_FLOAT
    return json.dumps(state | {"nested_offset": offset}).ljust(longest).encode()


def unpack(packed: Tensor, shape: tuple[int, ...]) -> Tensor:
    """packed [n/2, 1] uint8 → codes [rows, columns] uint8, n = rows·columns."""
    return torch.cat([packed >> 4, packed & 0x0F], 1).view(shape)
