"""One 4-bit linear layer as AutoAWQ's GEMM kernels store it: `X.weight` [out, in] becomes three tensors.

    X.qweight   int32    [in, out/8]       codes, eight outputs to a word
    X.qzeros    int32    [groups, out/8]   zero points 0 … 15, packed the same way
    X.scales    float16  [groups, out]

The value is scales[g]·(code − zero), g = i // group_size. The eight outputs of a word lie in the order
0, 2, 4, 6, 1, 3, 5, 7, lowest bits first. Source: AutoAWQ 0.2.9, awq/modules/linear/gemm.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from compress.formats.base import TensorSpec
from compress.formats.errors import InputError
from compress.formats.gptq.tensors import decode_scales
from compress.formats.views.casting import half_scales
from compress.kernels.numbers.int import IntFormat
from compress.kernels.qtensor import QTensor

BITS = 4
PACKED = 8  # outputs in a word
PARTS = ("qweight", "qzeros", "scales")
MIDDLE = 1 << BITS - 1
_HIGHEST = (1 << BITS) - 1
_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


@dataclass(frozen=True)
class Geometry:
    """What the shapes of a layer's three tensors say of it."""

    outputs: int
    inputs: int
    groups: int

    def parts(self) -> dict[str, TensorSpec]:
        """The specs of the three tensors."""
        return {
            "qweight": TensorSpec((self.inputs, self.outputs // PACKED), "int32"),
            "qzeros": TensorSpec((self.groups, self.outputs // PACKED), "int32"),
            "scales": TensorSpec((self.groups, self.outputs), "float16"),
        }


def geometry_of(shape: tuple[int, ...], group_size: int) -> Geometry:
    """The geometry of a weight [out, in]."""
    return Geometry(shape[0], shape[1], 1 if group_size == -1 else shape[1] // group_size)


def read_geometry(module: str, specs: Mapping[str, TensorSpec], group_size: int) -> Geometry:
    """The geometry of the layer `module` of a file. Raises InputError if its tensors do not fit together."""
    parts = {part: specs[f"{module}.{part}"] for part in PARTS if f"{module}.{part}" in specs}
    shapes = {part: spec.shape for part, spec in parts.items()}
    inputs, outputs = (*shapes.get("qweight", ()), 0, 0)[:2]
    size = inputs if group_size == -1 else group_size
    found = Geometry(outputs * PACKED, inputs, inputs // size if size else 0)
    fits = found.groups and inputs % size == 0 and shapes == {part: s.shape for part, s in found.parts().items()}
    if not fits or 0 in shapes["qweight"]:
        given = ", ".join(f"{part} {list(shape)}" for part, shape in shapes.items())
        raise InputError(f"{module}: {given} do not fit together in groups of {group_size}")
    if any(spec.dtype != "int32" for part, spec in parts.items() if part != "scales"):
        raise InputError(f"{module}: qweight and qzeros are not both int32")
    return found


def encode(name: str, tensor: QTensor) -> dict[str, Tensor]:
    """The three tensors of a 4-bit QTensor with whole or middle zero points.

    Raises RefusedError, by name, for scales that float16 does not hold.
    """
    scale = half_scales(name, tensor.params["scale"])
    zero = tensor.params.get("zero", torch.full(scale.shape, MIDDLE, dtype=torch.uint8))
    return {"qweight": _pack(tensor.codes.T), "qzeros": _pack(zero.T), "scales": scale.T.contiguous()}


def decode(name: str, parts: Mapping[str, Tensor], group_size: int) -> QTensor:
    """The QTensor of the three tensors. Raises InputError if float16 does not hold the scales exactly.

    A zero point of 0, which IntFormat has not, is read as its mirror: s·q = −s·((15 − q) − 15).
    """
    scale, zero = decode_scales(name, parts["scales"]), _unpack(parts["qzeros"]).T.contiguous()
    codes = _unpack(parts["qweight"]).T.contiguous()
    mirrored = zero == 0
    columns = mirrored.repeat_interleave(codes.shape[1] // zero.shape[1], 1)
    params = {
        "scale": torch.where(mirrored, -scale, scale),
        "zero": torch.where(mirrored, _HIGHEST, zero).byte(),
    }
    return QTensor(IntFormat(BITS, group_size, "integer"), torch.where(columns, _HIGHEST - codes, codes), params)


def _pack(codes: Tensor) -> Tensor:
    """codes [n, outputs] uint8 → words [n, outputs/8] int32."""
    lanes = codes.reshape(len(codes), -1, PACKED).int()
    words = torch.zeros(lanes.shape[:2], dtype=torch.int32, device=codes.device)
    for place, lane in enumerate(_ORDER):
        words |= lanes[..., lane] << BITS * place
    return words


def _unpack(words: Tensor) -> Tensor:
    """words [n, outputs/8] int32 → codes [n, outputs] uint8."""
    lanes = torch.empty(*words.shape, PACKED, dtype=torch.uint8, device=words.device)
    for place, lane in enumerate(_ORDER):
        lanes[..., lane] = (words >> BITS * place & _HIGHEST).byte()
    return lanes.flatten(1)
