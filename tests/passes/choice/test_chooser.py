"""A chooser fills in bits beforehand: the largest for the plan's bytes, each evenly for its refusals."""

from __future__ import annotations

import pytest

from compress.formats.base import ModelSpec, TensorSpec
from compress.formats.errors import RefusedError, UsageError
from compress.passes.choice.chooser import Chooser
from compress.passes.gptq import GPTQ
from compress.passes.int8 import INT8
from compress.passes.mixed import Mixed
from compress.passes.model.anatomy import Anatomy, LayerAnatomy

ANATOMY = Anatomy(
    tuple(LayerAnatomy(name, ((f"{name}.q", f"{name}.k"), (f"{name}.o",)), {}) for name in ("0", "1")),
    "embedding.weight", "head.weight", False, lambda: (None, None),
)  # fmt: skip
NAMES = [f"{layer}.{leaf}" for layer in "01" for leaf in "qko"]
MODEL = ModelSpec({}, {f"{name}.weight": TensorSpec((64, 64), "float32") for name in [*NAMES, "embedding", "head"]})


def chooser(average_bits: float) -> Chooser:
    return Mixed(average_bits=average_bits, bits=(2, 4))


def test_every_candidate_is_tried_everywhere() -> None:
    assert chooser(3.0).even([GPTQ(group_size=64)], MODEL, ANATOMY) == [dict.fromkeys(NAMES, bits) for bits in (2, 4)]


def test_the_largest_choice_is_at_the_budget_and_joined_linears_stay_together() -> None:
    (choice,) = chooser(3.25).largest([GPTQ(group_size=64)], MODEL, ANATOMY)  # 2.25 and 4.25 with scales
    assert choice["0.q"] == choice["0.k"] and choice["1.q"] == choice["1.k"]
    assert sum(choice.values()) / len(NAMES) >= 3


def test_what_takes_no_bits_leaves_nothing_to_choose() -> None:
    with pytest.raises(UsageError, match="none there takes bits"):
        chooser(3.0).even([INT8()], MODEL, ANATOMY)
    with pytest.raises(RefusedError, match=r"already take 2\.250 bits"):
        chooser(2.0).largest([GPTQ(group_size=64)], MODEL, ANATOMY)
