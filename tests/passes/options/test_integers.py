"""The size of groups that is left open is settled once, for all layers together."""

from __future__ import annotations

import pytest

from compress.formats.base import ModelSpec, TensorSpec
from compress.kernels.numbers.int import IntFormat
from compress.passes.gptq import GPTQ
from compress.passes.model.anatomy import Anatomy, LayerAnatomy
from compress.passes.options.integers import IntegerOptions
from compress.passes.rtn import RTN

ANATOMY = Anatomy(
    (LayerAnatomy("a", (("a.one",), ("a.two",)), {"a.one": "one", "a.two": "two"}),),
    "embedding.weight", "head.weight", False, lambda: (None,),
)  # fmt: skip


def model(one: int, two: int) -> ModelSpec:
    columns = {"a.one": one, "a.two": two, "embedding": 7, "head": 7}
    return ModelSpec({}, {f"{name}.weight": TensorSpec((32, extent), "float32") for name, extent in columns.items()})


@pytest.mark.parametrize(
    ("one", "two", "size", "said"),
    [
        (256, 128, 128, []),
        (576, 1536, 64, ["rtn: groups of 64: 128 does not divide 576 columns"]),
        (128, 96, 32, ["rtn: groups of 32: 128 does not divide 96 columns"]),
        (128, 72, -1, ["rtn: one scale for each row: 128 does not divide 72 columns"]),
    ],
)
def test_the_largest_usual_size_that_divides_all_layers(one: int, two: int, size: int, said: list[str]) -> None:
    notes: list[str] = []
    assert RTN().settled(model(one, two), ANATOMY, notes.append).group_size == size
    assert notes == said


def test_what_is_said_is_left_and_what_has_no_groups_does_not_count() -> None:
    notes: list[str] = []
    assert RTN(group_size=48).settled(model(96, 96), ANATOMY, notes.append).group_size == 48
    assert RTN(skip=("a.two",)).settled(model(128, 72), ANATOMY, notes.append).group_size == 128
    assert GPTQ(format="nf4").settled(model(96, 72), ANATOMY, notes.append).group_size == 128
    assert notes == []


def test_rules_choose_the_grid_of_each_module() -> None:
    rules = [{"match": "a.one", "value": False}, {"value": True}]
    step = RTN.model_validate({"bits": [{"match": "a.*", "value": 3}], "group_size": 16, "symmetric": rules})
    assert isinstance(step, IntegerOptions)
    assert step.number_format("a.one") == IntFormat(3, 16, "integer")
    assert step.number_format("a.two") == IntFormat(3, 16, "middle")
    assert step.number_format("b") is None
    assert not step.leaves_open("a.one", "bits") and step.leaves_open("b", "bits")


def test_chosen_bits_take_the_place_of_the_default_only() -> None:
    step = RTN.model_validate({"bits": [{"match": "a.one", "value": 8}, {"value": 4}], "group_size": 16})
    chosen = step.with_bits({"a.two": 2})
    assert chosen.number_format("a.one") == IntFormat(8, 16) and chosen.number_format("a.two") == IntFormat(2, 16)
    assert step.with_bits({}) is step
