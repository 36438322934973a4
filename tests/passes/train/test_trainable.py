"""What learns, by headers and patterns."""

from __future__ import annotations

from typing import Any

import pytest

from compress.formats.base import ModelSpec, TensorSpec
from compress.formats.errors import UsageError
from compress.kernels.numbers.int import IntFormat
from compress.passes.model.anatomy import Anatomy
from compress.passes.train.options import TrainOptions
from compress.passes.train.trainable import learning

INT4 = IntFormat(4, 32)
SPEC = ModelSpec(
    {},
    {
        "model.embed_tokens.weight": TensorSpec((320, 64), "float32"),
        "model.layers.0.mlp.up_proj.weight": TensorSpec((128, 64), "float32", INT4),
        "model.layers.0.self_attn.q_proj.weight": TensorSpec((64, 64), "float32"),
        "model.layers.0.self_attn.q_proj.bias": TensorSpec((64,), "float32"),
        "model.norm.weight": TensorSpec((64,), "float32"),
    },
)
ANATOMY = Anatomy((), "model.embed_tokens.weight", "lm_head.weight", True, tuple)
VECTORS = {"model.layers.0.self_attn.q_proj.bias", "model.norm.weight"}
UP = "model.layers.0.mlp.up_proj.weight"


@pytest.mark.parametrize(
    ("train", "expected"),
    [
        ("all", set(SPEC.tensors)),
        ("norms", VECTORS),
        ("scales", {*VECTORS, UP}),
        (("up_proj",), {UP}),
        (("*.mlp.*", "norm"), {UP, "model.norm.weight"}),
        (("q_proj",), {name for name in SPEC.tensors if "q_proj" in name}),
    ],
)
def test_what_learns(train: Any, expected: set[str]) -> None:
    assert learning(SPEC, sorted(SPEC.tensors), TrainOptions(train=train), ANATOMY) == expected


def test_a_pattern_that_matches_nothing_is_said_with_the_nearest_name() -> None:
    with pytest.raises(UsageError, match="nothing is named 'up_prj'; did you mean 'up_proj'"):
        learning(SPEC, sorted(SPEC.tensors), TrainOptions(train=("up_prj",)), ANATOMY)


def test_scales_want_a_quantized_tensor() -> None:
    dense = sorted(set(SPEC.tensors) - {UP})
    with pytest.raises(UsageError, match="no tensor is quantized"):
        learning(SPEC, dense, TrainOptions(train="scales"), ANATOMY)
