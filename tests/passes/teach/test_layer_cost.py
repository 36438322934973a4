"""What learning layer by layer takes, counted by hand on a model that is small enough for it."""

from __future__ import annotations

from typing import Any

import pytest

from compress.formats.base import ModelSpec, TensorSpec
from compress.passes.forward.cost.base import Cost
from compress.passes.forward.cost.passage import Passage
from compress.passes.model.anatomy import Anatomy, LayerAnatomy
from compress.passes.teach.layer_cost import layerwise_cost, may_keep
from compress.passes.train.options import TrainOptions

# Each layer: q [8, 8] and down [8, 24]; an embedding of 100 rows.
SHAPES = {"q": (8, 8), "down": (8, 24)}
PLENTY = 1 << 40


def model(layers: int) -> tuple[ModelSpec, Anatomy]:
    names = [f"layer{number}" for number in range(layers)]
    anatomies = tuple(LayerAnatomy(name, ((f"{name}.q",), (f"{name}.down",)), {}) for name in names)
    shapes = {"embedding": (100, 8)} | {f"{name}.{leaf}": shape for name in names for leaf, shape in SHAPES.items()}
    spec = ModelSpec({}, {f"{name}.weight": TensorSpec(shape, "float32") for name, shape in shapes.items()})
    return spec, Anatomy(anatomies, "embedding.weight", "embedding.weight", True, lambda: (None,) * layers)


def cost(layers: int = 2, budget: int = PLENTY, **options: Any) -> Cost:
    settings = TrainOptions.model_validate({"steps": 10, "batch": 4, "held_out": 3, "measure_every": 5, **options})
    return layerwise_cost(settings, *model(layers), (40, 5), budget)


def test_a_step_takes_three_forwards_of_its_batch_and_a_look_one_of_what_is_held_out() -> None:
    """10 steps of 4 sequences, 3 looks (at 0, 5 and 10 steps) at 3, and 40 sequences through two models."""
    flops = Passage(*model(2), (3 * 10 * 4 + 3 * 3 + 2 * 40, 5)).cost(PLENTY).effort.flops
    assert cost().effort.flops == flops


def test_it_takes_as_long_as_there_are_layers_and_no_more_memory() -> None:
    assert cost(6).effort.flops == pytest.approx(3 * cost(2).effort.flops)
    assert cost(6).memory == cost(2).memory


def test_codes_that_learn_take_more_than_scales_do() -> None:
    scales, codes = cost(train="scales"), cost(train="all")
    assert codes.effort.flops == scales.effort.flops
    assert codes.effort.elements > scales.effort.elements and codes.memory > scales.memory


def test_small_batches_round_as_often_as_they_are_many() -> None:
    assert cost(micro_batch=1).effort.elements > 1.5 * cost(micro_batch=4).effort.elements
    assert cost(micro_batch=1).memory < cost(micro_batch=4).memory


def test_hidden_states_are_kept_where_they_are_small() -> None:
    """Two boundaries of 40 × 5 tokens, 8 wide, in fp32: 12,800 bytes."""
    assert may_keep((40, 5), 8, 4 * 12_800) and not may_keep((40, 5), 8, 4 * 12_800 - 1)
    saved = cost(budget=4 * 12_800).memory - cost(budget=4 * 12_800 - 1).memory
    assert 12_800 <= saved < 2 * 12_800


def test_without_a_text_there_is_nothing_to_learn() -> None:
    spec, anatomy = model(2)
    nothing = layerwise_cost(TrainOptions(), spec, anatomy, (0, 0), PLENTY)
    assert nothing == Passage(spec, anatomy, (0, 0), streams=2).cost(PLENTY)
