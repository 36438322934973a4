"""Tensor types that hold a number format of their own, code for code and parameter for parameter."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from compress.formats.base import TensorSpec
from compress.formats.errors import InputError, RefusedError
from compress.formats.files.finite import finite
from compress.formats.gguf.blocks.base import BlockType, bytes_of, view_of
from compress.formats.gguf.blocks.planes import Fields
from compress.kernels.qtensor import NumberFormat, QTensor

_CHUNK = 1 << 20  # weights packed at a time


@dataclass(frozen=True)
class FormatType(BlockType):
    """Blocks of `format`: `split` takes their bytes [blocks, size] apart into `codes` [blocks, block] uint8 and the
    format's parameters, [blocks, n] each; `join` is its inverse. The parameter `beside`, if there is one, is the same
    in all rows, and no part of the blocks: those of a file are read as if it were 1.
    """

    format: NumberFormat
    split: Callable[[Tensor], Fields]
    join: Callable[[Fields], Tensor]
    beside: str = ""

    @property
    def writable(self) -> bool:
        return True

    def spec(self, shape: tuple[int, ...]) -> TensorSpec:
        return TensorSpec(shape, "float32", self.format if len(shape) == 2 else None)

    def decode(self, raw: bytes | bytearray, shape: tuple[int, ...]) -> Tensor | QTensor:
        """A QTensor if the shape is a matrix's, else fp32 values."""
        fields = self.split(bytes_of(raw).view(-1, self.size))
        rows = prod(shape[:-1])
        codes = fields.pop("codes").reshape(rows, shape[-1])
        params = {name: value.reshape(rows, -1) for name, value in fields.items()}
        if self.beside:
            params[self.beside] = torch.ones(rows, 1)
        tensor = QTensor(self.format, codes, params)
        return tensor if len(shape) == 2 else tensor.dequantize().view(shape)

    def encode(self, weight: Tensor) -> memoryview:
        """As BlockType.encode: the least squared error that the format's search finds."""
        return self.pack(self.rounded(weight))

    def rounded(self, weight: Tensor) -> QTensor:
        """What `encode` packs of `weight` [..., columns]: a matrix. Raises as it does."""
        rows = weight.to("cpu", torch.float32).reshape(-1, weight.shape[-1])
        try:
            return self.format.search(rows, torch.ones(rows.shape[1]))
        except ValueError as error:
            if not finite(weight):
                raise InputError("the weight holds NaN or Inf") from error
            largest = f"{self.name} cannot hold weights as large as {weight.abs().max().item():.4g}"
            raise RefusedError(largest, "bf16 and f32 reach further") from error

    def pack(self, tensor: QTensor) -> memoryview:
        if not self.holds(tensor.format):
            return super().pack(tensor)
        if reason := self.misfit(tensor.shape):
            raise RefusedError(reason, "pick a type whose blocks divide the rows, as f16")
        blocks = tensor.codes.numel() // self.block
        inside = {name: value for name, value in tensor.params.items() if name != self.beside}
        fields = {name: value.cpu().reshape(blocks, -1) for name, value in {"codes": tensor.codes, **inside}.items()}
        raw = torch.empty(blocks, self.size, dtype=torch.uint8)
        step = _CHUNK // self.block
        for start in range(0, blocks, step):
            here = slice(start, start + step)
            raw[here] = self.join({name: value[here] for name, value in fields.items()})
        return view_of(raw)

    def holds(self, number_format: NumberFormat) -> bool:
        return number_format == self.format
