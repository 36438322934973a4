"""Inputs times the transpose of a weight that is kept as codes; which kernel does it depends on how many there are."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import linear

from compress.kernels.op import op
from compress.kernels.product.words import Words

FEW, MANY = 64, 1024
"""Inputs up to which reading codes is what takes time; and from which on a decoded weight pays, once written. Not
measured yet: where a GPU is at hand, benchmarks/gpu.py says where they ought to be.
"""


def multiply_codes(inputs: Tensor, weight: Words) -> Tensor:
    """`inputs` [n, columns] · Ŵᵀ → [n, rows], in the type of the inputs, which is also that of the decoded weight.

    Within `torch.compile` and `torch.export` that is one operator of the graph, `compress::multiply_codes`.
    """
    if torch.compiler.is_compiling():
        parts = (weight.low, weight.high, weight.table, weight.scale, weight.minimum)
        found: Tensor = _operator(inputs, *parts, [*weight.shape], weight.group, weight.center)
        return found
    return _multiplied(inputs, weight)


@torch.library.custom_op("compress::multiply_codes", mutates_args=())
def _operator(
    inputs: Tensor,
    low: Tensor,
    high: Tensor | None,
    table: Tensor | None,
    scale: Tensor,
    minimum: Tensor | None,
    shape: list[int],
    group: int,
    center: int,
) -> Tensor:
    """`multiply_codes` with the fields of the weight apart, as operators of torch have them."""
    rows, columns = shape
    return _multiplied(inputs, Words((rows, columns), group, low, high, table, center, scale, minimum))


@_operator.register_fake
def _outline(inputs: Tensor, *weight: object) -> Tensor:
    """A result without values: what a compiler has to know of it."""
    shape = weight[5]
    assert isinstance(shape, list)
    return inputs.new_empty(inputs.shape[0], shape[0])  # `len` would tie the graph to so many


def _multiplied(inputs: Tensor, weight: Words) -> Tensor:
    """By the version for so many inputs."""
    if len(inputs) <= FEW:
        return multiply_few(inputs, weight)
    if len(inputs) <= MANY:
        return multiply_many(inputs, weight)
    return linear(inputs, decode_codes(weight, inputs.dtype))


@op
def multiply_few(inputs: Tensor, weight: Words) -> Tensor:
    """`multiply_codes` of up to `FEW` inputs."""
    return linear(inputs, weight.values().to(inputs.dtype))


@op
def multiply_many(inputs: Tensor, weight: Words) -> Tensor:
    """`multiply_codes` of any number of inputs."""
    return linear(inputs, weight.values().to(inputs.dtype))


@op
def decode_codes(weight: Words, dtype: torch.dtype) -> Tensor:
    """The weight [rows, columns] as `dtype`."""
    return weight.values().to(dtype)
