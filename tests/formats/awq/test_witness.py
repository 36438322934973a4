"""A second reading of AWQ files."""

import pytest

from compress.formats.awq.checkpoint import AWQCheckpoint
from compress.formats.awq.dialect import AWQ
from compress.formats.awq.witness import read_independently
from compress.kernels.numbers.int import IntFormat

FORMATS = [
    IntFormat(4, 32),
    IntFormat(4, -1, "integer"),
]


@pytest.mark.parametrize("number_format", FORMATS, ids=lambda found: found.name)
def test_witness_and_reader_agree(quantized, judged, number_format):
    read = judged(AWQ(), quantized(number_format), AWQCheckpoint, read_independently)
    with pytest.raises(KeyError):
        read("model.layers.9.mlp.up_proj.weight")
