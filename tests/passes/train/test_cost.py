"""What a training is said to take: it grows with what there is to do, and operations are those of the shapes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from compress.formats import open_checkpoint
from compress.formats.base import ModelSpec
from compress.kernels.numbers.int import IntFormat
from compress.passes.forward.cost import Cost
from compress.passes.model.skeleton import Skeleton
from compress.passes.train.cost import training_cost
from compress.passes.train.options import TrainOptions

BUDGET = 1 << 34


def cost(path: Path, *, bits: int | None = None, teacher: bool = False, asked: bool = False, **options: Any) -> Cost:
    checkpoint, skeleton = Skeleton.open(open_checkpoint(path), torch.device("cpu"))
    spec = checkpoint.spec if bits is None else quantized(checkpoint.spec, bits)
    settings = TrainOptions.model_validate({"steps": 40, "batch": 4, "held_out": 8, **options})
    return training_cost(spec, skeleton.anatomy, (64, 128), settings, BUDGET, teacher, asked)


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
