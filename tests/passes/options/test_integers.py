"""The size of groups that is left open is settled once, for all layers together."""

from __future__ import annotations

import pytest

from compress.formats.base import ModelSpec, TensorSpec
from compress.passes.gptq import GPTQ
from compress.passes.model.anatomy import Anatomy, LayerAnatomy
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
