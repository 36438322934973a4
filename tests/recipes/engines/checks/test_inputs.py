"""Inputs and caches that are rounded at run time."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from compress.kernels.numbers.activations import ActivationFormat, CacheFormat
from compress.kernels.numbers.int import IntFormat
from compress.recipes.engines.checks.inputs import float8_cache, half_inputs, kept_inputs, whole_groups
from compress.recipes.engines.subject import Subject

Make = Callable[..., Subject]
Q = "self_attn.q_proj"


@pytest.mark.parametrize("where", ["options", "config"])
def test_int8_inputs_are_not_computed_in_float16(where: str, subject: Make) -> None:
    rounded = {Q: ActivationFormat("int8", True)}
    assert half_inputs(subject(IntFormat(8, -1), activations=rounded, **{where: {"dtype": "float16"}}))
    assert half_inputs(subject(IntFormat(8, -1), activations=rounded, **{where: {"dtype": "bfloat16"}})) is None
    assert half_inputs(subject(IntFormat(8, -1), **{where: {"dtype": "float16"}})) is None


def test_inputs_divide_into_their_groups(subject: Make) -> None:
    groups = {Q: ActivationFormat("fp8", True, "group")}
    assert whole_groups(subject(None, activations=groups)) == (
        "model.layers.0.self_attn.q_proj has 64 inputs, which are no whole groups of 128; use per: channel"
    )
    assert whole_groups(subject(None, shapes={Q: (64, 256)}, activations=groups)) is None
    assert whole_groups(subject(None, activations={Q: ActivationFormat("fp8", True)})) is None


def test_llm_int8_rounds_inputs(subject: Make) -> None:
    assert kept_inputs(subject(IntFormat(8, -1))) and kept_inputs(subject(IntFormat(4, 32))) is None


def test_the_cache_is_fp8(subject: Make) -> None:
    assert float8_cache(subject(None, kv_cache=CacheFormat("int8"))) == "the cache is int8 per tensor; use fp8"
    assert float8_cache(subject(None, kv_cache=CacheFormat("fp8", "head"))) is None
    assert float8_cache(subject(None)) is None
