"""One quantized linear layer as AutoGPTQ stores it: `X.weight` [out, in] becomes four tensors.

    X.qweight   int32    [in·bits/32, out]      codes, packed along the inputs (kernels/pack.py)
    X.qzeros    int32    [groups, out·bits/32]  zero points, packed along the outputs
    X.scales    float16  [groups, out]
    X.g_idx     int32    [in]                   the group of each input; here always i // group_size

The value is scales[g]·(code − zero) with g = g_idx[i]. AutoGPTQ's own layout (`gptq`, v1) stores zero − 1,
GPTQModel's `gptq_v2` stores zero. Source: AutoGPTQ 0.7.1, nn_modules/qlinear/qlinear_cuda_old.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from compress.formats.base import TensorSpec
from compress.formats.errors import InputError, RefusedError
from compress.formats.views.casting import exact_half, half_scales
from compress.kernels.numbers.int import IntFormat
from compress.kernels.pack import pack, unpack
from compress.kernels.qtensor import QTensor

BITS = (2, 3, 4, 8)
PACKED = 32  # codes are packed 32 at a time, along inputs and along outputs
PARTS = ("qweight", "qzeros", "scales", "g_idx")
ZERO_OFFSET = {"gptq": 1, "gptq_v2": 0}  # checkpoint_format → what is subtracted from a stored zero point


@dataclass(frozen=True)
class Geometry:
    """What the shapes of a layer's four tensors say of it."""

    outputs: int
    inputs: int
    groups: int
    bits: int

    def parts(self) -> dict[str, TensorSpec]:
        """The specs of the four tensors."""
        return {
            "qweight": TensorSpec((self.inputs * self.bits // 32, self.outputs), "int32"),
            "qzeros": TensorSpec((self.groups, self.outputs * self.bits // 32), "int32"),
            "scales": TensorSpec((self.groups, self.outputs), "float16"),
            "g_idx": TensorSpec((self.inputs,), "int32"),
        }


def geometry_of(shape: tuple[int, ...], number_format: IntFormat) -> Geometry:
    """The geometry of a weight [out, in]."""
    groups = 1 if number_format.group_size == -1 else shape[1] // number_format.group_size
    return Geometry(shape[0], shape[1], groups, number_format.bits)


def read_geometry(module: str, specs: Mapping[str, TensorSpec]) -> Geometry:
    """The geometry of the layer `module` of a file. Raises InputError if its tensors do not fit together."""
    parts = {part: specs[f"{module}.{part}"] for part in PARTS if f"{module}.{part}" in specs}
    shapes = [parts[part].shape if part in parts else () for part in ("qweight", "qzeros", "scales")]
    if any(len(shape) != 2 or 0 in shape for shape in shapes):
        raise InputError(f"{module}: qweight, qzeros and scales are not three matrices")
    (words, outputs), (_, zero_words), (groups, scales) = shapes
    bits = zero_words * 32 // scales
    if bits not in BITS:
        raise InputError(f"{module}: its shapes mean {bits} bits; GPTQ files have 2, 3, 4 or 8")
    found = Geometry(outputs, words * 32 // bits, groups, bits)
    expected = {part: found.parts()[part].shape for part in parts}
    if {part: spec.shape for part, spec in parts.items()} != expected or found.inputs % groups:
        given = ", ".join(f"{part} {list(spec.shape)}" for part, spec in parts.items())
        raise InputError(f"{module}: {given} do not fit together")
    if any(spec.dtype != "int32" for part, spec in parts.items() if part != "scales"):
        raise InputError(f"{module}: qweight, qzeros and g_idx are not all int32")
    return found


def encode(name: str, tensor: QTensor, checkpoint_format: str) -> dict[str, Tensor]:
    """The four tensors. Raises RefusedError, by name, for scales or a zero point that the layout cannot hold."""
    number_format = tensor.format
    assert isinstance(number_format, IntFormat)  # misfit() let nothing else through
    bits, offset = number_format.bits, ZERO_OFFSET[checkpoint_format]
    scale = half_scales(name, tensor.params["scale"])
    zero = tensor.params.get("zero", torch.full(scale.shape, 1 << bits - 1, dtype=torch.uint8))
    if int(zero.min()) < offset:
        raise RefusedError(
            f"{name} has a zero point of 0, and the layout {checkpoint_format!r} stores zero − 1",
            "export with checkpoint_format: gptq_v2, or quantize with symmetric: true",
        )
    columns = tensor.codes.shape[1]
    return {
        "qweight": pack(tensor.codes.T, bits),
        "qzeros": pack(zero - offset, bits).T.contiguous(),
        "scales": scale.T.contiguous(),
        "g_idx": trivial_groups(columns, scale.shape[1]),
    }


def trivial_groups(inputs: int, groups: int) -> Tensor:
    """g_idx [inputs] int32 of a layer whose columns are not reordered."""
    return torch.arange(inputs, dtype=torch.int32) // (inputs // groups)


def decode_zeros(module: str, qzeros: Tensor, bits: int, checkpoint_format: str) -> Tensor:
    """Zero points [out, groups] uint8. Raises InputError for one that engines do not agree on."""
    stored = unpack(qzeros.T.contiguous(), bits)
    offset = ZERO_OFFSET[checkpoint_format]
    if int(stored.max()) + offset >= 1 << bits:
        raise InputError(
            f"{module} stores a zero point of {(1 << bits) - 1}, from which engines make 0 or {1 << bits}",
            "quantize the model again with symmetric weights, or get it as gptq_v2",
        )
    return stored + offset


def decode_scales(module: str, scales: Tensor) -> Tensor:
    """Scales [out, groups] float16. Raises InputError if float16 does not hold them exactly."""
    half = exact_half(scales.T.contiguous())
    if half is None:
        raise InputError(f"{module}: float16 does not hold its scales ({scales.dtype}) exactly")
    return half


def check_groups(module: str, g_idx: Tensor, groups: int) -> None:
    """Raise InputError for a layer whose columns were reordered into groups."""
    if not torch.equal(g_idx, trivial_groups(len(g_idx), groups)):
        raise InputError(
            f"{module} has its columns reordered into groups (act-order without static groups)",
            "use a checkpoint quantized with desc_act: false or with static groups",
        )
