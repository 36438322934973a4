"""What is above the bits or the type that a module has, and recipes that say so."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from compress.formats import open_checkpoint
from compress.formats.options import Match
from compress.kernels.numbers.int import IntFormat
from compress.passes.choice.ladder import Ladder
from compress.passes.evaluate import Evaluate
from compress.passes.gptq import GPTQ
from compress.passes.model.anatomy import Anatomy
from compress.passes.model.skeleton import Skeleton
from compress.passes.rtn import RTN

DOWN, UP = "model.layers.0.mlp.down_proj", "model.layers.0.mlp.up_proj"


@pytest.fixture
def anatomy(tiny_llama: Path) -> Anatomy:
    return Skeleton.open(open_checkpoint(tiny_llama), torch.device("cpu"))[1].anatomy


def test_bits_go_up_to_8_and_types_along_their_own_kind(anatomy: Anatomy) -> None:
    ints = Ladder([RTN.model_validate({"bits": {"*.down_proj": 7, "default": 3}})], anatomy)
    assert (ints.above(UP), ints.above(DOWN), ints.above("lm_head")) == ([3, 4, 5, 6, 7, 8], [7, 8], [])
    assert set(ints.rungs()) == {4, 5, 6, 7, 8}
    assert UP in ints.at_least(7) and DOWN not in ints.at_least(7)
    kinds = {"*.down_proj": "q6_k", "*.up_proj": "q4_0", "*.gate_proj": "nf4", "default": "q3_k"}
    types = Ladder([GPTQ.model_validate({"format": kinds})], anatomy)
    assert types.above(DOWN) == ["q6_k", "q8_0"] and types.above(UP) == ["q4_0", "q5_0", "q8_0"]
    assert types.above(UP.replace("up", "gate")) == []


def test_only_what_was_chosen_is_changed_and_a_recipe_can_say_it(anatomy: Anatomy) -> None:
    passes = [RTN(bits=4, group_size=32, skip=("*.down_proj",)), Evaluate(data="builtin")]
    ladder = Ladder(passes, anatomy)
    once = ladder.raised(passes, {UP: 5, DOWN: 5})
    step = RTN.model_validate(once[0].model_dump(mode="json"))
    assert once[1] is passes[1]
    assert step.number_format(UP) == IntFormat(5, 32, "middle") == ladder.number_format(UP, 5)
    assert step.number_format(UP.replace("0", "1")) == IntFormat(4, 32, "middle")
    assert step.targets(anatomy) == passes[0].targets(anatomy)  # type: ignore[attr-defined]
    twice = Ladder(once, anatomy).raised(once, {UP: 6})
    assert twice[0].bits == (Match(match=UP, value=6), Match(value=4))  # type: ignore[attr-defined]
