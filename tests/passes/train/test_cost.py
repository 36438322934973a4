"""What a training is said to take: it grows with what there is to do, and operations are those of the shapes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from compress.formats import open_checkpoint
from compress.formats.base import ModelSpec
from compress.kernels.numbers.int import IntFormat
from compress.kernels.share import ALONE, Crew
from compress.passes.forward.cost.base import RUNTIME, Cost
from compress.passes.model.skeleton import Skeleton
from compress.passes.train.cost import training_cost
from compress.passes.train.options import TrainOptions

BUDGET = 1 << 34


def cost(
    path: Path,
    *,
    bits: int | None = None,
    teacher: bool = False,
    asked: bool = False,
    crew: Crew = ALONE,
    budget: int = BUDGET,
    **options: Any,
) -> Cost:
    checkpoint, skeleton = Skeleton.open(open_checkpoint(path), torch.device("cpu"))
    spec = checkpoint.spec if bits is None else quantized(checkpoint.spec, bits)
    settings = TrainOptions.model_validate({"steps": 40, "batch": 4, "held_out": 8, **options})
    return training_cost(spec, skeleton.anatomy, (64, 128), settings, budget, teacher, asked, crew)


def quantized(spec: ModelSpec, bits: int) -> ModelSpec:
    made = {
        name: replace(tensor, format=IntFormat(bits, 32)) if "_proj" in name else tensor
        for name, tensor in spec.tensors.items()
    }
    return replace(spec, tensors=made)


def test_products_are_those_of_forward_and_backward(tiny_llama: Path) -> None:
    """6 operations a weight and token (arXiv 2001.08361, table 1), 2 where only a loss is measured; attention more."""
    weights = 2 * (2 * 64 * 64 + 2 * 32 * 64 + 3 * 64 * 128) + 320 * 64
    attention = 4 * 128 * 64 * 2
    tokens, measured = 40 * 4 * 128, 11 * 8 * 128
    expected = (2 * weights + attention) * (3 * tokens + measured)
    assert cost(tiny_llama).effort.half == pytest.approx(expected)
    taught = (2 * weights + attention) * (4 * tokens + 2 * measured)
    assert cost(tiny_llama, teacher=True).effort.half == pytest.approx(taught)
    precise = cost(tiny_llama, precision="fp32").effort
    assert precise.flops == pytest.approx(expected) and precise.half == 0


def test_a_teacher_that_is_asked_once_costs_one_forward_of_everything(tiny_llama: Path) -> None:
    alone, asked = cost(tiny_llama), cost(tiny_llama, asked=True)
    more = asked.effort.half - alone.effort.half
    assert asked.effort.flops == 0 and 0 < more < cost(tiny_llama, teacher=True).effort.half - alone.effort.half


def test_activations_that_are_computed_twice_need_not_be_kept(tiny_llama: Path) -> None:
    kept, twice = cost(tiny_llama, batch=32), cost(tiny_llama, batch=32, checkpointing=True)
    assert twice.memory < kept.memory and twice.effort.half > kept.effort.half


def test_smaller_forwards_take_less_memory_and_round_weights_more_often(tiny_llama: Path) -> None:
    large, small = (cost(tiny_llama, bits=3, batch=32, micro_batch=size) for size in (32, 4))
    assert small.memory < large.memory and small.effort.elements > large.effort.elements


def test_what_does_not_learn_needs_no_moments(tiny_llama: Path) -> None:
    every, scales, norms = (cost(tiny_llama, bits=3, train=train) for train in ("all", "scales", "norms"))
    assert every.memory > max(scales.memory, norms.memory)  # of norms alone, weights stand decoded beside them
    lora = cost(tiny_llama, bits=3, train="lora", lora={"rank": 2})
    assert every.memory > lora.memory > norms.memory
    assert every.effort.elements > scales.effort.elements > norms.effort.elements


def test_parameters_are_sharded_where_all_processes_together_would_not_fit(tiny_llama: Path) -> None:
    whole = cost(tiny_llama, crew=Crew(2, 2))
    assert not whole.sharded and whole.processes == 2
    assert cost(tiny_llama, crew=Crew(2, 2), budget=2 * whole.memory - 1).sharded
    assert not cost(tiny_llama, crew=Crew(2, 1), budget=2 * whole.memory - 1).sharded  # each has so much of its own
    assert not cost(tiny_llama, budget=1).sharded  # nobody is there to share with
    assert not cost(tiny_llama, crew=Crew(2, 2), budget=1, shard=False).sharded


def test_each_process_holds_its_part_of_a_sharded_model(make_model: Callable[..., Path], tmp_path: Path) -> None:
    """Of four numbers in fp32 for each parameter. What is whole for a while is small beside a model of many layers."""
    deep = make_model(tmp_path / "deep", "llama", layers=24)
    alone, two, four, crowd = (
        cost(deep, crew=Crew(count, count), shard=True, micro_batch=1).memory - RUNTIME for count in (1, 2, 4, 1 << 40)
    )
    held = 1.15 * 16 * open_checkpoint(deep).spec.parameters
    assert (two - crowd, four - crowd) == pytest.approx((held / 2, held / 4), rel=1e-4)
    assert four < two < alone
