"""One option chooses the number format; each format takes its own options and no others."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from compress.kernels.numbers.codebook import CodebookFormat
from compress.kernels.numbers.float import FloatFormat
from compress.kernels.numbers.float4 import Float4Format
from compress.kernels.numbers.half_tables import HalfTableFormat
from compress.kernels.numbers.int import IntFormat
from compress.kernels.numbers.k_affine import KAffineFormat
from compress.kernels.numbers.k_scaled import KScaledFormat
from compress.passes.gptq import GPTQ
from compress.passes.options.any_format import FormatOptions


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("int", IntFormat(3, 32)),
        ("lloyd_max", CodebookFormat("lloyd_max", 16)),
        ("fp8", FloatFormat("channel")),
        ("mxfp4", Float4Format("mxfp4")),
        ("nvfp4", Float4Format("nvfp4")),
        ("q5_1", IntFormat(5, 32, "real")),
        ("q4_k", KAffineFormat("q4_k")),
        ("q6_k", KScaledFormat("q6_k")),
        ("iq4_nl", HalfTableFormat("iq4_nl")),
        ("NVFP4", Float4Format("nvfp4")),
        ("FP8", FloatFormat("channel")),
    ],
)
def test_a_name_is_a_number_format(name: str, expected: object) -> None:
    step = GPTQ.model_validate({"format": name, "bits": 3, "group_size": 32, "block_size": 16})
    assert isinstance(step, FormatOptions) and step.number_format("a") == expected


def test_formats_may_differ_from_module_to_module() -> None:
    rules = [{"match": "a", "value": "fp8"}, {"match": "b", "value": "int"}]
    step = GPTQ.model_validate({"format": rules, "group_size": 32})
    assert step.number_format("a") == FloatFormat("channel") and step.number_format("b") == IntFormat(4, 32)
    assert step.number_format("c") is None


def test_an_unknown_format_is_refused() -> None:
    with pytest.raises(ValidationError):
        GPTQ.model_validate({"format": "int9"})
