"""Inputs times the weights of experts, each input with that of its own expert: one product for a whole layer."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import linear

from compress.kernels.op import op
from compress.kernels.product.stack import Stack
from compress.kernels.product.words import Words


def experts_product(inputs: Tensor, weights: Stack, ends: Tensor) -> Tensor:
    """`inputs` [n, columns], in the order of their experts, each times Ŵᵀ of its own → [n, rows], in their type.

    `ends` int32 [experts] says before which input those of each expert end. What the result has for inputs after the
    last expert's says nothing.

    Within `torch.compile` and `torch.export` that is one operator of the graph, `compress::multiply_experts`.
    """
    if torch.compiler.is_compiling():
        words = weights.words
        parts = (words.low, words.high, words.table, words.scale, words.minimum)
        found: Tensor = _operator(inputs, ends, *parts, [weights.count, *words.shape], words.group, words.center)
        return found
    return multiply_experts(inputs, weights, ends)


@torch.library.custom_op("compress::multiply_experts", mutates_args=())
def _operator(
    inputs: Tensor,
    ends: Tensor,
    low: Tensor,
    high: Tensor | None,
    table: Tensor | None,
    scale: Tensor,
    minimum: Tensor | None,
    shape: list[int],
    group: int,
    center: int,
) -> Tensor:
    """`experts_product` with the fields of the weights apart, as operators of torch have them."""
    count, rows, columns = shape
    words = Words((rows, columns), group, low, high, table, center, scale, minimum)
    return multiply_experts(inputs, Stack(count, words), ends)


@_operator.register_fake
def _outline(inputs: Tensor, *others: object) -> Tensor:
    """A result without values: what a compiler has to know of it."""
    shape = others[6]
    assert isinstance(shape, list)
    return inputs.new_empty(inputs.shape[0], shape[1])  # `len` would tie the graph to so many


@op
def multiply_experts(inputs: Tensor, weights: Stack, ends: Tensor) -> Tensor:
    """See `experts_product`. An expert without inputs is not decoded."""
    result = inputs.new_zeros(len(inputs), weights.words.shape[0])
    start = 0
    for number, end in enumerate(ends.cpu().tolist()):
        if end > start:
            result[start:end] = linear(inputs[start:end], weights[number].values().to(inputs.dtype))
        start = end
    return result
