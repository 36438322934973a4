"""What a tensor type of GGML is: how many bytes a tensor takes, and bytes to values and back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from compress.formats.base import TensorSpec
from compress.formats.errors import InputError, RefusedError
from compress.formats.files.finite import finite
from compress.kernels.qtensor import NumberFormat, QTensor


@dataclass(frozen=True)
class BlockType(ABC):
    """One tensor type: `block` weights, neighbours in a row, take `size` bytes. Shapes are [..., columns]."""

    id: int
    name: str
    block: int
    size: int

    @property
    def writable(self) -> bool:
        """Whether `encode` works."""
        return False

    def misfit(self, shape: tuple[int, ...]) -> str | None:
        """Why a tensor of this shape cannot have this type, or None if it can."""
        if shape and shape[-1] % self.block == 0:
            return None
        return f"rows of shape {list(shape)} do not divide into {self.name} blocks of {self.block}"

    def nbytes(self, shape: tuple[int, ...]) -> int:
        """Bytes of a tensor of this shape; the shape fits."""
        return prod(shape) // self.block * self.size

    def holds(self, number_format: NumberFormat) -> bool:
        """Whether every tensor of that number format whose rows divide into blocks can be packed exactly."""
        return False

    @abstractmethod
    def spec(self, shape: tuple[int, ...]) -> TensorSpec:
        """What `decode` will return for this shape."""

    @abstractmethod
    def decode(self, raw: bytes | bytearray, shape: tuple[int, ...]) -> Tensor | QTensor:
        """The values of `raw`, nbytes(shape) bytes. A bytearray may become the tensor's memory."""

    def encode(self, weight: Tensor) -> memoryview:
        """`weight` [..., columns] fp32, rounded to nearest, as nbytes(shape) bytes.

        Raises RefusedError for a type that cannot be written and for weights beyond its range, InputError
        for NaN and Inf.
        """
        raise RefusedError(f"{self.name} tensors can be read but not written", "choose another type, as q4_k or q8_0")

    def pack(self, tensor: QTensor) -> memoryview:
        """The very values of `tensor` [rows, columns] as nbytes(shape) bytes.

        Raises RefusedError unless the type holds the tensor's number format and shape.
        """
        raise RefusedError(
            f"{self.name} cannot hold {tensor.format.name} exactly", "pick a type that does, or requantize"
        )


def bytes_of(raw: bytes | bytearray) -> Tensor:
    """uint8, flat; a bytearray becomes the tensor's memory."""
    # torch warns about memory that it must not write to.
    return torch.frombuffer(raw if isinstance(raw, bytearray) else bytearray(raw), dtype=torch.uint8)


def view_of(tensor: Tensor) -> memoryview:
    """The bytes of a tensor that lies in one piece."""
    return memoryview(tensor.view(-1).view(torch.uint8).numpy().data)


def check_range(stored: Tensor, source: Tensor, name: str) -> None:
    """Raise InputError if `source` holds NaN or Inf, RefusedError if `stored`, what a type makes of it, does."""
    if finite(stored):
        return
    if not finite(source):
        raise InputError("the weight holds NaN or Inf")
    raise RefusedError(
        f"{name} cannot hold weights as large as {source.abs().max().item():.4g}",
        "bf16 and f32 reach further",
    )
