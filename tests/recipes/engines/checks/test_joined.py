"""Linears that engines compute as one."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from compress.kernels.numbers.activations import ActivationFormat
from compress.kernels.numbers.float import FloatFormat
from compress.kernels.numbers.int import IntFormat
from compress.recipes.engines.checks.joined import joined_alike, scales_apart, whole_blocks
from compress.recipes.engines.subject import Subject

Make = Callable[..., Subject]
INT4, ASYM = IntFormat(4, 32), IntFormat(4, 32, "integer")


@pytest.mark.parametrize("leaf", ["q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"])
def test_one_that_differs_from_the_others_is_named(leaf: str, subject: Make) -> None:
    for other in (IntFormat(8, 32), None):
        told = joined_alike()(subject(INT4, **{leaf: other}))
        assert told and leaf in told and told.endswith("give them the same options")


@pytest.mark.parametrize("leaf", ["o_proj", "down_proj"])
def test_what_is_not_joined_may_differ(leaf: str, subject: Make) -> None:
    assert joined_alike()(subject(INT4, **{leaf: None})) is None


def test_zero_points_count_unless_the_container_has_them_anyway(subject: Make) -> None:
    assert joined_alike()(subject(INT4, q_proj=ASYM))
    assert joined_alike(zeros=False)(subject(INT4, q_proj=ASYM)) is None


def test_inputs_count(subject: Make) -> None:
    told = joined_alike()(subject(INT4, activations={"self_attn.q_proj": ActivationFormat("int8", True)}))
    assert told and "inputs int8 dynamic per token" in told


def test_blocks_are_whole_where_rows_are_joined(subject: Make) -> None:
    block = FloatFormat("block")
    assert whole_blocks(subject(None, q_proj=block))
    assert whole_blocks(subject(None, down_proj=block)) is None
    assert whole_blocks(subject(block, shapes={"self_attn.q_proj": (128, 64)})) is None


def test_one_scale_for_a_weight_is_not_one_for_its_neighbours(subject: Make) -> None:
    assert scales_apart(subject(FloatFormat("tensor"))) and scales_apart(subject(FloatFormat("channel"))) is None
