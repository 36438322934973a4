"""Types with a number format of their own: bytes against gguf-py."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch
from ggml import decoded, kind
from torch import Tensor

from compress.formats.errors import InputError, RefusedError
from compress.formats.gguf.blocks.base import BlockType
from compress.formats.gguf.blocks.formatted import FormatType
from compress.formats.gguf.blocks.iq4 import join_xs, split_mx, split_xs
from compress.formats.gguf.blocks.k_quants import join_q4, split_q4
from compress.formats.gguf.blocks.planes import apart, stacked
from compress.formats.gguf.blocks.ternary import join_one, split_one
from compress.formats.gguf.blocks.types import BLOCKS
from compress.kernels.numbers.float4 import TOP_EXPONENT
from compress.kernels.numbers.int import IntFormat
from compress.kernels.qtensor import QTensor, quantize

TYPES = {name: found for name, found in BLOCKS.items() if isinstance(found, FormatType)}
each = pytest.mark.parametrize("name", TYPES)


def weights(rows: int = 24, columns: int = 1024, seed: int = 0) -> Tensor:
    """Rows like a model's: of various size, some of their columns larger, some weights far out."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator) * torch.rand(rows, 1, generator=generator) * 0.05
    weight *= 1 + torch.rand(columns, generator=generator) ** 4
    weight[torch.rand(rows, columns, generator=generator) > 0.999] *= 8
    return weight


def test_planes_as_written_by_hand() -> None:
    numbers = torch.tensor([[1, 2, 3, 0, 2, 1, 0, 3]], dtype=torch.uint8)
    assert stacked(numbers, 2, 2).tolist() == [[1 | 3 << 2 | 2 << 4 | 0 << 6, 2 | 0 << 2 | 1 << 4 | 3 << 6]]
    assert torch.equal(apart(stacked(numbers, 2, 2), 2, 2), numbers)


def beside(tensor: QTensor) -> Tensor:
    """What the values of blocks are multiplied by: a tensor beside them."""
    return tensor.params.get("tensor_scale", torch.ones(1, 1))


@each
def test_any_block_decodes_as_in_gguf_py_and_is_packed_again(name: str) -> None:
    found = TYPES[name]
    drawn = np.random.default_rng(0).integers(0, 256, (60, found.size), np.uint8)
    if name == "mxfp4":
        drawn[:, 0] %= TOP_EXPONENT + 1
    if name == "nvfp4":
        drawn[:, :4] = drawn[:, :4] % 0x7E + 1  # scales have no sign; 0 and what is no number: test_nvfp4
    raw = drawn.tobytes()
    shape = (15, 4 * found.block)
    tensor = found.decode(raw, shape)
    assert isinstance(tensor, QTensor) and tensor.format == found.format == found.spec(shape).format
    assert {name: (tuple(part.shape), str(part.dtype)) for name, part in tensor.params.items()} == {
        name: (part, f"torch.{dtype}") for name, (part, dtype) in tensor.format.param_shapes(shape).items()
    }
    expected = decoded(raw, name, 15)
    assert torch.equal(tensor.dequantize().nan_to_num(7.0), expected.nan_to_num(7.0))
    packed = found.pack(tensor)
    if name == "tq1_0":  # 243 of 256 bytes stand for five codes; the others say what one of those says
        assert torch.equal(decoded(packed, name, 15).nan_to_num(7.0), expected.nan_to_num(7.0))
        assert found.pack(found.decode(bytes(packed), shape)) == packed
    else:
        assert packed.tobytes() == raw
    stacks = found.decode(raw, (3, 5, shape[1]))
    assert isinstance(stacks, Tensor) and torch.equal(stacks.flatten(0, 1).nan_to_num(7.0), expected.nan_to_num(7.0))


@each
def test_what_is_encoded_decodes_to_the_same_in_gguf_py(name: str) -> None:
    weight = weights()
    tensor = TYPES[name].rounded(weight)
    raw = TYPES[name].encode(weight)
    assert raw == TYPES[name].pack(tensor)
    assert torch.equal(decoded(raw, name, 24) * beside(tensor), tensor.dequantize())
    again = quantize(tensor.dequantize(), tensor.format, tensor.params)
    assert torch.equal(again.dequantize(), tensor.dequantize())


@each
@pytest.mark.parametrize("size", [0.0, 1e-40, 1e-12, 1e-7, 1e-3, 1e3])
def test_hard_blocks(name: str, size: float) -> None:
    """Zeros, what no float16 scale can hold, constants, single outliers: nothing but numbers comes out."""
    weight = torch.zeros(6, 1024)
    weight[0], weight[1], weight[2, 5] = size, -size, size
    weight[3] = torch.linspace(-size, size, 1024)
    weight[4] = torch.linspace(0.9 * size, size, 1024)
    values = decoded(TYPES[name].encode(weight), name, 6) * beside(TYPES[name].rounded(weight))
    assert bool(values.isfinite().all()) and bool((values[5] == 0).all())
    if size >= 1e-3:
        worst = {"q2_k": 0.35, "q3_k": 0.15, "mxfp4": 0.2, "nvfp4": 0.2, "tq1_0": 1, "tq2_0": 1}.get(name, 0.07)
        assert float((values - weight).abs().max()) < worst * size


@each
def test_what_cannot_be_is_refused(name: str) -> None:
    found = TYPES[name]
    with pytest.raises(InputError, match="NaN"):
        found.encode(torch.full((1, 1024), torch.nan))
    if name not in ("mxfp4", "nvfp4"):
        with pytest.raises(RefusedError, match=r"as large as 1e\+20"):
            found.encode(torch.full((1, 1024), 1e20))
    integers = QTensor(IntFormat(4, 256), torch.zeros(1, 256, dtype=torch.uint8), {"scale": torch.ones(1, 1).half()})
    with pytest.raises(RefusedError, match="cannot hold int4 g256 sym"):
        found.pack(integers)
    assert found.misfit((4, 80)) == f"rows of shape [4, 80] do not divide into {name} blocks of {found.block}"
    assert isinstance(found, BlockType) and (found.block, found.size) == gguf.GGML_QUANT_SIZES[kind(name)]


def test_mxfp4_that_no_float32_holds_is_refused() -> None:
    with pytest.raises(InputError, match="exponent 253"):
        split_mx(torch.full((1, 17), 253, dtype=torch.uint8))
    zeros = torch.zeros(1, 17, dtype=torch.uint8)
    zeros[0, 0] = 255
    assert split_mx(zeros)["scale"].item() == TOP_EXPONENT


def test_ternary_digits_lead_with_the_first() -> None:
    codes = torch.zeros(1, 256, dtype=torch.uint8)
    codes[0, 0] = 2  # the first code of the first byte: 2·81 of 243
    raw = join_one({"codes": codes, "scale": torch.zeros(1, 1).half()})
    assert int(raw[0, 0]) == -(-2 * 81 * 256 // 243) and torch.equal(split_one(raw)["codes"], codes)


def test_layouts_take_apart_what_they_join() -> None:
    raw = torch.randint(0, 256, (5, 144), dtype=torch.uint8)
    assert torch.equal(join_q4(split_q4(raw)), raw)
    raw = torch.randint(0, 256, (5, 136), dtype=torch.uint8)
    assert torch.equal(join_xs(split_xs(raw)), raw)


@each
def test_a_transposed_tensor_is_packed_as_any(name: str) -> None:
    tensor = TYPES[name].format.search(weights(8))
    turned = QTensor(tensor.format, tensor.codes.t().contiguous().t(), tensor.params)
    assert TYPES[name].pack(turned) == TYPES[name].pack(tensor)
