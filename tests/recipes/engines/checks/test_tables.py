"""NF4 and FP4."""

from __future__ import annotations

from collections.abc import Callable

from compress.kernels.numbers.codebook import CodebookFormat
from compress.kernels.numbers.float4 import Float4Format
from compress.kernels.numbers.int import IntFormat
from compress.recipes.engines.checks.tables import cpu_rows, float4_in_bfloat16, long_blocks, without
from compress.recipes.engines.subject import Subject

Make = Callable[..., Subject]
NVFP4, NF4 = Float4Format("nvfp4"), CodebookFormat("nf4", 64)


def test_a_format_without_a_kernel(subject: Make) -> None:
    check = without("nvfp4", "mxfp4", why="for which there is no kernel")
    assert check(subject(None, down_proj=NVFP4)) == (
        "model.layers.0.mlp.down_proj.weight is in nvfp4, for which there is no kernel"
    )
    assert check(subject(NF4)) is None


def test_fp4_stands_beside_bfloat16(subject: Make) -> None:
    assert float4_in_bfloat16(subject(NVFP4, options={"dtype": "float16"}))
    assert float4_in_bfloat16(subject(NVFP4, config={"dtype": "bfloat16"})) is None
    assert float4_in_bfloat16(subject(IntFormat(4, 32), options={"dtype": "float16"})) is None


def test_rows_of_nf4_on_a_cpu(subject: Make) -> None:
    odd = {"mlp.up_proj": (40, 64)}
    assert cpu_rows(subject(NF4, shapes=odd)) and cpu_rows(subject(IntFormat(4, 32), shapes=odd)) is None
    assert cpu_rows(subject(NF4)) is None


def test_short_blocks_of_nf4(subject: Make) -> None:
    assert long_blocks(subject(CodebookFormat("nf4", 32))) and long_blocks(subject(NF4)) is None
