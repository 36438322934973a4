"""A second reading of bitsandbytes files."""

import pytest

from compress.formats.bitsandbytes.checkpoint import BitsAndBytesCheckpoint
from compress.formats.bitsandbytes.dialect import BitsAndBytes
from compress.formats.bitsandbytes.witness import read_independently
from compress.kernels.numbers.codebook import CodebookFormat
from compress.kernels.numbers.row_int8 import RowInt8Format

FORMATS = [
    CodebookFormat("nf4"),
    CodebookFormat("fp4", 32, True),
    RowInt8Format(),
]


@pytest.mark.parametrize("number_format", FORMATS, ids=lambda found: found.name)
def test_witness_and_reader_agree(quantized, judged, number_format):
    read = judged(BitsAndBytes(), quantized(number_format), BitsAndBytesCheckpoint, read_independently)
    with pytest.raises(KeyError):
        read("model.layers.9.mlp.up_proj.weight")
