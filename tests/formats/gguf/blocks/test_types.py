"""GGML block types against gguf-py's encoders and decoders, bit for bit."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch
from gguf.quants import dequantize, quantize
from torch import Tensor

from compress.formats.errors import InputError, RefusedError
from compress.formats.gguf.blocks.types import BLOCKS, BY_ID, IntType, LibraryType, type_of
from compress.kernels.numbers.int import IntFormat
from compress.kernels.qtensor import QTensor

INTEGER = [name for name, kind in BLOCKS.items() if isinstance(kind, IntType)]
ENCODED = ["f32", "f16", "bf16", *INTEGER]
LIBRARY = [name for name, kind in BLOCKS.items() if isinstance(kind, LibraryType)]


def peer(name: str) -> gguf.GGMLQuantizationType:
    return gguf.GGMLQuantizationType[name.upper()]


def random_raw(name: str, blocks: int, seed: int = 0) -> bytes:
    """Random bytes whose float16 scales and minima are finite."""
    kind = BLOCKS[name]
    raw = np.random.default_rng(seed).integers(0, 256, (blocks, kind.size), np.uint8)
    if isinstance(kind, IntType):
        raw[:, [1, 3] if kind.format.zero == "real" else [1]] &= 0xBF
    return raw.tobytes()


def random_codes(number_format: IntFormat, rows: int, columns: int) -> QTensor:
    generator = torch.Generator().manual_seed(7)
    groups = 1 if number_format.group_size == -1 else columns // number_format.group_size
    params = {"scale": torch.randn(rows, groups, generator=generator).half()}
    if number_format.zero == "real":
        params["minimum"] = torch.randn(rows, groups, generator=generator).half()
    if number_format.zero == "integer":
        params["zero"] = torch.randint(1, number_format.levels, (rows, groups), generator=generator, dtype=torch.uint8)
        params["zero"][0, 0], params["zero"][-1, -1] = 1, number_format.levels - 1
    codes = torch.randint(0, number_format.levels, (rows, columns), generator=generator, dtype=torch.uint8)
    codes[0, :2] = codes[-1, -2:] = torch.tensor([0, number_format.levels - 1], dtype=torch.uint8)
    return QTensor(number_format, codes, params)


def hard_weights() -> dict[str, Tensor]:
    """Sequences of 64 that have caught encoders out."""
    generator = torch.Generator().manual_seed(1)
    normal = torch.randn(40, 64, generator=generator)
    ties = torch.randint(-4, 5, (40, 64), generator=generator).float() / 8
    return {
        "normal": normal,
        "small": normal * 1e-3,
        "subnormal scales": normal * 1e-7,
        "vanishing scales": normal * 1e-12,
        "large": normal * 3e4 / normal.abs().max(),
        "ties": ties,
        "zeros": torch.zeros(2, 64),
        "negative zeros": -torch.zeros(2, 64),
        "constant": torch.full((2, 64), -0.7),
        "positive": normal.abs(),
        "one outlier": torch.eye(64)[:40] * -3,
        "half": torch.arange(64.0).repeat(2, 1) - 31.5,
    }


def test_registry_has_every_type_that_gguf_py_decodes() -> None:
    decodable = set()
    for kind, (_, size) in gguf.GGML_QUANT_SIZES.items():
        try:
            dequantize(np.zeros((1, 4 * size), np.uint8), kind)
            decodable.add(kind.name.lower())
        except NotImplementedError:
            pass
    assert {"q4_k", "iq1_s", "tq2_0", "mxfp4"} <= decodable
    assert set(BLOCKS) == decodable | {"f64", "i8", "i16", "i32", "i64"}
    for name, kind in BLOCKS.items():
        assert (kind.block, kind.size) == gguf.GGML_QUANT_SIZES[peer(name)]
        assert BY_ID[kind.id] is kind
        assert kind.id == peer(name).value


def test_q5_1_literal_bytes() -> None:
    """d = 0.5, m = −1, codes 0 … 31 in order: value 0.5·i − 1."""
    low = bytes(j | (j << 4) for j in range(16))
    raw = bytes.fromhex("003800bc0000ffff") + low
    tensor = BLOCKS["q5_1"].decode(raw, (1, 32))
    assert isinstance(tensor, QTensor)
    assert tensor.codes.tolist() == [list(range(32))]
    assert tensor.dequantize().tolist() == [[0.5 * i - 1 for i in range(32)]]
    assert BLOCKS["q5_1"].pack(tensor).tobytes() == raw


@pytest.mark.parametrize("name", ENCODED)
def test_encode_is_bit_exact(name: str) -> None:
    for label, weight in hard_weights().items():
        with np.errstate(all="ignore"):  # gguf-py divides by zero and converts infinities
            expected = quantize(weight.numpy(), peer(name)).tobytes()
        assert BLOCKS[name].encode(weight).tobytes() == expected, label


@pytest.mark.parametrize("name", INTEGER)
def test_weights_whose_scale_has_no_reciprocal_become_zero(name: str) -> None:
    """1/d overflows float32: what C makes of it is undefined."""
    tensor = BLOCKS[name].decode(bytes(BLOCKS[name].encode(torch.randn(4, 64) * 1e-40)), (4, 64))
    assert isinstance(tensor, QTensor)
    assert not tensor.dequantize().any()


@pytest.mark.parametrize("name", INTEGER)
def test_encode_in_several_chunks(name: str) -> None:
    weight = torch.randn(1030, 1056, generator=torch.Generator().manual_seed(0))
    assert BLOCKS[name].encode(weight).tobytes() == quantize(weight.numpy(), peer(name)).tobytes()


@pytest.mark.parametrize("name", INTEGER)
def test_decode_and_pack_any_block(name: str) -> None:
    kind = BLOCKS[name]
    raw = random_raw(name, 60)
    shape = (15, 4 * kind.block)
    assert kind.nbytes(shape) == len(raw)
    tensor = kind.decode(raw, shape)
    assert isinstance(tensor, QTensor)
    assert tensor.codes.shape == shape
    assert tensor.format == kind.spec(shape).format
    assert {name: tuple(part.shape) for name, part in tensor.params.items()} == {
        name: shape for name, (shape, _) in tensor.format.param_shapes(shape).items()
    }
    expected = dequantize(np.frombuffer(raw, np.uint8).reshape(15, -1), peer(name))
    assert np.array_equal(tensor.dequantize().numpy(), expected)
    assert kind.pack(tensor).tobytes() == raw
    stacked = kind.decode(raw, (3, 5, shape[1]))
    assert isinstance(stacked, Tensor)
    assert np.array_equal(stacked.numpy(), expected.reshape(3, 5, -1))


@pytest.mark.parametrize("name", LIBRARY)
def test_decode_library_blocks(name: str) -> None:
    kind = BLOCKS[name]
    shape = (3, 1500 * kind.block)  # several chunks
    raw = np.random.default_rng(0).integers(0, 256, kind.nbytes(shape), np.uint8)
    with np.errstate(all="ignore"):
        expected = dequantize(raw.reshape(3, -1), peer(name))
    values = kind.decode(raw.tobytes(), shape)
    assert isinstance(values, Tensor)
    assert kind.spec(shape).dtype == "float32"
    assert np.array_equal(values.numpy(), expected, equal_nan=True)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64", "int8", "int16", "int32", "int64"])
def test_dense_types_are_torch_dtypes(dtype: str) -> None:
    values = torch.arange(-6, 6).view(3, 4).to(getattr(torch, dtype))
    name = {"float": "f", "bfloat": "bf", "int": "i"}[dtype.rstrip("0123456789")] + dtype.lstrip("abfilnot")
    kind = BLOCKS[name]
    raw = values.view(torch.uint8).numpy().tobytes()
    assert kind.nbytes((3, 4)) == len(raw)
    decoded = kind.decode(raw, (3, 4))
    assert isinstance(decoded, Tensor)
    assert str(decoded.dtype) == "torch." + kind.spec((3, 4)).dtype == "torch." + dtype
    assert torch.equal(decoded, values)


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7, 8])
@pytest.mark.parametrize("zero", ["middle", "integer", "real"])
@pytest.mark.parametrize("group_size", [32, 64, 96, -1])
def test_pack_holds_the_very_values(bits: int, zero: str, group_size: int) -> None:
    number_format = IntFormat(bits, group_size, zero)  # type: ignore[arg-type]
    kind = type_of(number_format)
    if (zero == "real" and bits > 5) or (zero == "integer" and bits == 8):
        assert kind is None
        return
    assert kind is not None
    tensor = random_codes(number_format, 5, 192)
    raw = kind.pack(tensor)
    assert raw.nbytes == kind.nbytes(tensor.shape)
    values = dequantize(np.frombuffer(raw, np.uint8).reshape(5, -1), peer(kind.name))
    assert np.array_equal(values, tensor.dequantize().numpy())


@pytest.mark.parametrize(
    ("number_format", "name"),
    [
        (IntFormat(4, 32), "q4_0"),
        (IntFormat(3, -1), "q4_0"),
        (IntFormat(5, 64), "q5_0"),
        (IntFormat(6, 128), "q8_0"),
        (IntFormat(8, 32), "q8_0"),
        (IntFormat(4, 32, "real"), "q4_1"),
        (IntFormat(5, 32, "real"), "q5_1"),
        (IntFormat(3, 32, "integer"), "q4_0"),
        (IntFormat(4, 128, "integer"), "q5_0"),
        (IntFormat(4, 16), None),
        (IntFormat(4, 48), None),
        (IntFormat(8, 32, "real"), None),
    ],
)
def test_type_of(number_format: IntFormat, name: str | None) -> None:
    kind = type_of(number_format)
    assert (kind and kind.name) == name


def test_pack_of_a_transposed_tensor() -> None:
    tensor = random_codes(IntFormat(4, 64), 64, 128)
    turned = QTensor(
        tensor.format,
        tensor.codes.t().contiguous().t(),
        {"scale": tensor.params["scale"].t().contiguous().t()},
    )
    assert BLOCKS["q4_0"].pack(turned) == BLOCKS["q4_0"].pack(tensor)


def test_pack_refuses_what_it_cannot_hold() -> None:
    with pytest.raises(RefusedError, match="q4_0 cannot hold int5 g32 sym"):
        BLOCKS["q4_0"].pack(random_codes(IntFormat(5, 32), 2, 64))
    with pytest.raises(RefusedError, match="iq2_s cannot hold"):
        BLOCKS["iq2_s"].pack(random_codes(IntFormat(4, 32), 2, 256))
    with pytest.raises(RefusedError, match="blocks of 32"):
        BLOCKS["q4_0"].pack(random_codes(IntFormat(4, -1), 2, 80))


@pytest.mark.parametrize("name", [*INTEGER, "f16"])
def test_weights_out_of_range_are_refused(name: str) -> None:
    weight = torch.zeros(2, 64)
    weight[1, 3] = 1e8
    with pytest.raises(RefusedError, match=r"as large as 1e\+08"):
        BLOCKS[name].encode(weight)
    weight[1, 3] = float("nan")
    with pytest.raises(InputError, match="NaN"):
        BLOCKS[name].encode(weight)


def test_types_that_are_only_read() -> None:
    for name in ("iq3_s", "i32"):
        assert not BLOCKS[name].writable
        with pytest.raises(RefusedError, match="but not written"):
            BLOCKS[name].encode(torch.zeros(1, 256))


def test_rows_must_divide_into_blocks() -> None:
    assert BLOCKS["q4_k"].misfit((4, 576)) == "rows of shape [4, 576] do not divide into q4_k blocks of 256"
    assert BLOCKS["q4_0"].misfit((4, 576)) is None
