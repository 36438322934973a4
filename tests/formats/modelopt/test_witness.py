"""A second reading of modelopt files."""

import pytest

from compress.formats.modelopt.checkpoint import ModelOptCheckpoint
from compress.formats.modelopt.dialect import ModelOpt
from compress.formats.modelopt.witness import read_independently
from compress.kernels.numbers.activations import ActivationFormat
from compress.kernels.numbers.float import FloatFormat
from compress.kernels.numbers.float4 import Float4Format

CASES = [
    (Float4Format("nvfp4"), None),
    (FloatFormat("channel"), ActivationFormat("fp8", True)),
    (FloatFormat("tensor"), ActivationFormat("fp8", False, "tensor")),
]


@pytest.mark.parametrize(("number_format", "inputs"), CASES, ids=["nvfp4", "channel", "tensor"])
def test_witness_and_reader_agree(quantized, with_rounding, judged, number_format, inputs):
    model = quantized(number_format)
    judged(ModelOpt(), with_rounding(model, inputs) if inputs else model, ModelOptCheckpoint, read_independently)
