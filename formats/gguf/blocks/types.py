"""The tensor types of GGML: how many bytes a tensor takes, and bytes to values and back.

Three families. Dense types are torch dtypes under another name. The integer blocks Q4_0, Q4_1, Q5_0, Q5_1
and Q8_0 decode to QTensors and are packed from them without loss. All others that gguf-py can decode (K, I,
ternary, MX and NV blocks) are decoded by it to fp32 and cannot be written.
Source of ids and sizes: `ggml.h`, as gguf-py's constants repeat it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod

import gguf
import numpy as np
import torch
from gguf.quants import dequantize
from torch import Tensor

from compress.formats.base import TensorSpec, dtype_name
from compress.formats.errors import InputError, RefusedError
from compress.formats.files.finite import finite
from compress.formats.gguf.blocks import integers
from compress.formats.views.casting import half_scales, scale_misfit
from compress.kernels.numbers.int import IntFormat
from compress.kernels.qtensor import NumberFormat, QTensor

_CHUNK = 1 << 18  # weights worked on at a time: temporaries stay small and in the cache


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
        names = ", ".join(kind.name for kind in BLOCKS.values() if kind.writable)
        raise RefusedError(f"{self.name} tensors can be read but not written", f"types to write: {names}")

    def pack(self, tensor: QTensor) -> memoryview:
        """The very values of `tensor` [rows, columns] as nbytes(shape) bytes.

        Raises RefusedError unless the type holds the tensor's number format and shape.
        """
        raise RefusedError(
            f"{self.name} cannot hold {tensor.format.name} exactly", "pick a type that does, or requantize"
        )


@dataclass(frozen=True)
class DenseType(BlockType):
    """Plain numbers, little-endian: a torch dtype."""

    dtype: torch.dtype

    @property
    def writable(self) -> bool:
        return self.dtype.is_floating_point

    def spec(self, shape: tuple[int, ...]) -> TensorSpec:
        return TensorSpec(shape, dtype_name(self.dtype))

    def decode(self, raw: bytes | bytearray, shape: tuple[int, ...]) -> Tensor:
        return _tensor(raw).view(self.dtype).reshape(shape)

    def encode(self, weight: Tensor) -> memoryview:
        if not self.writable:
            return super().encode(weight)
        stored = weight.to("cpu", self.dtype).contiguous()
        _check_range(stored, weight, self.name)
        return _view(stored)


@dataclass(frozen=True)
class IntType(BlockType):
    """An integer grid in blocks of 32: see integers for the bytes."""

    format: IntFormat

    @property
    def writable(self) -> bool:
        return True

    def spec(self, shape: tuple[int, ...]) -> TensorSpec:
        return TensorSpec(shape, "float32", self.format if len(shape) == 2 else None)

    def decode(self, raw: bytes | bytearray, shape: tuple[int, ...]) -> Tensor | QTensor:
        """A QTensor if the shape is a matrix's, else fp32 values."""
        rows, columns = prod(shape[:-1]), shape[-1]
        blocks = integers.split(_tensor(raw).view(-1, self.size), self.format.bits, self.format.zero)
        params = {"scale": blocks.scale.view(rows, -1)}
        if blocks.minimum is not None:
            params["minimum"] = blocks.minimum.view(rows, -1)
        tensor = QTensor(self.format, blocks.codes.view(rows, columns), params)
        return tensor if len(shape) == 2 else tensor.dequantize().view(shape)

    def encode(self, weight: Tensor) -> memoryview:
        blocks = weight.to("cpu", torch.float32).reshape(-1, self.block)
        raw = torch.empty(len(blocks), self.size, dtype=torch.uint8)
        step = _CHUNK // self.block
        for part, out in zip(torch.split(blocks, step), torch.split(raw, step), strict=True):
            fitted = integers.fit(part, self.format.bits, self.format.zero)
            out.copy_(self._join(fitted, part))
        return _view(raw)

    def pack(self, tensor: QTensor) -> memoryview:
        number_format = tensor.format
        if not (isinstance(number_format, IntFormat) and self.holds(number_format)):
            return super().pack(tensor)
        reason = self.misfit(tensor.shape)
        if reason is not None:
            raise RefusedError(reason, "pick a type whose blocks divide the rows, as f16")
        codes = self._codes(tensor, number_format).reshape(-1, self.block)
        scale, minimum = (self._spread(tensor, name) for name in ("scale", "minimum"))
        assert scale is not None
        return _view(self._join(integers.Blocks(codes, scale, minimum), scale))

    def holds(self, number_format: NumberFormat) -> bool:
        """Any group that blocks divide, by repeating its scale; fewer bits, by shifting the codes.

        A whole zero point 1 … 2^b − 1 shifts the codes too: q − z takes b + 1 bits about a middle.
        """
        if not isinstance(number_format, IntFormat) or scale_misfit(number_format):
            return False
        whole = number_format.zero == "integer"
        return (
            (number_format.group_size == -1 or number_format.group_size % self.block == 0)
            and self.format.zero == ("middle" if whole else number_format.zero)
            and self.format.bits >= number_format.bits + whole
        )

    def _codes(self, tensor: QTensor, number_format: IntFormat) -> Tensor:
        """Codes on this type's own grid: [rows, groups, columns a group] uint8."""
        codes = tensor.codes.cpu().reshape(*tensor.params["scale"].shape, -1)
        if number_format.zero == "real":
            return codes
        zero = tensor.params.get("zero")
        origin = 1 << (number_format.bits - 1) if zero is None else zero.cpu().unsqueeze(-1)
        return codes - origin + (1 << (self.format.bits - 1))  # wraps at 256 and back

    def _spread(self, tensor: QTensor, name: str) -> Tensor | None:
        """A parameter of every block, [blocks] fp16; None if the format has no such parameter."""
        values = tensor.params.get(name)
        if values is None:
            return None
        halves = half_scales(self.name, values.cpu())
        return halves.repeat_interleave(tensor.shape[1] // self.block // values.shape[1], 1).view(-1)

    def _join(self, blocks: integers.Blocks, source: Tensor) -> Tensor:
        for values in (blocks.scale, blocks.minimum):
            if values is not None:
                _check_range(values, source, self.name)
        return integers.join(blocks, self.format.bits)


@dataclass(frozen=True)
class LibraryType(BlockType):
    """A block that gguf-py decodes, to fp32."""

    def spec(self, shape: tuple[int, ...]) -> TensorSpec:
        return TensorSpec(shape, "float32")

    def decode(self, raw: bytes | bytearray, shape: tuple[int, ...]) -> Tensor:
        blocks = np.frombuffer(raw, np.uint8).reshape(-1, self.size)
        values = torch.empty(len(blocks), self.block)
        step = _CHUNK // self.block
        # What overflows becomes Inf, which the reader refuses by name.
        with np.errstate(all="ignore"):
            for start, out in zip(range(0, len(blocks), step), torch.split(values, step), strict=True):
                flat = blocks[start : start + step].reshape(1, -1)
                out.copy_(torch.from_numpy(dequantize(flat, gguf.GGMLQuantizationType(self.id))).view_as(out))
        return values.view(shape)


def type_of(number_format: NumberFormat) -> BlockType | None:
    """The smallest type that holds `number_format` exactly; None if none does."""
    fitting = [kind for kind in BLOCKS.values() if kind.holds(number_format)]
    return min(fitting, key=lambda kind: kind.size / kind.block, default=None)


def _tensor(raw: bytes | bytearray) -> Tensor:
    # torch warns about memory that it must not write to.
    return torch.frombuffer(raw if isinstance(raw, bytearray) else bytearray(raw), dtype=torch.uint8)


def _view(tensor: Tensor) -> memoryview:
    return memoryview(tensor.view(-1).view(torch.uint8).numpy().data)


def _check_range(stored: Tensor, source: Tensor, name: str) -> None:
    if finite(stored):
        return
    if not finite(source):
        raise InputError("the weight holds NaN or Inf")
    raise RefusedError(
        f"{name} cannot hold weights as large as {source.abs().max().item():.4g}",
        "bf16 and f32 reach further",
    )


def _dense(name: str, dtype: torch.dtype) -> DenseType:
    return DenseType(int(gguf.GGMLQuantizationType[name.upper()]), name, 1, dtype.itemsize, dtype)


def _integer(name: str, number_format: IntFormat) -> IntType:
    size = integers.block_bytes(number_format.bits, number_format.zero)
    return IntType(int(gguf.GGMLQuantizationType[name.upper()]), name, integers.GROUP, size, number_format)


def _library() -> Iterator[LibraryType]:
    """Every type that gguf-py decodes: it says so only when tried, on one block of zeros."""
    for kind, (block, size) in gguf.GGML_QUANT_SIZES.items():
        try:
            dequantize(np.zeros((1, size), np.uint8), kind)
        except NotImplementedError:
            continue
        yield LibraryType(int(kind), kind.name.lower(), block, size)


_OWN: tuple[BlockType, ...] = (
    _dense("f32", torch.float32),
    _dense("f16", torch.float16),
    _dense("bf16", torch.bfloat16),
    _dense("f64", torch.float64),
    _dense("i8", torch.int8),
    _dense("i16", torch.int16),
    _dense("i32", torch.int32),
    _dense("i64", torch.int64),
    _integer("q4_0", IntFormat(4, integers.GROUP, "middle")),
    _integer("q4_1", IntFormat(4, integers.GROUP, "real")),
    _integer("q5_0", IntFormat(5, integers.GROUP, "middle")),
    _integer("q5_1", IntFormat(5, integers.GROUP, "real")),
    _integer("q8_0", IntFormat(8, integers.GROUP, "middle")),
)

# By lower-case name. Our own types come last, so that they replace the library's.
BLOCKS: Mapping[str, BlockType] = {kind.name: kind for kind in (*_library(), *_OWN)}
BY_ID: Mapping[int, BlockType] = {kind.id: kind for kind in BLOCKS.values()}
