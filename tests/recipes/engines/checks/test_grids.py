"""Integer grids: what each check says of one weight that does not fit, and that it is quiet of those that do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from compress.kernels.numbers.activations import ActivationFormat
from compress.kernels.numbers.int import IntFormat
from compress.recipes.engines.checks.grids import (
    bits,
    divisible,
    group_sizes,
    no_integers,
    no_packed_zeros,
    scales_kept,
    symmetric,
)
from compress.recipes.engines.subject import Subject

Make = Callable[..., Subject]
INT4, INT8, ASYM = IntFormat(4, 32), IntFormat(8, 32), IntFormat(4, 32, "integer")
FIRST = "model.layers.0.self_attn.q_proj.weight"


def test_bits(subject: Make) -> None:
    assert bits(4)(subject(INT4, down_proj=INT8)) == (
        "model.layers.0.mlp.down_proj.weight has 8 bits (int8 g32 sym); use 4"
    )
    assert bits(4, 8)(subject(INT4, down_proj=INT8)) is None
    assert bits(8, zero="integer")(subject(INT4)) is None


def test_group_sizes_take_a_whole_row_for_minus_one(subject: Make) -> None:
    assert group_sizes(-1, 128)(subject(IntFormat(4, 64), down_proj=None)) is None
    assert group_sizes(128)(subject(INT4)) == f"{FIRST} has groups of 32; use group_size 128"
    assert group_sizes(128, zero="integer")(subject(INT4)) is None


def test_symmetric(subject: Make) -> None:
    assert symmetric("do this")(subject(ASYM)) == f"{FIRST} is asymmetric ({ASYM.name}); do this"
    assert symmetric("do this")(subject(INT4)) is None


def test_divisible_looks_at_quantized_weights_only(subject: Make) -> None:
    shapes = {"mlp.down_proj": (80, 64), "mlp.up_proj": (96, 64)}
    told = divisible(rows=32)(subject(INT4, shapes=shapes))
    assert told and "is 80 × 64, not a multiple of 32 × 1" in told
    assert divisible(rows=32)(subject(INT4, shapes=shapes, down_proj=None)) is None


def test_packed_zeros(subject: Make) -> None:
    alone, mixed = no_packed_zeros(subject(ASYM)), no_packed_zeros(subject(ASYM, down_proj=INT4))
    assert alone and mixed and "dequantize=True" in alone and "dequantize=True" not in mixed
    assert no_packed_zeros(subject(INT4)) is None


def test_scales_are_kept_by_their_own_type(subject: Make) -> None:
    scaled = replace(INT4, scale_dtype="float32")
    assert scales_kept(subject(scaled, options={"dtype": "float32"})) is None
    told = scales_kept(subject(scaled, options={"dtype": "float16"}))
    assert told == "rounds the float32 scales to float16; export with dtype: float32 for exact weights"


def test_integers_whose_inputs_are_rounded_are_another_kernel(subject: Make) -> None:
    assert no_integers("need this")(subject(INT4)) == "int4 weights need this"
    leaves = {"self_attn.q_proj": (64, 64)}
    rounded = subject(INT8, shapes=leaves, activations={"self_attn.q_proj": ActivationFormat("int8", True)})
    assert no_integers("need this")(rounded) is None
    assert no_integers("need this")(subject(None)) is None
