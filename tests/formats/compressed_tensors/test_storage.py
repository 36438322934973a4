"""How compressed-tensors stores one weight, against bytes that are written out by hand."""

import json

import pytest
import torch

from compress.formats.base import TensorSpec
from compress.formats.compressed_tensors.arguments import Arguments, read_arguments
from compress.formats.compressed_tensors.float4 import MXFP4, NVFP4, MXFP4Packed, pack_halves, unpack_halves
from compress.formats.compressed_tensors.packed import PackQuantized, pack_padded, unpack_padded, words
from compress.formats.compressed_tensors.plain import FloatQuantized, IntQuantized
from compress.formats.compressed_tensors.storage import integer_misfit, scale_dtype
from compress.formats.errors import InputError
from compress.kernels.numbers.float import FloatFormat
from compress.kernels.numbers.int import IntFormat
from compress.kernels.qtensor import QTensor


def test_words_are_filled_from_the_lowest_bit():
    codes = torch.tensor([[1], [2], [3]], dtype=torch.uint8)
    assert pack_padded(codes, 4).tolist() == [[0x321]] and pack_padded(codes, 8).tolist() == [[0x030201]]


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("count", [1, 31, 32, 33, 100])
def test_codes_of_any_count_come_back(bits, count):
    codes = torch.randint(0, 1 << bits, (count, 3), dtype=torch.uint8)
    packed = pack_padded(codes, bits)
    assert packed.shape == (words(count, bits), 3) == (-(-count * bits // 32), 3)
    assert torch.equal(unpack_padded(packed, bits, count), codes)


def test_halves_of_a_byte_hold_the_low_code_first():
    assert pack_halves(torch.tensor([[1, 2, 15, 0]], dtype=torch.uint8)).tolist() == [[0x21, 0x0F]]
    assert unpack_halves(torch.tensor([[0x21, 0x0F]], dtype=torch.uint8)).tolist() == [[1, 2, 15, 0]]


@pytest.mark.parametrize(
    ("storage", "number_format"),
    [
        (PackQuantized(), IntFormat(3, 8, "integer")), (IntQuantized(), IntFormat(8, -1)),
        (IntQuantized(), IntFormat(5, 8, "integer")), (FloatQuantized(), FloatFormat("block")), (MXFP4Packed(), MXFP4),
    ],
    ids=lambda value: getattr(value, "name", type(value).__name__),
)  # fmt: skip
def test_what_is_stored_is_as_was_said_and_comes_back(storage, number_format, assert_same):
    assert storage.misfit(number_format) is None
    weight = torch.randn(6, 64)
    tensor = number_format.search(weight)
    parts = storage.encode("w", tensor, "float32")
    said = storage.parts((6, 64), number_format, "float32")
    assert {name: TensorSpec(tuple(part.shape), str(part.dtype)[6:]) for name, part in parts.items()} == said
    found = storage.decode("w", (6, 64), number_format, parts.__getitem__)
    params = {key: value.to(tensor.params[key].dtype) for key, value in found.params.items()}
    assert_same(QTensor(number_format, found.codes, params), tensor)


def test_integers_lie_around_zero():
    tensor = IntFormat(8, -1).search(torch.tensor([[-1.0, 0.0, 0.5]]))
    assert IntQuantized().encode("w", tensor, "float16")["weight"].tolist() == [[-128, 0, 64]]


def test_scales_have_the_type_of_the_format_but_beside_float32():
    assert scale_dtype(IntFormat(4, 8, scale_dtype="bfloat16"), "float16") == "bfloat16"
    assert scale_dtype(IntFormat(4, 8), "float32") == scale_dtype(NVFP4, "bfloat16") == "float32"


def test_what_formats_of_integers_do_not_hold():
    assert "FP8" in str(integer_misfit(FloatFormat())) and "minimums" in str(integer_misfit(IntFormat(4, 8, "real")))
    assert integer_misfit(IntFormat(4, 8)) is None


def test_arguments_come_back_with_their_defaults():
    assert read_arguments({}, "here") == Arguments("int", 8, "tensor")
    assert read_arguments({"group_size": 64, "num_bits": 4}, "here") == Arguments("int", 4, "group", group_size=64)
    assert read_arguments({"group_size": -1}, "here") == Arguments("int", 8, "channel")
    blocks = Arguments("float", 8, "block", block_structure=(128, 128))
    for found in (blocks, Arguments("int", 4, "group", group_size=32)):
        assert read_arguments(json.loads(json.dumps(found.json())), "here") == found


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ([], "not a JSON object"),
        ({"num_bits": "4"}, "num_bits"),
        ({"symmetric": 1}, "symmetric"),
        ({"group_size": 1.5}, "group_size"),
    ],
)
def test_arguments_of_another_type_are_refused(found, said):
    with pytest.raises(InputError, match=f"here.*{said}"):
        read_arguments(found, "here")
    assert "dynamic asymmetric 3-bit int values per token" in str(Arguments("int", 3, "token", False, True).unread("x"))
