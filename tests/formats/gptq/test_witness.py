"""A second reading of GPTQ files."""

import pytest

from compress.formats.gptq.checkpoint import GPTQCheckpoint
from compress.formats.gptq.dialect import GPTQ
from compress.formats.gptq.witness import read_independently
from compress.kernels.numbers.int import IntFormat

FORMATS = [
    IntFormat(2, 32),
    IntFormat(3, -1),
    IntFormat(4, 32, "integer"),
    IntFormat(8, 64),
]


@pytest.mark.parametrize("number_format", FORMATS, ids=lambda found: found.name)
def test_witness_and_reader_agree(quantized, judged, number_format):
    read = judged(GPTQ(), quantized(number_format), GPTQCheckpoint, read_independently)
    with pytest.raises(KeyError):
        read("model.layers.9.mlp.up_proj.weight")
