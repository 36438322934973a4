"""The tensor types of GGML: how many bytes a tensor takes, and bytes to values and back.

Four families. Dense types are torch dtypes under another name. The integer blocks Q4_0, Q4_1, Q5_0, Q5_1
and Q8_0, and those with a number format of their own (K-quants, IQ4_NL, IQ4_XS, MXFP4, NVFP4, ternary), decode to
QTensors and are packed from them without loss. All others that gguf-py can decode (IQ1 to IQ3) are decoded by it to
fp32 and cannot be written.
Source of ids and sizes: `ggml.h`, as gguf-py's constants repeat it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import prod

import gguf
import numpy as np
import torch
from gguf.quants import dequantize
from torch import Tensor

from compress.formats.base import TensorSpec, dtype_name
from compress.formats.errors import RefusedError
from compress.formats.gguf.blocks import integers, iq4, k_quants, nvfp4, ternary
from compress.formats.gguf.blocks.base import BlockType, bytes_of, check_range, view_of
from compress.formats.gguf.blocks.formatted import FormatType
from compress.formats.gguf.blocks.planes import Fields
from compress.formats.views.casting import half_scales, scale_misfit
from compress.kernels.numbers.float4 import Float4Format
from compress.kernels.numbers.half_tables import HalfTableFormat
from compress.kernels.numbers.int import IntFormat
from compress.kernels.numbers.k_affine import KAffineFormat
from compress.kernels.numbers.k_scaled import KScaledFormat
from compress.kernels.qtensor import NumberFormat, QTensor

_CHUNK = 1 << 18  # weights worked on at a time: temporaries stay small and in the cache


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
        return bytes_of(raw).view(self.dtype).reshape(shape)

    def encode(self, weight: Tensor) -> memoryview:
        if not self.writable:
            return super().encode(weight)
        stored = weight.to("cpu", self.dtype).contiguous()
        check_range(stored, weight, self.name)
        return view_of(stored)


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
        blocks = integers.split(bytes_of(raw).view(-1, self.size), self.format.bits, self.format.zero)
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
        return view_of(raw)

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
        return view_of(self._join(integers.Blocks(codes, scale, minimum), scale))

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
                check_range(values, source, self.name)
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


def _dense(name: str, dtype: torch.dtype) -> DenseType:
    return DenseType(int(gguf.GGMLQuantizationType[name.upper()]), name, 1, dtype.itemsize, dtype)


def _integer(name: str, number_format: IntFormat) -> IntType:
    size = integers.block_bytes(number_format.bits, number_format.zero)
    return IntType(int(gguf.GGMLQuantizationType[name.upper()]), name, integers.GROUP, size, number_format)


def _formatted(
    number_format: NumberFormat,
    split: Callable[[Tensor], Fields],
    join: Callable[[Fields], Tensor],
    beside: str = "",
) -> FormatType:
    """The type that has the name of its number format."""
    kind = gguf.GGMLQuantizationType[number_format.name.upper()]
    block, size = gguf.GGML_QUANT_SIZES[kind]
    return FormatType(int(kind), number_format.name, block, size, number_format, split, join, beside)


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
    _formatted(KAffineFormat("q2_k"), k_quants.split_q2, k_quants.join_q2),
    _formatted(KScaledFormat("q3_k"), k_quants.split_q3, k_quants.join_q3),
    _formatted(KAffineFormat("q4_k"), k_quants.split_q4, k_quants.join_q4),
    _formatted(KAffineFormat("q5_k"), k_quants.split_q5, k_quants.join_q5),
    _formatted(KScaledFormat("q6_k"), k_quants.split_q6, k_quants.join_q6),
    _formatted(KScaledFormat("iq4_xs"), iq4.split_xs, iq4.join_xs),
    _formatted(HalfTableFormat("iq4_nl"), iq4.split_nl, iq4.join_nl),
    _formatted(Float4Format("mxfp4"), iq4.split_mx, iq4.join_mx),
    _formatted(Float4Format("nvfp4"), nvfp4.split, nvfp4.join, beside="tensor_scale"),
    _formatted(HalfTableFormat("tq1_0"), ternary.split_one, ternary.join_one),
    _formatted(HalfTableFormat("tq2_0"), ternary.split_two, ternary.join_two),
)

# By lower-case name. Our own types come last, so that they replace the library's.
BLOCKS: Mapping[str, BlockType] = {kind.name: kind for kind in (*_library(), *_OWN)}
BY_ID: Mapping[int, BlockType] = {kind.id: kind for kind in BLOCKS.values()}
