"""A second reading of compressed-tensors files."""

import pytest

from compress.formats.compressed_tensors.checkpoint import CompressedTensorsCheckpoint
from compress.formats.compressed_tensors.dialect import CompressedTensors
from compress.formats.compressed_tensors.witness import read_independently
from compress.kernels.numbers.float import FloatFormat
from compress.kernels.numbers.float4 import Float4Format
from compress.kernels.numbers.int import IntFormat

FORMATS = [
    IntFormat(3, 32, "integer"),
    FloatFormat("channel"),
    FloatFormat("block"),
    Float4Format("mxfp4"),
    Float4Format("nvfp4"),
]


@pytest.mark.parametrize("number_format", FORMATS, ids=lambda found: found.name)
def test_witness_and_reader_agree(quantized, judged, number_format):
    read = judged(CompressedTensors(), quantized(number_format), CompressedTensorsCheckpoint, read_independently)
    with pytest.raises(KeyError):
        read("model.layers.9.mlp.up_proj.weight")
