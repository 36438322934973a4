"""Linears that stayed dense, and linears that must."""

from __future__ import annotations

from collections.abc import Callable

from compress.kernels.numbers.int import IntFormat
from compress.recipes.engines.checks.dense import dense_head, no_dense_linears, no_dense_substring, separate_head
from compress.recipes.engines.subject import Subject

Make = Callable[..., Subject]
INT4 = IntFormat(4, 32)
ROUTED = {"mlp.gate": (8, 64), "mlp.gate_proj": (96, 64), "mlp.up_proj": (96, 64)}


def test_a_linear_of_a_quantized_layer_that_stayed_dense(subject: Make) -> None:
    told = no_dense_linears(subject(INT4, down_proj=None))
    assert told and told.startswith("model.layers.0.mlp.down_proj.weight stayed dense")
    assert no_dense_linears(subject(INT4)) is None
    assert no_dense_linears(subject(None)) is None


def test_a_dense_name_within_a_quantized_one(subject: Make) -> None:
    told = no_dense_substring(subject(INT4, shapes=ROUTED, gate=None))
    assert told and told.startswith("model.layers.0.mlp.gate_proj.weight is taken for dense")
    assert no_dense_substring(subject(INT4, shapes=ROUTED)) is None
    assert no_dense_substring(subject(INT4, shapes=ROUTED, gate=None, gate_proj=None)) is None


def test_the_head_stays_dense(subject: Make) -> None:
    assert dense_head(subject(INT4, lm_head=INT4)) == "lm_head.weight is quantized; leave it dense"
    assert dense_head(subject(INT4)) is None


def test_a_tied_head_needs_a_copy(subject: Make) -> None:
    tied = {"tie_word_embeddings": True}
    assert separate_head(subject(INT4, config=tied)) == "it ties no embeddings; export with `untie: true`"
    assert separate_head(subject(INT4, config=tied, options={"untie": True})) is None
    assert separate_head(subject(INT4)) is None
